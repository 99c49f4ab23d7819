"""What a curve fit shows: numbers, verdicts, sentences. T epoch counts, L learning rates, S seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from analysis.statistics import Quartiles, median_ci, medians, number, quartiles, table

METRICS = ("train_mse", "true_mse", "true_max_abs_error", "r2")


class Fit(TypedDict):
    """The fitted curve of the first seed on the grid, empty where it diverged; quartiles and median over the seeds."""

    lr: float
    epochs: int
    true_mse: float | None
    fit: list[float]
    low: list[float]
    high: list[float]


class Growth(TypedDict):
    """The content of curves.json: the grid, f on it, "x" and "y" of the first seed's training points, and all fits."""

    x: list[float]
    truth: list[float]
    points: dict[str, list[float]]
    fits: list[Fit]


def spread_over_seeds(
    lrs: Sequence[float], epochs: np.ndarray, values: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """For each learning rate and epoch count, in this order, {"lr", "epochs", metric: ``Quartiles`` over the seeds}.

    Args:
        lrs: L learning rates.
        epochs: (T,) epoch counts.
        values: (T, L, S) of each of METRICS; not finite where a seed diverged.
    """

    def spread(name: str, t: int, i: int) -> Quartiles:
        return quartiles(values[name][t, i], worst=-math.inf if name == "r2" else math.inf)

    return [
        {"lr": lr, "epochs": int(count), **{name: spread(name, t, i) for name in METRICS}}
        for i, lr in enumerate(lrs)
        for t, count in enumerate(epochs)
    ]


def best_epochs(epochs: np.ndarray, error: np.ndarray) -> int:
    """The measured epoch count at which the median over the seeds of ``error`` (T, S) is lowest."""
    return int(epochs[medians(error).argmin()])


def error_of(row: Mapping[str, Any], metric: str = "true_mse") -> float:
    """The median of ``metric`` in a row of ``spread_over_seeds``; infinity for what diverged, null in JSON."""
    median = row[metric]["median"]
    return math.inf if median is None else median


def lowest_rows(rows: Sequence[Mapping[str, Any]]) -> dict[float, Mapping[str, Any]]:
    """{learning rate: the row of its lowest error}"""
    lrs = dict.fromkeys(row["lr"] for row in rows)
    return {lr: min((row for row in rows if row["lr"] == lr), key=error_of) for lr in lrs}


def more_training(epochs: np.ndarray, true_mse: np.ndarray) -> dict[str, Any]:
    """Compares the error (T, S) at the last epoch count with that at the best, for one learning rate.

    For each seed the best epoch count is the one that the *other* seeds would choose, so that picking the minimum of a
    noisy curve does not by itself look like harm. Gives the ratio's median over the seeds, a confidence interval for
    it, and a verdict: "hurts", "only hurts" (lowest at the first epoch count), "helps" (lowest at the end), "no
    evidence", "one seed", "exact" (an error of 0, to which nothing has a ratio), or "diverged" (at least one seed did).
    What does not apply is left out.
    """
    S, best, last = true_mse.shape[1], best_epochs(epochs, true_mse), int(epochs[-1])
    found = {"best_epochs": best, "last_epochs": last}
    is_finite = np.isfinite(true_mse)
    if not is_finite.all():
        return found | {"verdict": "diverged", "diverged": int((~is_finite).any(0).sum())}
    if (true_mse == 0).any():
        return found | {"verdict": "exact"}
    if S == 1 and best == last:
        return found | {"verdict": "helps"}
    if S == 1:
        return found | {"verdict": "one seed", "ratio": float(true_mse[-1, 0] / true_mse.min())}
    chosen = [medians(np.delete(true_mse, s, axis=1)).argmin() for s in range(S)]
    ratios = true_mse[-1] / true_mse[chosen, np.arange(S)]
    low, high, coverage = median_ci(ratios)
    verdict = "helps" if best == last else "hurts" if low > 1 and coverage >= 0.95 else "no evidence"
    if verdict == "hurts" and best == int(epochs[0]):
        verdict = "only hurts"
    interval = {"low": low, "high": high, "coverage": coverage}
    return found | {"ratio": float(np.median(ratios)), **interval, "verdict": verdict}


def early_stopping(epochs: np.ndarray, true_mse: np.ndarray, held_out_mse: np.ndarray) -> dict[str, Any]:
    """The best epoch count by the error itself, and by a held-out noisy sample, all that one has when f is unknown.

    Both arrays are (T, S). The best epoch count is that of the median over the seeds. A held-out sample chooses for its
    own seed alone; given are the medians of the epoch counts that the seeds choose, and of their errors there. Each
    epoch count comes with its MSE against the noise-free f.
    """
    chosen = np.where(np.isfinite(held_out_mse), held_out_mse, math.inf).argmin(0)
    error_there = np.take_along_axis(true_mse, chosen[None], axis=0)
    return {
        "best_epochs": best_epochs(epochs, true_mse),
        "best_true_mse": float(medians(true_mse).min()),
        "held_out_epochs": int(np.quantile(epochs[chosen], 0.5, method="nearest")),
        "held_out_true_mse": float(medians(error_there)[0]),
    }


def more_training_text(part: Mapping[str, Any]) -> str:
    """A sentence on the content of ``more_training`` and its learning rate, "lr"."""
    start = f"Learning rate {part['lr']:g}: "
    if part["verdict"] == "diverged":
        return f"{start}diverged ({part['diverged']} of the seeds)."
    if part["verdict"] == "exact":
        return f"{start}the MSE against the noise-free f reaches 0."
    start += f"the MSE against the noise-free f is lowest at {part['best_epochs']:,} epochs"
    if part["verdict"] == "helps":
        return f"{start}, the most that were measured."
    evidence = "one seed"
    if "coverage" in part:
        evidence = f"{part['coverage']:.0%} CI {part['low']:.2f} to {part['high']:.2f}"
    return f"{start}; at {part['last_epochs']:,} it is {part['ratio']:.2f} times as large ({evidence})."


def early_stopping_text(choice: Mapping[str, Any]) -> str:
    """A sentence on the content of ``early_stopping`` and its learning rate, "lr"."""
    if number(choice["best_true_mse"]) == "diverged":
        return f"Learning rate {choice['lr']:g}: diverged."
    return (
        f"Learning rate {choice['lr']:g}: the MSE against the noise-free f is lowest at {choice['best_epochs']:,} "
        f"epochs ({number(choice['best_true_mse'])}); a validation sample would stop at {choice['held_out_epochs']:,} "
        f"({number(choice['held_out_true_mse'])})."
    )


def fit_text(summary: Mapping[str, Any]) -> str:
    """A curve fit's results for the terminal, from the content of summary.json: a table, a sentence a learning rate."""
    num_seeds, networks = summary["settings"]["num_seeds"], len({(r["lr"], r["seed"]) for r in summary["results"]})
    quartile_names = ["[quartiles]"] if num_seeds > 1 else []
    rows = [["lr", "epochs", "train mse", "mse against f", *quartile_names, "max error", "r2"]]
    for row in summary["over_seeds"]:
        # A constant function has no R², however well it is fitted.
        missing = "diverged" if math.isinf(error_of(row)) else "-"
        train, true, largest, r2 = (number(row[name]["median"], missing, 4) for name in METRICS)
        spread = f"[{number(row['true_mse']['q25'])}, {number(row['true_mse']['q75'])}]"
        rows.append([f"{row['lr']:g}", f"{row['epochs']:,}", train, true, *[spread] * (num_seeds > 1), largest, r2])
    lines = [table(rows), f"Trained {networks} network{'s' * (networks > 1)} in {summary['seconds']['train']:.1f} s"]
    if summary["not_measured"]:
        lines.append(f"Not measured: {', '.join(f'{epochs:,}' for epochs in summary['not_measured'])} epochs")
    if "auto" in summary:
        lines += map(early_stopping_text, summary["auto"])
    elif len(summary["results"]) > 1:
        lines += map(more_training_text, summary["more_training"])
    return "\n".join(lines)
