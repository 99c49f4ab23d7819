"""What a curve fit shows: numbers, verdicts, sentences. T epoch counts, L learning rates, S seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from analysis.runs import Row
from analysis.statistics import median_ci, medians, number, quartiles

METRICS = dict.fromkeys(("train_mse", "true_mse", "true_max_abs_error", "val_mse"), math.inf)  # the worst
METRICS["r2"] = -math.inf
MSE = {"train_mse": "training MSE", "true_mse": "MSE against the noise-free f", "val_mse": "MSE on held-out points"}


class Growth(TypedDict):
    """The content of curves.json. A fit has "lr", "epochs", the seeds' median of ``error_name``, the first seed's curve
    "fit", empty where it diverged, and the quartiles "low" and "high" of the seeds' curves that did not diverge.
    """

    x: list[float]
    truth: list[float]  # f(x); empty where f is unknown
    points: dict[str, list[float]]  # "x" and "y" of the first seed's training points
    held_out: dict[str, list[float]]  # and of its validation sample; shown where f is unknown
    fits: list[dict[str, Any]]


def error_name(truth: str | Sequence[float] | None) -> str:
    """The error by which fits are judged: against f or, where it is unknown, on held-out points."""
    return "true_mse" if truth else "val_mse"


def spread_over_seeds(lrs: Sequence[float], epochs: np.ndarray, values: Mapping[str, np.ndarray]) -> list[Row]:
    """{"lr", "epochs", metric: ``quartiles``} for each rate, then count; ``values`` (T, L, S) may not be finite."""
    return [
        {"lr": lr, "epochs": int(count)} | {m: quartiles(values[m][t, i], worst) for m, worst in METRICS.items()}
        for i, lr in enumerate(lrs)
        for t, count in enumerate(epochs)
    ]


def error_of(row: Row, error: str) -> float:
    """The median of an error in a row of ``spread_over_seeds``; infinity for what diverged, null in JSON."""
    median = row[error]["median"]
    return math.inf if median is None else median


def more_training(epochs: np.ndarray, error: np.ndarray) -> Row:
    """Compares the error (T, S) at the last epoch count with that at the best, for one learning rate.

    For each seed the *other* seeds choose the best epoch count: to pick the minimum of a noisy curve would by itself
    look like harm. Gives the ratio's median over the seeds with its confidence interval, and a verdict: "hurts",
    "helps" (lowest at the end), "no evidence", "one seed", or "diverged", without a ratio.
    """
    S, best, last = error.shape[1], int(epochs[medians(error).argmin()]), int(epochs[-1])
    content: dict[str, Any] = {"best_epochs": best, "last_epochs": last}
    diverged = ~np.isfinite(error).all(0)
    if diverged.any():
        return content | {"verdict": "diverged", "diverged": int(diverged.sum())}
    others = [np.delete(error, s, axis=1) for s in range(S)] if S > 1 else [error]
    chosen = [medians(each).argmin() for each in others]
    ratios = error[-1] / np.maximum(error[chosen, np.arange(S)], 1e-30)  # an error may be 0
    low, high, coverage = median_ci(ratios)
    content |= {"ratio": float(np.median(ratios)), "low": low, "high": high, "coverage": coverage}
    if best == last:
        return content | {"verdict": "helps"}
    if S == 1:
        return content | {"verdict": "one seed"}
    return content | {"verdict": "hurts" if low > 1 and coverage >= 0.95 else "no evidence"}


def early_stopping(epochs: np.ndarray, errors: np.ndarray, val_mse: np.ndarray, error: str) -> Row:
    """The best epoch count by the errors' median, and by a held-out noisy sample, all that one has when f is unknown.

    Both arrays are (T, S). Each seed has its own sample; given are the medians of the chosen counts and errors there.
    """
    of_seeds = medians(errors)
    chosen = np.where(np.isfinite(val_mse), val_mse, math.inf).argmin(0)
    error_there = np.take_along_axis(errors, chosen[None], axis=0)
    return {
        "best_epochs": int(epochs[of_seeds.argmin()]),
        f"best_{error}": float(of_seeds.min()),
        "held_out_epochs": int(np.quantile(epochs[chosen], 0.5, method="nearest")),
        f"held_out_{error}": float(medians(error_there)[0]),
    }


def more_training_text(part: Row, error: str) -> str:
    """A sentence on the content of ``more_training`` for this error, and its learning rate, "lr"."""
    if part["verdict"] == "diverged":
        return "Learning rate {lr:g}: diverged ({diverged} of the seeds).".format_map(part)
    text = f"Learning rate {{lr:g}}: the {MSE[error]} is lowest at {{best_epochs:,}} epochs"
    if part["verdict"] == "helps":
        return f"{text}, the most that were measured.".format_map(part)
    evidence = "one seed" if part["verdict"] == "one seed" else "{coverage:.0%} CI {low:.2f} to {high:.2f}"
    return f"{text}; at {{last_epochs:,}} it is {{ratio:.2f}} times as large ({evidence}).".format_map(part)


def early_stopping_text(choice: Row, error: str) -> str:
    """A sentence on the content of ``early_stopping`` and its learning rate, "lr"."""
    best = number(choice[f"best_{error}"])
    if best == "diverged":
        return f"Learning rate {choice['lr']:g}: diverged."
    text = f"Learning rate {{lr:g}}: the {MSE[error]} is lowest at {{best_epochs:,}} epochs ({best})"
    if error == "true_mse":
        text += f"; a validation sample would stop at {{held_out_epochs:,}} ({number(choice['held_out_true_mse'])})"
    return f"{text}.".format_map(choice)


def fit_text(summary: Row) -> str:
    """A curve fit's results for the terminal, from the content of summary.json: a table, a sentence a learning rate."""
    error, has_f = error_name(summary["function"]), bool(summary["function"])
    shown = {"train_mse": "train mse", error: "mse against f" if has_f else "mse held out"}
    shown |= {"true_max_abs_error": "max error", "r2": "r2"} if has_f else {}
    columns = "{:>8} {:>9} {:>10} {:>14}" + " {:>10} {:>9}" * has_f + "   {}" * (summary["settings"]["num_seeds"] > 1)
    lines = [columns.format("lr", "epochs", *shown.values(), f"quartiles of {shown[error]}")]
    for row in summary["over_seeds"]:
        missing = "diverged" if math.isinf(error_of(row, error)) else "-"  # a constant function has no R²
        errors = (number(row[name]["median"], missing, 4) for name in shown)
        spread = f"{number(row[error]['q25'])} to {number(row[error]['q75'])}"
        lines.append(columns.format(f"{row['lr']:g}", f"{row['epochs']:,}", *errors, spread))
    networks = len({(result["lr"], result["seed"]) for result in summary["results"]})
    lines.append(f"Networks: {networks}, trained in {summary['seconds']['train']:.1f} s")
    if summary["not_measured"]:
        lines.append(f"Not measured: {', '.join(f'{epochs:,}' for epochs in summary['not_measured'])} epochs")
    if "auto" in summary:
        lines += (early_stopping_text(choice, error) for choice in summary["auto"])
        best = min(summary["auto"], key=lambda choice: choice[f"best_{error}"])
        text = "A checkpoint is of the last epoch. For one of the best fit: --lr {lr:g} --epochs {best_epochs}"
        lines.append(text.format_map(best))
    elif len(summary["results"]) > 1:
        lines += (more_training_text(part, error) for part in summary["more_training"])
    return "\n".join(lines)
