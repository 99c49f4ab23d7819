"""What a curve fit shows: numbers, verdicts, sentences. T epoch counts, L learning rates, S seeds."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from analysis.runs import Row
from analysis.statistics import median_ci, medians, number, quartiles

METRICS = {"train_mse": math.inf, "true_mse": math.inf, "true_max_abs_error": math.inf, "r2": -math.inf}  # the worst
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Growth(TypedDict):
    """The content of curves.json. A fit has "lr", "epochs", the median "true_mse" over the seeds, the first seed's
    curve "fit", empty where it diverged, and the quartiles "low" and "high" of the seeds' curves.
    """

    x: list[float]
    truth: list[float]  # f(x)
    points: dict[str, list[float]]  # "x" and "y" of the first seed's training points
    fits: list[dict[str, Any]]


def typeset(function: str) -> str:
    """A function of x as in a book: "x² + 2·sin(x)" for "x**2 + 2*sin(x)"."""
    powers = re.sub(r"\s*\*\*\s*(\d+)(?![\w.]|\s*\*\*)", lambda power: power[1].translate(SUPERSCRIPT), function)
    return powers.replace("**", "^").replace("*", "·").replace("-", "−")  # noqa: RUF001


def spread_over_seeds(lrs: Sequence[float], epochs: np.ndarray, values: Mapping[str, np.ndarray]) -> list[Row]:
    """{"lr", "epochs", metric: ``quartiles``} for each rate, then count; ``values`` (T, L, S) may not be finite."""
    return [
        {"lr": lr, "epochs": int(count)} | {m: quartiles(values[m][t, i], worst) for m, worst in METRICS.items()}
        for i, lr in enumerate(lrs)
        for t, count in enumerate(epochs)
    ]


def error_of(row: Row) -> float:
    """The median MSE against f in a row of ``spread_over_seeds``; infinity for what diverged, null in JSON."""
    median = row["true_mse"]["median"]
    return math.inf if median is None else float(median)


def more_training(epochs: np.ndarray, true_mse: np.ndarray) -> dict[str, Any]:
    """Compares the error (T, S) at the last epoch count with that at the best, for one learning rate.

    For each seed the *other* seeds choose the best epoch count: to pick the minimum of a noisy curve would by itself
    look like harm. Gives the ratio's median over the seeds with its confidence interval, and a verdict: "hurts",
    "helps" (lowest at the end), "no evidence", "one seed", or "diverged", without a ratio.
    """
    S, best, last = true_mse.shape[1], int(epochs[medians(true_mse).argmin()]), int(epochs[-1])
    content: dict[str, Any] = {"best_epochs": best, "last_epochs": last}
    diverged = ~np.isfinite(true_mse).all(0)
    if diverged.any():
        return content | {"verdict": "diverged", "diverged": int(diverged.sum())}
    others = [np.delete(true_mse, s, axis=1) for s in range(S)] if S > 1 else [true_mse]
    chosen = [medians(error).argmin() for error in others]
    ratios = true_mse[-1] / np.maximum(true_mse[chosen, np.arange(S)], 1e-30)  # an error may be 0
    low, high, coverage = median_ci(ratios)
    content |= {"ratio": float(np.median(ratios)), "low": low, "high": high, "coverage": coverage}
    if best == last:
        return content | {"verdict": "helps"}
    if S == 1:
        return content | {"verdict": "one seed"}
    return content | {"verdict": "hurts" if low > 1 and coverage >= 0.95 else "no evidence"}


def early_stopping(epochs: np.ndarray, true_mse: np.ndarray, held_out_mse: np.ndarray) -> dict[str, Any]:
    """The best epoch count by the errors' median, and by a held-out noisy sample, all that one has when f is unknown.

    Both arrays are (T, S). Each seed has its own sample; given are the medians of the chosen counts and errors there.
    """
    errors = medians(true_mse)
    chosen = np.where(np.isfinite(held_out_mse), held_out_mse, math.inf).argmin(0)
    error_there = np.take_along_axis(true_mse, chosen[None], axis=0)
    return {
        "best_epochs": int(epochs[errors.argmin()]),
        "best_true_mse": float(errors.min()),
        "held_out_epochs": int(np.quantile(epochs[chosen], 0.5, method="nearest")),
        "held_out_true_mse": float(medians(error_there)[0]),
    }


def more_training_text(part: Row) -> str:
    """A sentence on the content of ``more_training`` and its learning rate, "lr"."""
    if part["verdict"] == "diverged":
        return "Learning rate {lr:g}: diverged ({diverged} of the seeds).".format_map(part)
    text = "Learning rate {lr:g}: the MSE against the noise-free f is lowest at {best_epochs:,} epochs"
    if part["verdict"] == "helps":
        return f"{text}, the most that were measured.".format_map(part)
    evidence = "one seed" if part["verdict"] == "one seed" else "{coverage:.0%} CI {low:.2f} to {high:.2f}"
    return f"{text}; at {{last_epochs:,}} it is {{ratio:.2f}} times as large ({evidence}).".format_map(part)


def early_stopping_text(choice: Row) -> str:
    """A sentence on the content of ``early_stopping`` and its learning rate, "lr"."""
    best, there = number(choice["best_true_mse"]), number(choice["held_out_true_mse"])
    if best == "diverged":
        return f"Learning rate {choice['lr']:g}: diverged."
    text = "Learning rate {lr:g}: the MSE against the noise-free f is lowest at {best_epochs:,} epochs"
    return f"{text} ({best}); a validation sample would stop at {{held_out_epochs:,}} ({there}).".format_map(choice)


def fit_text(summary: Row) -> str:
    """A curve fit's results for the terminal, from the content of summary.json: a table, a sentence a learning rate."""
    columns = "{:>8} {:>9} {:>10} {:>14} {:>10} {:>9}" + "   {}" * (summary["settings"]["num_seeds"] > 1)
    titles = ("lr", "epochs", "train mse", "mse against f", "max error", "r2", "quartiles of mse against f")
    lines = [columns.format(*titles)]
    for row in summary["over_seeds"]:
        missing = "diverged" if math.isinf(error_of(row)) else "-"  # a constant function has no R²
        errors = (number(row[name]["median"], missing, 4) for name in METRICS)
        spread = f"{number(row['true_mse']['q25'])} to {number(row['true_mse']['q75'])}"
        lines.append(columns.format(f"{row['lr']:g}", f"{row['epochs']:,}", *errors, spread))
    networks = len({(result["lr"], result["seed"]) for result in summary["results"]})
    lines.append(f"Networks: {networks}, trained in {summary['seconds']['train']:.1f} s")
    if summary["not_measured"]:
        lines.append(f"Not measured: {', '.join(f'{epochs:,}' for epochs in summary['not_measured'])} epochs")
    if "auto" in summary:
        lines += map(early_stopping_text, summary["auto"])
    elif len(summary["results"]) > 1:
        lines += map(more_training_text, summary["more_training"])
    return "\n".join(lines)
