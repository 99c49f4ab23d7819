"""What the figures share: colors, axes with readable numbers, pictures in a grid, PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from analysis.files import write_atomically

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


class PlainNumbers(LogFormatterMathtext):
    """1,000 and 0.01 on a logarithmic axis; or 10^n for all of its ticks, where some would be long."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        low, high = sorted(self.axis.get_view_interval())  # type: ignore[union-attr]
        if low < 0.5e-4 or high > 4e5:
            return super().__call__(x, pos)
        return f"{x:,.0f}" if x >= 1000 else f"{x:.4g}"


def use_log_scale(axes: Axes) -> None:
    """Makes both axes logarithmic, with few ticks, all of them labeled, for what is drawn already."""
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        decades, between = ([x for x in np.outer(subs, powers).flat if low <= x <= high] for subs in ((1,), (1, 2, 5)))
        if len(decades) >= 2 and high > 50 * low:
            axis.set_major_locator(LogLocator())
        else:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if len(between) >= 3 else MaxNLocator(4))
        axis.set_major_formatter(PlainNumbers(labelOnlyBase=False))
        axis.set_minor_formatter(NullFormatter())


def pixels_of(figure: Figure) -> np.ndarray:
    """(H, W, 3) uint8: the figure as drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Writes (H, W, 3) uint8 ``pixels`` to ``path``, whole or not at all."""
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, "png"))


def images_grid(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    cell: tuple[float, float],
    title: str = "",
    columns: int = 5,
    dpi: int = 220,
) -> Figure:
    """(H, W, 3) images side by side, each under its title; ``cell`` is the width and height of one, in inches."""
    columns = min(len(images), columns)
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(cell[0] * columns, cell[1] * rows + 0.4), dpi=dpi, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, text in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(text, fontsize=8)
    return figure
