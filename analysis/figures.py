"""All figures by Matplotlib: fitted curves, training curves, confusion matrix, pictures."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from analysis.curves import MSE, Growth, error_name
from analysis.files import write_atomically
from analysis.runs import Rows, epoch_ticks, lr_changes, over_epochs
from analysis.statistics import number, spread

GREY = "#7a7a7a"
MEASURES = {"acc": ("accuracy [%]", 100), "loss": ("cross-entropy loss [nats]", 1)}  # axis, scale
LINES = {"train": "train (epoch average)", "val": "", "probe": "training subset, eval mode"}  # "": test or validation


def pixels_of(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8: the figure as drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save_png(figure: Figure, path: Path) -> np.ndarray:
    """Writes ``path``, whole or not at all; returns the (H, W, 3) uint8 pixels."""
    pixels = pixels_of(figure)
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, "png"))
    return pixels


def show_pictures(pictures: Iterable[tuple[int, np.ndarray]], tag: str, loggers: Iterable[Any]) -> None:
    """Shows pictures, each a step and (H, W, 3) uint8 pixels, in TensorBoard, which has a slider over a tag's steps."""
    writers = [logger.experiment for logger in loggers if hasattr(logger.experiment, "add_image")]
    for step, pixels in pictures if writers else ():  # nothing is drawn for nobody
        for writer in writers:
            writer.add_image(tag, pixels, step, dataformats="HWC")
            writer.flush()  # training is over, and nobody else will


def finish(axes: Axes, title: str, x: str = "") -> None:
    axes.set_title(title, fontsize=8, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    axes.grid(alpha=0.3)


def add_legend(figure: Figure) -> None:
    parts = [axes.get_legend_handles_labels() for axes in figure.axes]
    named = {label: line for lines, labels in parts for line, label in zip(lines, labels, strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, fontsize=7)


def draw_line(axes: Axes, x: Sequence[float], lines: Iterable[np.ndarray], color: str, label: str) -> None:
    """Draws a line, and the band between the two others."""
    line, low, high = lines
    axes.plot(x, line, color=color, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def counts_and_lrs(growth: Growth) -> tuple[list[int], list[float]]:
    return sorted({fit["epochs"] for fit in growth["fits"]}), sorted({fit["lr"] for fit in growth["fits"]})


def draw_fits(axes: Axes, growth: Growth, epochs: int, lrs: Sequence[float]) -> None:
    """Draws points, f or the held-out points, and the fits of some learning rates with the seeds' quartiles."""
    axes.clear()
    axes.plot(*growth["points"].values(), ".", color=GREY, alpha=0.5, markersize=4, label="points")
    if growth["truth"]:
        axes.plot(growth["x"], growth["truth"], "--", color="black", linewidth=1.5, label="f(x)")
    else:
        axes.plot(*growth["held_out"].values(), "x", color="black", alpha=0.6, markersize=4, label="held-out points")
    axes.margins(y=0.08)
    axes.set_ylim(axes.get_ylim())  # it stays, however far off a fit is
    fits = {fit["lr"]: fit for fit in growth["fits"] if fit["epochs"] == epochs}
    for i, lr in enumerate(sorted(fits)):
        if lr in lrs and fits[lr]["fit"]:
            draw_line(axes, growth["x"], [fits[lr][name] for name in ("fit", "low", "high")], f"C{i}", f"lr {lr:g}")
    name, where = error_name(growth["truth"]), "against f" if growth["truth"] else "on held-out points"
    finish(axes, f"epochs: {epochs:,}, MSE {where}: {', '.join(number(fits[lr][name]) for lr in lrs)}")


def fits_figure(growth: Growth, reported: Collection[int], title: str) -> Figure:
    """The fitted curves that were kept of these epoch counts: a row for each count, a column for each learning rate."""
    kept, lrs = counts_and_lrs(growth)
    counts = [count for count in kept if count in reported]
    figure = Figure(figsize=(max(6, 3.2 * len(lrs)), 2.4 * len(counts) + 0.8), dpi=110, layout="constrained")
    grid = figure.subplots(len(counts), len(lrs), sharex=True, squeeze=False)
    for axes, (epochs, lr) in zip(grid.flat, itertools.product(counts, lrs), strict=True):
        draw_fits(axes, growth, epochs, [lr])
    add_legend(figure)
    title = f"f(x) = {title:.70}" if growth["truth"] else title.replace("$", r"\$")
    figure.suptitle(title, fontsize=10)
    return figure


def fit_cards(growth: Growth) -> Iterator[tuple[int, np.ndarray]]:
    """About ten epoch counts, each with (440, 660, 3) uint8 pixels, to be read at the width of a TensorBoard card."""
    figure = Figure(figsize=(3.3, 2.2), dpi=200, layout="constrained")
    axes, (counts, lrs) = figure.subplots(), counts_and_lrs(growth)
    for epochs in counts[:: -max(1, math.ceil(len(counts) / 10))][::-1]:  # of more, TensorBoard shows a random choice
        draw_fits(axes, growth, epochs, lrs)
        if not figure.legends:
            add_legend(figure)
        yield epochs, pixels_of(figure)
        figure.set_layout_engine("none")  # nothing moves after the first picture


def errors_figure(rows: Rows, noise_variance: float, error: str = "true_mse") -> Figure:
    """Training MSE and ``error`` over epochs, from ``spread_over_seeds``; the noise's variance [y²] may be nan."""
    figure = Figure(figsize=(6, 3), dpi=165, layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("train_mse", error), strict=True):
        axes.set(xscale="log", yscale="log")
        if noise_variance > 0 and metric == "train_mse":
            axes.axhline(noise_variance, color=GREY, linestyle=":", label="variance of the noise")
        for i, lr in enumerate(sorted({row["lr"] for row in rows})):
            part = [row for row in rows if row["lr"] == lr]
            lines = np.array([list(row[metric].values()) for row in part], dtype=float).T  # median, q25, q75
            label = f"learning rate {lr:g}" + " (diverged)" * (not np.isfinite(lines[0, -1]))
            draw_line(axes, [row["epochs"] for row in part], lines, f"C{i}", label)
        finish(axes, f"{MSE[metric]} [y²]", "epochs")
    add_legend(figure)
    return figure


def training_figure(runs: Sequence[Rows], test_accs: Sequence[float | None], measured_on: str) -> Figure:
    """Accuracy and loss over epochs, from "epochs", "test_acc" and "measured_on" of the runs' summary.json."""
    figure = Figure(figsize=(5, 3), dpi=220, layout="constrained")
    for axes, (kind, (title, scale)) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
        for i, (name, line) in enumerate(LINES.items()):
            for rows in runs:
                x, y = over_epochs(rows, f"{name}_{kind}", scale)
                axes.plot(x, y, ".-", color=f"C{i}", label=(line or measured_on) if x else "", markersize=4)
        for rows, test_acc in zip(runs, test_accs, strict=True):
            if kind == "acc" and test_acc is not None:
                axes.plot(rows[-1]["epoch"], 100 * test_acc, "*", color="C3", label="test, at the end", markersize=5)
        for epoch, lr in lr_changes(runs[0]):
            axes.axvline(epoch - 0.5, color=GREY, linestyle="--", linewidth=1, label=f"learning rate becomes {lr:g}")
        axes.set_xticks(epoch_ticks(max(rows[-1]["epoch"] for rows in runs)))
        finish(axes, title, "epoch (counted from 0)")
    add_legend(figure)
    figure.suptitle(f"Test accuracy {spread(test_accs, 100, 2)} % at the end (seeds: {len(runs)})", fontsize=10)
    return figure


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """(C, C) fractions of each true class, a row each; a column is a predicted label; shown in percent, if few."""
    figure = Figure(figsize=(4, 2.9), dpi=240, layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if len(classes) <= 30:  # of more, texts would overlap
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        for (row, column), fraction in np.ndenumerate(matrix):
            if fraction > 0:  # neither none, nor nan, of a class without images
                color = "white" if fraction > 0.5 else "black"
                axes.text(column, row, f"{100 * fraction:.0f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("predicted label", fontsize=8)
    axes.set_ylabel("true label", fontsize=8)
    axes.set_title("confusion matrix: percent of each true label", fontsize=8)
    return figure


def pictures_figure(pictures: Sequence[np.ndarray], titles: Sequence[str], title: str = "") -> Figure:
    """(H, W, 3) pictures, floats from 0 to 1 or uint8, in a grid, each under its title."""
    columns = min(len(pictures), 5)
    rows = math.ceil(len(pictures) / columns)
    height = 1.25 + 0.15 * titles[0].count("\n")
    figure = Figure(figsize=(1.1 * columns, height * rows + 0.4), dpi=220, layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, text in zip(grid.flat, pictures, titles, strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(text.replace("$", r"\$"), fontsize=8)
    return figure
