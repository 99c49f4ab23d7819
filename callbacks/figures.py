"""The pictures of a run, as matplotlib figures; nothing here knows of training."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from PIL import Image

from callbacks.atomic import write_atomically

BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#d95f02", "#1b9e77", "#7a7a7a"
COLOURS = ("#1f6fb4", "#d95f02", "#1b9e77", "#7b4ab5", "#b5a000", "#c2185b", "#5d4037", "#000000")


class PlainNumbers(LogFormatter):
    """20 instead of 2 x 10^1 on a logarithmic axis, with digits enough to tell near ticks apart."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.4g}" if super().__call__(x, pos) else ""


def publish(figure: Figure, name: str, run_dir: Path, loggers: Iterable[Any]) -> None:
    """Writes ``name``.png into ``run_dir`` and shows the same picture in TensorBoard."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    write_atomically(run_dir / f"{name}.png", lambda file: Image.fromarray(pixels).save(file, "png"))
    for logger in loggers:
        if hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, pixels, dataformats="HWC")
            logger.experiment.flush()  # training is over, and nobody else will


def training_figure(
    runs: Sequence[Sequence[Mapping[str, Any]]], test_accs: Sequence[float | None], measured_on: str
) -> Figure:
    """Accuracy and loss per epoch for train and test, the epochs at which the learning rate changed marked.

    Args:
        runs: the epochs' rows of each run, as in summary.json; lines are means over the runs, bands their deviation.
        test_accs: final test accuracy of each run.
        measured_on: what the runs validated on, "test" or "held-out".
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    rows = runs[0]
    numbers = [row["epoch"] for row in rows]
    changes = [(b["epoch"] - 0.5, b["lr"]) for a, b in zip(rows, rows[1:], strict=False) if a["lr"] != b["lr"]]
    if len(changes) > 3:  # a rate that changes all the time is no event
        changes = []
    parts = [
        ("train", BLUE, "train (running)"),
        ("probe", GREEN, "train (fixed part)"),
        ("val", ORANGE, measured_on),
    ]
    for axes, (name, label) in zip(
        figure.subplots(1, 2), (("acc", "accuracy"), ("loss", "cross-entropy loss [nats]")), strict=True
    ):
        for part, colour, legend in parts:
            key = f"{part}_{name}"
            if any(row.get(key) is not None for row in rows):
                values = np.array([[row[key] for row in run] for run in runs], dtype=float)
                mean, deviation = values.mean(0), values.std(0)
                axes.plot(numbers, mean, "o-", color=colour, label=legend, markersize=4)
                axes.fill_between(numbers, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
        for at, lr in changes:
            axes.axvline(at, color=GREY, linestyle="--", linewidth=1, label=f"learning rate becomes {lr:g}")
        axes.set(xlabel="epoch, counted from 0", ylabel=label, xlim=(numbers[0] - 0.5, numbers[-1] + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    known = [acc for acc in test_accs if acc is not None]
    title = "ResNet-20" if not known else f"ResNet-20: test accuracy {np.mean(known):.2%} at the end"
    if len(known) > 1:
        title += f", {np.std(known, ddof=1):.2%} standard deviation over {len(known)} seeds"
    figure.suptitle(title)
    return figure


def curves_figure(
    x: np.ndarray,
    truth: np.ndarray,
    points: tuple[np.ndarray, np.ndarray],
    panels: Sequence[tuple[str, np.ndarray]],
    function: str,
) -> Figure:
    """The learnt curve over the ground truth and the training points, a panel for each setting.

    Args:
        x, truth: (G,) the grid and f on it.
        points: x and y of the training points.
        panels: (title, (S, G) learnt curves of S seeds) each; the first seed is drawn, all of them make the band.
    """
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    width = 7 if columns == 1 else 3.6 * columns + 1
    figure = Figure(figsize=(width, (4.2 if columns == 1 else 3.2) * rows + 0.9), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    everything = np.concatenate([truth, points[1]])
    low, high = everything.min(), everything.max()
    margin = 0.08 * (high - low) or 1.0
    for axes, (title, curves) in zip(grid.flat, panels, strict=False):
        axes.plot(*points, ".", color=GREY, alpha=0.5, markersize=4, label="training points")
        axes.plot(x, truth, "--", color=ORANGE, linewidth=1.8, label="f(x), the ground truth")
        finite = curves[np.isfinite(curves).all(1)]
        if len(finite) > 1:
            axes.fill_between(
                x,
                *np.quantile(finite, (0.25, 0.75), axis=0),
                color=BLUE,
                alpha=0.25,
                linewidth=0,
                label="middle half of the seeds",
            )
        if np.isfinite(curves[0]).all():
            axes.plot(x, curves[0], color=BLUE, linewidth=1.8, label="learnt")
        else:
            axes.text(0.5, 0.5, "diverged", transform=axes.transAxes, ha="center", fontsize=14, color="#b00020")
        axes.set_title(title, fontsize=10)
        axes.set_ylim(low - margin, high + margin)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("x")
    for axes in grid[:, 0]:
        axes.set_ylabel("y")
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(f"f(x) = {function if len(function) <= 70 else function[:67] + '...'}", fontsize=11)
    return figure


def error_figure(
    epochs: np.ndarray,
    lrs: Sequence[float],
    train_mse: np.ndarray,
    true_mse: np.ndarray,
    noise_variance: float,
) -> Figure:
    """Training error and true error against epochs, log-log, a colour for each learning rate.

    Args:
        epochs: (T,) measured epochs.
        lrs: (L,) learning rates.
        train_mse, true_mse: (T, L, S) in squared units of y; lines are medians over the S seeds, bands quartiles.
        noise_variance: of the noise on the training points; drawn for reference.
    """
    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    titles = ("training error, on the noisy points", "true error, against f itself")
    for axes, values, title in zip(figure.subplots(1, 2), (train_mse, true_mse), titles, strict=True):
        if noise_variance > 0 and values is train_mse:
            axes.axhline(noise_variance, color=GREY, linestyle=":", label="variance of the noise")
        for i, lr in enumerate(lrs):
            _line_with_band(axes, epochs, values[:, i], COLOURS[i % len(COLOURS)], f"learning rate {lr:g}")
        axes.set_xscale("log")
        if (values[np.isfinite(values)] > 0).any():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(PlainNumbers())
            axes.yaxis.set_minor_formatter(PlainNumbers(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        axes.set(xlabel="epochs", ylabel="mean squared error [y²]", title=title)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=9)
    return figure


def _line_with_band(axes: Axes, x: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    finite = np.isfinite(values).all(1)  # the line ends where a seed diverged
    label += "" if finite[-1] else " (diverged)"
    axes.plot(x[finite], np.median(values[finite], 1), color=colour, label=label)
    if values.shape[1] > 1 and finite.any():
        axes.fill_between(
            x[finite],
            *np.quantile(values[finite], (0.25, 0.75), axis=1),
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
