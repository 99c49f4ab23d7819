"""The animation of a curve fit: its fitted curves and their errors, growing over the epochs."""

import io
import math
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from analysis.curve_figures import draw_problem
from analysis.drawing import COLORS, ORANGE, pixels_of, use_log_scale

DURATION, LAST_DURATION = 140, 4000  # of a frame, in milliseconds


def fit_animation(growth: Mapping[str, Any]) -> bytes:
    """A GIF of 720 x 400 pixels that repeats for ever: the first seed's fitted curves, and the median errors.

    ``growth`` is the content of a curve fit's curves.json.
    """
    frames = [Image.fromarray(pixels) for pixels in _frames(growth)]
    # One palette for all: what is the same as in the frame before is equal to the bit, and takes no space.
    palette = frames[-1].quantize(64, Image.Quantize.MAXCOVERAGE)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [DURATION] * len(rest) + [LAST_DURATION]
    gif = io.BytesIO()
    first.save(gif, "gif", save_all=True, append_images=rest, duration=durations, loop=0)
    return gif.getvalue()


def _frames(growth: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """(400, 720, 3) uint8 for each epoch count, of at most ten a decade: a run of --epochs auto keeps more."""
    fits = {(fit["lr"], fit["epochs"]): fit for fit in growth["fits"]}
    lrs = list(dict.fromkeys(lr for lr, _ in fits))
    counts = list({round(10 * math.log10(epochs)): epochs for _, epochs in sorted(fits, key=lambda k: k[1])}.values())
    figure = Figure(figsize=(7.2, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_problem(left, growth["x"], growth["truth"], (growth["points"]["x"], growth["points"]["y"]))
    left.set(xlabel="x", ylabel="y")
    lines = []
    for lr, color in zip(lrs, cycle(color for color in COLORS if color != ORANGE), strict=False):
        errors = [fits[lr, epochs]["true_mse"] or math.nan for epochs in counts]  # None where it diverged
        (curve,) = left.plot([], [], color=color, linewidth=2.2, label=f"fit, learning rate {lr:g}")
        (line,) = right.plot(counts, errors, "-o", color=color, markevery=[-1])
        lines.append((lr, errors, curve, line))
    if positive := [fit["true_mse"] for fit in growth["fits"] if fit["true_mse"]]:
        lowest, constant = min(positive), np.var(growth["points"]["y"])
        # Far above the error of a constant there is nothing to see but how poor the fit is.
        right.set_ylim(0.7 * lowest, min(1.4 * max(positive), 3 * max(constant, lowest)))
        use_log_scale(right)
    right.set_xlabel("epochs")
    right.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    for i, epochs in enumerate(counts):
        left.set_title(f"{epochs:,} epoch{'s' if epochs > 1 else ''}", loc="left", fontsize=14)
        for lr, errors, curve, line in lines:
            y = fits[lr, epochs]["fit"]  # empty where it diverged
            curve.set_data(growth["x"][: len(y)], y)
            line.set_data(counts[: i + 1], errors[: i + 1])
        error = fits[lrs[0], epochs]["true_mse"]
        shown = "" if len(lrs) > 1 else ": diverged" if error is None else f": {error:.3g}"
        right.set_title(f"MSE against f{shown}", loc="left")
        yield pixels_of(figure)
        figure.set_layout_engine("none")  # nothing moves after the first frame
