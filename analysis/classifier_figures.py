"""The figures of the classifier, small with many pixels: on a card of TensorBoard's their letters can be read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.classifier_findings import Rows, lr_changes
from analysis.drawing import COLOR_OF, GREY, images_grid


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
    figure = Figure(figsize=(5, 3), dpi=220, layout="constrained")
    length = min(map(len, runs))  # runs that a time limit ended have more epochs or fewer
    runs = [rows[:length] for rows in runs]
    kinds = (("acc", "accuracy [%]", 100), ("loss", "cross-entropy loss [nats]", 1))
    for axes, (kind, label, scale) in zip(figure.subplots(1, 2), kinds, strict=True):
        _draw_mean(axes, runs, f"train_{kind}", "train (epoch average)", scale)
        _draw_mean(axes, runs, f"probe_{kind}", "training subset, eval mode", scale)
        _draw_mean(axes, runs, f"val_{kind}", measured_on, scale)
        for epoch, lr in lr_changes(runs[0]):
            axes.axvline(epoch - 0.5, color=GREY, linestyle="--", linewidth=1, label=f"learning rate becomes {lr:g}")
        axes.set(xlabel="epoch (counted from 0)", xlim=(runs[0][0]["epoch"] - 0.5, runs[0][-1]["epoch"] + 0.5))
        axes.set_title(label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    known = [100 * acc for acc in test_accs if acc is not None]
    deviation = f" ± {np.std(known, ddof=1):.2f}" if len(known) > 1 else ""
    title = "ResNet-20" + (f": test accuracy {np.mean(known):.2f}{deviation} % at the end" if known else "")
    if len(runs) > 1:
        title += f"\nmeans of {len(runs)} seeds ± one standard deviation (bands)"
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_mean(axes: Axes, runs: Sequence[Rows], name: str, label: str, scale: int) -> None:
    # (runs, epochs), nan for None
    values = scale * np.array([[row.get(name) for row in rows] for rows in runs], dtype=float)
    if np.isnan(values).all():
        return
    mean, deviation = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else 0
    epochs, color = [row["epoch"] for row in runs[0]], COLOR_OF[label]
    axes.plot(epochs, mean, "o-", color=color, label=label, markersize=4)
    axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)


def contact_sheet(pictures: Sequence[np.ndarray], predictions: Sequence[Prediction]) -> Figure:
    """Each (H, W, 3) picture under its file's name and best classes; at most the first 100."""
    titles = []
    for prediction in predictions[:100]:
        name = Path(prediction["file"]).name
        lines = [name if len(name) <= 24 else "..." + name[-21:]]
        classes = zip(prediction["classes"], prediction["probabilities"], strict=True)
        lines += [f"{label} {probability:.0%}" for label, probability in classes]
        titles.append("\n".join(lines).replace("$", r"\$"))
    return images_grid(pictures[:100], titles, (2.4, 2.9), dpi=110)


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """(C, C) fractions of each true class, a row for each, a column for each predicted label; shown in percent."""
    figure = Figure(figsize=(4, 2.9), dpi=240, layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*matrix.shape):
        fraction = matrix[row, column]
        if fraction > 0:  # neither none, nor nan, of a class without images
            color = "white" if fraction > 0.5 else "black"
            axes.text(column, row, f"{100 * fraction:.0f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.tick_params(length=0, pad=2)
    axes.set_xlabel("predicted label", fontsize=8)
    axes.set_ylabel("true label", fontsize=8)
    axes.set_title("confusion matrix: percent of each true label", fontsize=8)
    return figure


def confident_errors_figure(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """(H, W, 3) pictures from 0 to 1, each under its predicted and its true label."""
    return images_grid(pictures, titles, (1.05, 1.25), "most confident errors")


def filters_figure(filters: np.ndarray) -> Figure:
    """(N, H, W, 3) weights of the first convolution, zero grey, all on one scale."""
    scaled = 0.5 + filters / (2 * np.abs(filters).max() or 1)
    return images_grid(list(scaled), [""] * len(scaled), (0.55, 0.55), "filters of the first layer", columns=8)
