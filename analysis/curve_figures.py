"""The figures of the curve fits."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis.drawing import BLUE, COLORS, GREY, ORANGE, pixels_of, use_log_scale

LINE_STYLES = ("-", "--", ":")  # for more lines than there are colors
CARDS = 10  # of one tag TensorBoard shows no more, but a random choice
MOST_LABELS = 12  # in a legend


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
    rows = math.ceil(len(panels) / columns)
    size = (7, 4.2 * rows + 0.9) if columns == 1 else (3.6 * columns + 1, 3.2 * rows + 0.9)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for i, (axes, (title, curves)) in enumerate(zip(grid.flat, panels, strict=False)):
        draw_problem(axes, x, truth, points)
        _draw_fits(axes, x, curves)
        axes.set_title(title, fontsize=10)
        if i + columns >= len(panels):  # none below it
            axes.set_xlabel("x")
            axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("y")
    handles = {label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(f"f(x) = {function if len(function) <= 70 else function[:67] + '...'}", fontsize=11)
    return figure


def draw_problem(
    axes: Axes, x: ArrayLike, truth: ArrayLike, points: tuple[ArrayLike, ArrayLike], color: str = ORANGE
) -> None:
    """Draws the training points and the ground truth, in ``color``; the axes stay theirs, however far off a fit is."""
    axes.plot(*points, ".", color=GREY, alpha=0.5, markersize=4, label="training points")
    axes.plot(x, truth, "--", color=color, linewidth=1.8, label="ground truth f(x)")
    axes.margins(y=0.08)
    axes.set_ylim(axes.get_ylim())
    axes.grid(alpha=0.3)


def _draw_fits(axes: Axes, x: np.ndarray, curves: np.ndarray) -> None:
    finite = curves[np.isfinite(curves).all(1)]
    if len(finite) > 1:
        band = np.quantile(finite, (0.25, 0.75), axis=0)
        axes.fill_between(x, *band, color=BLUE, alpha=0.25, linewidth=0, label="interquartile range of the seeds")
    if np.isfinite(curves[0]).all():
        label = "fitted curve" + (" of the first seed" if len(curves) > 1 else "")
        axes.plot(x, curves[0], color=BLUE, linewidth=1.8, label=label)
    else:
        axes.text(0.5, 0.5, "diverged", transform=axes.transAxes, ha="center", fontsize=14, color="#b00020")


def curve_cards(growth: Mapping[str, Any], reported: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """How the first seed's fitted curves grow: pictures to be read at the width of a card of TensorBoard's.

    Args:
        growth: the content of curves.json.
        reported: epoch counts to show in any case, where they were kept; others are added at even ratios.

    Yields each epoch count and (440, 660, 3) uint8 pixels.
    """
    fits = {(fit["lr"], fit["epochs"]): fit["fit"] for fit in growth["fits"]}
    if not fits:
        return
    kept = np.unique([epochs for _, epochs in fits])
    shown = {*kept[-1:], *np.intersect1d(kept, list(reported))}
    for epochs in np.geomspace(kept[0], kept[-1], max(1, CARDS + 1 - len(shown)))[:-1]:
        shown.add(kept[np.abs(np.log(kept / epochs)).argmin()])

    figure = Figure(figsize=(3.3, 2.2), dpi=200, layout="constrained")
    axes = figure.subplots()
    points = (growth["points"]["x"], growth["points"]["y"])
    draw_problem(axes, growth["x"], growth["truth"], points, color="black")
    axes.tick_params(labelsize=7)
    lrs = dict.fromkeys(lr for lr, _ in fits)
    lines = {lr: axes.plot([], [], **_style(i))[0] for i, lr in enumerate(lrs)}
    labels = ["points", "f(x)", *(f"lr {lr:g}" for lr in lrs)][:MOST_LABELS]
    figure.legend(axes.lines[:MOST_LABELS], labels, loc="outside right upper", fontsize=7, handlelength=1.2)
    for epochs in sorted(shown):
        for lr, line in lines.items():
            y = fits[lr, epochs]  # empty where it diverged
            line.set_data(growth["x"][: len(y)], y)
        diverged = sum(not fits[lr, epochs] for lr in lines)
        axes.set_title(f"epoch {epochs:,}" + (f", {diverged} diverged" if diverged else ""), fontsize=9)
        yield int(epochs), pixels_of(figure)
        figure.set_layout_engine("none")  # nothing moves after the first picture


def _style(i: int) -> dict[str, Any]:
    """The line of the i-th learning rate."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": LINE_STYLES[i // len(COLORS) % len(LINE_STYLES)]}


def errors_figure(rows: Sequence[Mapping[str, Any]], noise_variance: float | None = None) -> Figure:
    """Training MSE and MSE against the noise-free f over epochs, log-log, a color for each learning rate.

    Args:
        rows: as from ``spread_over_seeds``, of one learning rate after the other; lines are medians, bands quartiles.
            What is None or not finite, where a network diverged, is left out.
        noise_variance: of the noise on the training points, drawn for reference, in squared units of y.
    """
    figure = Figure(figsize=(6, 3), dpi=165, layout="constrained")
    left, right = figure.subplots(1, 2)
    if noise_variance:
        left.axhline(noise_variance, color=GREY, linestyle=":", label="variance of the noise")
    lrs = list(dict.fromkeys(row["lr"] for row in rows))
    for i, lr in enumerate(lrs):
        part = [row for row in rows if row["lr"] == lr]
        _draw_line(left, part, "train_mse", i)
        _draw_line(right, part, "true_mse", i)
    left.set_title("training MSE, on the noisy points", fontsize=9)
    right.set_title("MSE against the noise-free f", fontsize=9)
    left.set_ylabel("mean squared error [y²]")
    for axes in (left, right):
        # The smallest x and y above 0 that are drawn; infinite where all diverged or is 0, which has no logarithm.
        if np.isfinite(axes.dataLim.minpos).all():
            use_log_scale(axes)
        axes.set_xlabel("epochs")
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
    lines = {line.get_label(): line for line in (*left.lines, *right.lines)}
    figure.legend(handles=list(lines.values())[:MOST_LABELS], loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _draw_line(axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str, i: int) -> None:
    """The i-th learning rate's line, which ends where it diverged."""
    values = np.array([[row[metric][name] for name in ("median", "q25", "q75")] for row in rows], dtype=float)
    middle, low, high = np.where(np.isfinite(values), values, np.nan).T
    epochs, style = [row["epochs"] for row in rows], _style(i)
    label = f"learning rate {rows[0]['lr']:g}" + ("" if np.isfinite(middle[-1]) else " (diverged)")
    axes.plot(epochs, middle, marker="o", markersize=2.5, label=label, **style)
    if (low != high).any():
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.2, linewidth=0)
