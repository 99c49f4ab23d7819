"""The figures of the curve fits."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.curve_findings import CurveRow
from analysis.drawing import BLUE, COLORS, GREY, ORANGE, use_log_scale
from analysis.statistics import Quartiles

LINE_STYLES = ("-", "--", ":")  # for more lines than there are colors


def curves_figure(
    x: np.ndarray,
    truth: np.ndarray,
    points: tuple[np.ndarray, np.ndarray],
    panels: Sequence[tuple[str, np.ndarray]],
    function: str,
) -> Figure:
    """The fitted curve over the ground truth and the training points, a panel for each setting.

    Args:
        x, truth: (G,) the grid and f on it.
        points: x and y of the training points.
        panels: (title, (S, G) fitted curves of S seeds) each; the first seed is drawn, all of them make the band.
        function: what f(x) is, for the title.
    """
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    size = (7, 4.2 * rows + 0.9) if columns == 1 else (3.6 * columns + 1, 3.2 * rows + 0.9)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    low, high = min(truth.min(), points[1].min()), max(truth.max(), points[1].max())
    margin = 0.08 * (high - low) or 1.0
    grid[0, 0].set_ylim(low - margin, high + margin)  # of all panels, which share it
    for axes, (title, curves) in zip(grid.flat, panels, strict=False):
        axes.plot(*points, ".", color=GREY, alpha=0.5, markersize=4, label="training points")
        axes.plot(x, truth, "--", color=ORANGE, linewidth=1.8, label="ground truth f(x)")
        _draw_fits(axes, x, curves)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("x")
    for axes in grid[:, 0]:
        axes.set_ylabel("y")
    handles = {label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(f"f(x) = {function if len(function) <= 70 else function[:67] + '...'}", fontsize=11)
    return figure


def _draw_fits(axes: Axes, x: np.ndarray, curves: np.ndarray) -> None:
    finite = curves[np.isfinite(curves).all(1)]
    if len(finite) > 1:
        band = np.quantile(finite, (0.25, 0.75), axis=0)
        axes.fill_between(x, *band, color=BLUE, alpha=0.25, linewidth=0, label="interquartile range of the seeds")
    if np.isfinite(curves[0]).all():
        axes.plot(x, curves[0], color=BLUE, linewidth=1.8, label="fitted curve")
    else:
        axes.text(0.5, 0.5, "diverged", transform=axes.transAxes, ha="center", fontsize=14, color="#b00020")


def errors_figure(rows: Sequence[CurveRow], noise_variance: float | None = None) -> Figure:
    """Training MSE and MSE against the noise-free f over epochs, log-log, a color for each learning rate.

    Args:
        rows: as from ``spread_over_seeds``, of one learning rate after the other; lines are medians, bands quartiles.
            What is None or not finite, where a network diverged, is left out.
        noise_variance: of the noise on the training points, drawn for reference, in squared units of y.
    """
    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    if noise_variance:
        left.axhline(noise_variance, color=GREY, linestyle=":", label="variance of the noise")
    lrs = list(dict.fromkeys(row["lr"] for row in rows))
    for i, lr in enumerate(lrs):
        part = [row for row in rows if row["lr"] == lr]
        _draw_line(left, part, "train_mse", i)
        _draw_line(right, part, "true_mse", i)
    left.set_title("training MSE, on the noisy points")
    right.set_title("MSE against the noise-free f")
    for axes in (left, right):
        _use_log_scale_if_positive(axes)
        axes.set(xlabel="epochs", ylabel="mean squared error [y²]")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    return figure


def _draw_line(axes: Axes, rows: Sequence[CurveRow], metric: Literal["train_mse", "true_mse"], i: int) -> None:
    """The i-th learning rate's line, which ends where it diverged."""
    epochs, values = [row["epochs"] for row in rows], [row[metric] for row in rows]
    middle, low, high = (_numbers(values, name) for name in ("median", "q25", "q75"))
    color, style = COLORS[i % len(COLORS)], LINE_STYLES[i // len(COLORS) % len(LINE_STYLES)]
    label = f"learning rate {rows[0]['lr']:g}" + ("" if np.isfinite(middle[-1]) else " (diverged)")
    axes.plot(epochs, middle, marker="o", markersize=2.5, linestyle=style, color=color, label=label)
    if (low != high).any():
        axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)


def _numbers(values: Sequence[Quartiles], name: Literal["median", "q25", "q75"]) -> np.ndarray:
    """(T,) float64, nan for what is None or infinite."""
    numbers = np.array([value[name] for value in values], dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _use_log_scale_if_positive(axes: Axes) -> None:
    """All diverged, or every error is 0: these have no logarithm."""
    if np.isfinite(axes.dataLim.minpos).all():  # the smallest positive x and y drawn; infinite without any
        use_log_scale(axes)
