"""The figures of the classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.classifier_findings import Rows, lr_changes
from analysis.drawing import BLUE, GREEN, GREY, ORANGE, images_grid


class Prediction(TypedDict):
    """The best classes of a picture file and their probabilities, best first."""

    file: str
    classes: Sequence[str]
    probabilities: Sequence[float]


def training_figure(runs: Sequence[Rows], test_accs: Sequence[float | None], measured_on: str) -> Figure:
    """Accuracy and loss over epochs, with the epochs at which the learning rate changed.

    Args:
        runs: the epochs of each run, as in summary.json; lines are means over the runs, bands their standard deviation.
        test_accs: final test accuracy of each run, fractions of 1.
        measured_on: what the runs validated on, "test" or "validation".
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    length = min(map(len, runs))  # runs that a time limit ended have more epochs or fewer
    runs = [rows[:length] for rows in runs]
    names = (("acc", "accuracy"), ("loss", "cross-entropy loss [nats]"))
    for axes, (name, label) in zip(figure.subplots(1, 2), names, strict=True):
        _draw_mean(axes, runs, f"train_{name}", "train (epoch average)", BLUE)
        _draw_mean(axes, runs, f"probe_{name}", "training subset, eval mode", GREEN)
        _draw_mean(axes, runs, f"val_{name}", measured_on, ORANGE)
        _draw_lr_changes(axes, runs[0])
        axes.set(ylabel=label, xlim=(runs[0][0]["epoch"] - 0.5, runs[0][-1]["epoch"] + 0.5))
        axes.set_xlabel("epoch (counted from 0)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    known = [acc for acc in test_accs if acc is not None]
    title = "ResNet-20" if not known else f"ResNet-20: test accuracy {100 * np.mean(known):.2f} % at the end"
    if len(known) > 1:
        title += f", standard deviation {100 * np.std(known, ddof=1):.2f} pp over {len(known)} seeds"
    figure.suptitle(title)
    return figure


def _draw_mean(axes: Axes, runs: Sequence[Rows], name: str, label: str, color: str) -> None:
    values = np.array([[row.get(name) for row in rows] for rows in runs], dtype=float)  # (runs, epochs), nan for None
    if np.isnan(values).all():
        return
    mean, deviation = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else 0
    epochs = [row["epoch"] for row in runs[0]]
    axes.plot(epochs, mean, "o-", color=color, label=label, markersize=4)
    axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)


def _draw_lr_changes(axes: Axes, rows: Rows) -> None:
    for epoch, lr in lr_changes(rows):
        axes.axvline(epoch - 0.5, color=GREY, linestyle="--", linewidth=1, label=f"learning rate becomes {lr:g}")


def contact_sheet(pictures: Sequence[np.ndarray], predictions: Sequence[Prediction]) -> Figure:
    """Each (H, W, 3) picture under its file's name and best classes; at most the first 100."""
    titles = []
    for prediction in predictions[:100]:
        name = Path(prediction["file"]).name
        lines = [name if len(name) <= 24 else "..." + name[-21:]]
        classes = zip(prediction["classes"], prediction["probabilities"], strict=True)
        lines += [f"{label} {probability:.0%}" for label, probability in classes]
        titles.append("\n".join(lines).replace("$", r"\$"))
    return images_grid(pictures[:100], titles, (2.4, 2.9))


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """(C, C) fractions of each true class, a row for each, a column for each predicted label; shown in percent."""
    figure = Figure(figsize=(7, 6.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*matrix.shape):
        fraction = matrix[row, column]
        if fraction > 0:  # neither none, nor nan, of a class without images
            color = "white" if fraction > 0.5 else "black"
            axes.text(column, row, f"{100 * fraction:.0f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted label", ylabel="true label", title="confusion matrix: percent of each true label")
    return figure


def confident_errors_figure(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """(H, W, 3) pictures from 0 to 1, each under its predicted and its true label."""
    figure = images_grid(pictures, titles, (1.9, 2.3))
    figure.suptitle("most confident errors")
    return figure


def filters_figure(filters: np.ndarray) -> Figure:
    """(N, H, W, 3) weights of the first convolution, zero grey, all on one scale."""
    scaled = 0.5 + filters / (2 * np.abs(filters).max() or 1)
    figure = images_grid(list(scaled), [""] * len(scaled), (1, 1), columns=8)
    figure.suptitle("filters of the first layer", fontsize=10)
    return figure
