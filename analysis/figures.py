"""All figures by Matplotlib: fitted curves and their animation, training curves, confusion matrix, pictures."""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image

from analysis.curves import Growth
from analysis.files import write_atomically
from analysis.runs import Rows, lr_changes
from analysis.statistics import number

BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#d95f02", "#1b9e77", "#7a7a7a"
COLORS = (BLUE, ORANGE, GREEN, "#9467bd", "#b5a000", "#e0457b", "#8c6d5a")  # seen on light and on dark ground
COLOR_OF = {  # the same in all figures
    "train (epoch average)": BLUE,
    "training subset, eval mode": GREEN,
    "test": ORANGE,
    "validation": ORANGE,
    "with the drop": BLUE,
    "without the drop": ORANGE,
}
CARDS = 10  # TensorBoard shows no more of one tag, but a random choice
FRAME, LAST_FRAME = 140, 4000  # milliseconds of the animation


def pixels_of(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8: the figure as drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Writes (H, W, 3) uint8 ``pixels`` to ``path``, whole or not at all."""
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, "png"))


def use_log_scale(axes: Axes) -> None:
    """Makes both axes logarithmic, for what is drawn already; not where none of it is above 0."""
    if np.isfinite(axes.dataLim.minpos).all():
        axes.set(xscale="log", yscale="log")


def finish(axes: Axes, title: str, x: str = "") -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    axes.grid(alpha=0.3)


def add_legend(figure: Figure) -> None:
    """Below all axes; what several of them show is named once."""
    named: dict[str, Artist] = {}
    for axes in figure.axes:
        named |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, fontsize=7)


def draw_line(axes: Axes, x: ArrayLike, line: ArrayLike, low: ArrayLike, high: ArrayLike, **style: Any) -> None:
    """A line, and the band from ``low`` to ``high`` where there is one."""
    axes.plot(x, line, **style)
    if not np.array_equal(low, high, equal_nan=True):
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


# Curve fits


def color_of_lr(rows: Sequence[Mapping[str, Any]]) -> dict[float, str]:
    """{learning rate: color}, the same in all figures of a run."""
    return {lr: COLORS[i % len(COLORS)] for i, lr in enumerate(dict.fromkeys(row["lr"] for row in rows))}


def draw_fits(axes: Axes, growth: Growth, lrs: Iterable[float], epochs: int) -> None:
    """Draws training points, f, and the fits of these learning rates; the bands are the quartiles of the seeds."""
    axes.clear()
    axes.plot(growth["points"]["x"], growth["points"]["y"], ".", color=GREY, alpha=0.5, markersize=4, label="points")
    axes.plot(growth["x"], growth["truth"], "--", color="black", linewidth=1.5, label="f(x)")
    axes.margins(y=0.08)
    axes.set_ylim(axes.get_ylim())  # it stays, however far off a fit is
    shown = [fit for fit in growth["fits"] if fit["epochs"] == epochs and fit["lr"] in lrs]
    for fit in shown:
        if fit["fit"]:
            color, label = color_of_lr(growth["fits"])[fit["lr"]], f"lr {fit['lr']:g}"
            draw_line(axes, growth["x"], fit["fit"], fit["low"], fit["high"], color=color, label=label)
    errors = ", ".join(number(fit["true_mse"]) for fit in shown)
    finish(axes, f"{epochs:,} epoch{'s' * (epochs > 1)}" + f", MSE against f: {errors}" * (len(shown) < 3))


def fits_figure(growth: Growth, reported: Iterable[tuple[float, int]], function: str) -> Figure:
    """The fitted curves of these (learning rate, epochs): a column for each rate, a row for each epoch count.

    Args:
        growth: the content of curves.json; a pair that it lacks is left out.
        function: what f(x) is, for the title.
    """
    kept = {(fit["lr"], fit["epochs"]) for fit in growth["fits"]}.intersection(reported)
    lrs, counts = sorted({lr for lr, _ in kept}), sorted({epochs for _, epochs in kept})
    size = (max(6, 3.2 * len(lrs)), 2.4 * len(counts) + 0.8)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(len(counts), len(lrs), sharex=True, sharey=True, squeeze=False)
    for row, epochs in zip(grid, counts, strict=True):
        for axes, lr in zip(row, lrs, strict=True):
            draw_fits(axes, growth, [lr], epochs)
    add_legend(figure)
    figure.suptitle(f"f(x) = {function if len(function) <= 70 else function[:67] + '...'}", fontsize=10)
    return figure


def growing(figure: Figure, axes: Axes, growth: Growth, counts: Iterable[int]) -> Iterator[int]:
    """Draws the fits of all learning rates after so many epochs, one epoch count after the other."""
    for epochs in counts:
        draw_fits(axes, growth, color_of_lr(growth["fits"]), epochs)
        if not figure.legends:
            add_legend(figure)
        yield epochs
        figure.set_layout_engine("none")  # nothing moves after the first picture


def fit_cards(growth: Growth, reported_epochs: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """How the fitted curves grow: pictures to be read at the width of a card of TensorBoard's.

    Args:
        growth: the content of curves.json.
        reported_epochs: counts to show in any case, where they were kept.

    Yields each epoch count and (440, 660, 3) uint8 pixels.
    """
    kept = np.unique([fit["epochs"] for fit in growth["fits"]])
    shown = np.intersect1d(kept, reported_epochs)
    others = np.linspace(0, len(kept) - 1, max(2, CARDS - len(shown)))  # kept are about ten a decade
    figure = Figure(figsize=(3.3, 2.2), dpi=200, layout="constrained")
    for epochs in growing(figure, figure.subplots(), growth, np.union1d(shown, kept[others.astype(int)]).tolist()):
        yield epochs, pixels_of(figure)


def fit_animation(growth: Growth) -> bytes:
    """A GIF of 720 x 400 pixels that repeats for ever: the fitted curves and their errors over the epochs.

    ``growth`` is the content of a curve fit's curves.json.
    """
    counts = sorted({fit["epochs"] for fit in growth["fits"]})
    figure = Figure(figsize=(7.2, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    lines = []
    for lr, color in color_of_lr(growth["fits"]).items():
        errors = [fit["true_mse"] or math.nan for fit in growth["fits"] if fit["lr"] == lr]  # None where it diverged
        lines.append((errors, *right.plot(counts, errors, color=color)))
    use_log_scale(right)
    finish(right, "MSE against the noise-free f", "epochs")
    frames = []
    for i, _ in enumerate(growing(figure, left, growth, counts), start=1):
        for errors, line in lines:
            line.set_data(counts[:i], errors[:i])
        frames.append(Image.fromarray(pixels_of(figure)))
    # One palette for all: what is the same as in the frame before is equal to the bit, and takes no space.
    palette = frames[-1].quantize(64, Image.Quantize.MAXCOVERAGE)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    gif = io.BytesIO()
    first.save(gif, "gif", save_all=True, append_images=rest, duration=[*[FRAME] * len(rest), LAST_FRAME], loop=0)
    return gif.getvalue()


def errors_figure(rows: Sequence[Mapping[str, Any]], noise_variance: float | None = None) -> Figure:
    """Training MSE and MSE against the noise-free f over epochs, log-log, a color for each learning rate.

    Args:
        rows: as from ``spread_over_seeds``, one learning rate after the other; lines are medians, bands quartiles.
            What is None or not finite, where a network diverged, is left out.
        noise_variance: of the noise on the training points, drawn for reference, in squared units of y.
    """
    figure = Figure(figsize=(6, 3), dpi=165, layout="constrained")
    left, right = figure.subplots(1, 2)
    if noise_variance:
        left.axhline(noise_variance, color=GREY, linestyle=":", label="variance of the noise")
    titles = {"train_mse": "training MSE on the noisy points [y²]", "true_mse": "MSE against the noise-free f [y²]"}
    for axes, (metric, title) in zip((left, right), titles.items(), strict=True):
        for lr, color in color_of_lr(rows).items():
            part = [row for row in rows if row["lr"] == lr]
            values = np.array([[row[metric][q] for q in ("median", "q25", "q75")] for row in part], dtype=float)
            values[~np.isfinite(values)] = np.nan
            label = f"learning rate {lr:g}" + " (diverged)" * bool(np.isnan(values[-1, 0]))
            epochs = [row["epochs"] for row in part]
            draw_line(axes, epochs, *values.T, color=color, label=label, marker="o", markersize=2.5)
        use_log_scale(axes)
        finish(axes, title, "epochs")
    add_legend(figure)
    return figure


# The classifier


def training_figure(runs: Sequence[Rows], test_accs: Sequence[float | None], measured_on: str) -> Figure:
    """Accuracy and loss over epochs, with the epochs at which the learning rate changed.

    Args:
        runs: the epochs of each run, as in summary.json; lines are means over the runs, bands their standard deviation.
        test_accs: final test accuracy of each run, fractions of 1.
        measured_on: what the runs validated on, "test" or "validation".
    """
    figure = Figure(figsize=(5, 3), dpi=220, layout="constrained")
    runs = [rows[: min(map(len, runs))] for rows in runs]  # runs that a time limit ended have more epochs or fewer
    epochs = [row["epoch"] for row in runs[0]]
    names = {"train": "train (epoch average)", "probe": "training subset, eval mode", "val": measured_on}
    kinds = (("acc", "accuracy [%]", 100), ("loss", "cross-entropy loss [nats]", 1))
    for axes, (kind, title, scale) in zip(figure.subplots(1, 2), kinds, strict=True):
        for name, label in names.items():
            # (runs, epochs), nan for what was not measured
            values = scale * np.array([[row.get(f"{name}_{kind}") for row in rows] for rows in runs], dtype=float)
            mean, sd = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else 0
            if not np.isnan(mean).all():
                draw_line(axes, epochs, mean, mean - sd, mean + sd, color=COLOR_OF[label], label=label, marker=".")
        for epoch, lr in lr_changes(runs[0]):
            axes.axvline(epoch - 0.5, color=GREY, linestyle="--", linewidth=1, label=f"learning rate becomes {lr:g}")
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(axes, title, "epoch (counted from 0)")
    add_legend(figure)
    tested = [100 * acc for acc in test_accs if acc is not None]
    deviation = f" ± {np.std(tested, ddof=1):.2f}" if len(tested) > 1 else ""
    title = f"ResNet-20: test accuracy {np.mean(tested):.2f}{deviation} % at the end" if tested else "ResNet-20"
    several = f"\nmeans of {len(runs)} seeds ± one standard deviation" if len(runs) > 1 else ""
    figure.suptitle(title + several, fontsize=10)
    return figure


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """(C, C) fractions of each true class, a row for each, a column for each predicted label; shown in percent."""
    figure = Figure(figsize=(4, 2.9), dpi=240, layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), fraction in np.ndenumerate(matrix):
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


def pictures_figure(
    pictures: Sequence[np.ndarray], titles: Sequence[str] = (), title: str = "", columns: int = 5
) -> Figure:
    """(H, W, 3) pictures, floats from 0 to 1 or uint8, in a grid, each under its title."""
    columns = min(len(pictures), columns)
    rows = math.ceil(len(pictures) / columns)
    height = 1.1 + 0.15 * max((text.count("\n") + 1 for text in titles), default=-3)
    figure = Figure(figsize=(1.1 * columns, height * rows + 0.4), dpi=220, layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if i < len(pictures):
            axes.imshow(pictures[i], interpolation="nearest")
            axes.set_title(titles[i].replace("$", r"\$") if titles else "", fontsize=8)
    return figure
