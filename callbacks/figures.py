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
from callbacks.classifier_answers import Rows
from callbacks.run_page import tensorboard_writers

BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#d95f02", "#1b9e77", "#7a7a7a"
COLOURS = ("#1f6fb4", "#d95f02", "#1b9e77", "#7b4ab5", "#b5a000", "#c2185b", "#5d4037", "#000000")


class PlainNumbers(LogFormatter):
    """20 instead of 2 x 10^1 on a logarithmic axis, with digits enough to tell near ticks apart."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.4g}" if super().__call__(x, pos) else ""


def publish(figure: Figure, name: str, run_dir: Path, loggers: Iterable[Any]) -> None:
    """Writes ``name``.png into ``run_dir`` and shows the same picture in TensorBoard."""
    pixels = pixels_of(figure)
    write_atomically(run_dir / f"{name}.png", lambda file: Image.fromarray(pixels).save(file, "png"))
    for writer in tensorboard_writers(loggers):
        writer.add_image(name, pixels, dataformats="HWC")
        writer.flush()  # training is over, and nobody else will


def pixels_of(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8: the figure as drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def training_figure(runs: Sequence[Rows], test_accs: Sequence[float | None], measured_on: str) -> Figure:
    """Accuracy and loss per epoch for train and test, the epochs at which the learning rate changed marked.

    Args:
        runs: the epochs' rows of each run, as in summary.json; lines are means over the runs, bands their deviation.
        test_accs: final test accuracy of each run.
        measured_on: what the runs validated on, "test" or "held-out".
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    length = min(map(len, runs))  # seeds that a time limit ended have more epochs or fewer
    rows = runs[0][:length]
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
                values = np.array([[run[i].get(key) for i in range(length)] for run in runs], dtype=float)
                mean, deviation = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else 0
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


def pictures_figure(
    pictures: Sequence[np.ndarray], titles: Sequence[str], cell: tuple[float, float], columns: int = 5
) -> Figure:
    """(H, W, 3) pictures side by side, each under its title; ``cell`` is the width and height of one, in inches."""
    columns = min(len(pictures), columns)
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(cell[0] * columns, cell[1] * rows + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, title in zip(grid.flat, pictures, titles, strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=8)
    return figure


def contact_sheet(pictures: Sequence[np.ndarray], answers: Sequence[Mapping[str, Any]]) -> Figure:
    """Each picture under its file's name and best classes; at most the first 100."""
    titles = []
    for answer in answers[:100]:
        name = Path(answer["file"]).name
        lines = [name if len(name) <= 24 else "..." + name[-21:]]
        lines += [f"{c} {p:.0%}" for c, p in zip(answer["classes"], answer["probabilities"], strict=True)]
        titles.append("\n".join(lines).replace("$", r"\$"))
    return pictures_figure(pictures[:100], titles, (2.4, 2.9))


def confusion_figure(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """(C, C) counts, a row for each true class and a column for each answer, as percentages of the row."""
    figure = Figure(figsize=(7, 6.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="the network's answer", ylabel="what it is", title="of the test images of each class, percent")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def mistakes_figure(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """(H, W, 3) pictures from 0 to 1, each under what was answered and what it is."""
    figure = pictures_figure(pictures, titles, (1.9, 2.3))
    figure.suptitle("the mistakes that the network is surest of")
    return figure


def filters_figure(filters: np.ndarray) -> Figure:
    """(N, H, W, 3) weights of the first convolution, zero grey, all on one scale."""
    scaled = 0.5 + filters / (2 * np.abs(filters).max() or 1)
    figure = pictures_figure(list(scaled), [""] * len(scaled), (1, 1), columns=8)
    figure.suptitle("filters of the first layer", fontsize=10)
    return figure


def quartiles_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Training and true error against epochs from a summary's ``over_seeds``: medians, and bands of the quartiles."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, name, title in zip(
        figure.subplots(1, 2),
        ("train_mse", "true_mse"),
        ("training error, on the noisy points", "true error"),
        strict=True,
    ):
        for i, lr in enumerate(dict.fromkeys(row["lr"] for row in rows)):
            part = [row for row in rows if row["lr"] == lr and row[name]["median"] is not None]
            x, colour = [row["epochs"] for row in part], COLOURS[i % 7]
            axes.plot(x, [row[name]["median"] for row in part], "o-", markersize=3, color=colour, label=f"rate {lr:g}")
            edges = [[np.nan if row[name][q] is None else row[name][q] for row in part] for q in ("q25", "q75")]
            axes.fill_between(x, *edges, color=colour, alpha=0.2, linewidth=0)
        if any(row[name]["median"] for row in rows):  # not if all diverged: an empty axis has no logarithms
            axes.set(xscale="log", yscale="log")
        axes.set(xlabel="epochs", ylabel="mean squared error [y²]", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def drop_figure(with_drop: Sequence[Rows], without: Sequence[Rows], measured_on: str) -> Figure:
    """Accuracy per epoch of runs with the fall of the learning rate, and of the same runs without it.

    ``measured_on`` "test" or "held-out" images.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for runs, colour, label in ((without, ORANGE, "without the fall"), (with_drop, BLUE, "with the fall")):
        for i, rows in enumerate(runs):
            line = ([row["epoch"] for row in rows], [row["val_acc"] for row in rows])
            axes.plot(*line, "o-", color=colour, markersize=4, alpha=0.8, label=label if i == 0 else None)
    axes.set(xlabel="epoch, counted from 0", ylabel=f"{measured_on} accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def rates_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """True error against the learning rate, a line for each of up to six numbers of epochs.

    Args:
        rows: as in summary.json's "over_seeds": medians over the seeds; one that diverged is left out.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    counts, shown = sorted({row["epochs"] for row in rows}), []
    for count, colour in zip(counts[:: -(-len(counts) // 6)], COLOURS, strict=False):
        known = [(row["lr"], row["true_mse"]["median"]) for row in rows if row["epochs"] == count]
        known = sorted((lr, error) for lr, error in known if error is not None)
        axes.plot(*zip(*known, strict=True) if known else ([], []), "o-", color=colour, label=f"{count:,} epochs")
        shown += [error for _, error in known]
    axes.set(xlabel="learning rate", ylabel="true error, median over the seeds [y²]")
    if any(shown):
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_formatter(PlainNumbers())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def gap_figure(parts: Mapping[str, float]) -> Figure:
    """From the running training accuracy to the test accuracy, step by step; ``parts`` as gap_sentences' of one run."""
    labels = {
        "running": "running, over\nthe last epoch",
        "batch_norm": "its end's weights,\ntrain mode",
        "augmented": "eval mode",
        "probe": "not augmented",
        "test": "test images",
    }
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    shown, values = [labels[name] for name in parts], [100 * value for value in parts.values()]
    # Points, not bars: the axis does not begin at zero, and the eye takes bars by their lengths.
    axes.plot(shown, values, color=BLUE, alpha=0.7)
    axes.scatter(shown, values, s=80, color=[BLUE] * (len(shown) - 1) + [ORANGE], zorder=2)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.1f}", (place, value), (0, 10), textcoords="offset points", ha="center")
    margin = max(1.0, max(values) - min(values))
    axes.set(ylabel="accuracy [%]", ylim=(max(0, min(values) - margin), max(values) + margin))
    axes.set_xlim(-0.4, len(shown) - 0.6)
    axes.grid(alpha=0.3, axis="y")
    return figure
