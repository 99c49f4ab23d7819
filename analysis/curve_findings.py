"""What the measurements of curve fits show, as numbers and verdicts. T epoch counts, L learning rates, S seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.statistics import Quartiles, median_ci, medians, quartiles

METRICS = ("train_mse", "true_mse", "true_max_abs_error", "r2")


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


def or_infinity(value: float | None) -> float:
    """Infinity for what diverged, null in a summary."""
    return math.inf if value is None else value


def error_of(row: Mapping[str, Any]) -> float:
    """The median MSE against the noise-free f, of a row of ``spread_over_seeds``, read back from JSON or not."""
    return or_infinity(row["true_mse"]["median"])


def lowest_rows(rows: Sequence[Mapping[str, Any]]) -> dict[float, Mapping[str, Any]]:
    """{learning rate: the row of its lowest error}"""
    return {
        lr: min((row for row in rows if row["lr"] == lr), key=error_of) for lr in dict.fromkeys(r["lr"] for r in rows)
    }


def best_setting(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row of the lowest error; its "rivals" are the lowest rows of other learning rates within its quartiles."""
    lowest = lowest_rows(rows).values()
    best = min(lowest, key=error_of)
    limit = or_infinity(best["true_mse"]["q75"])
    return {**best, "rivals": [row for row in lowest if row is not best and error_of(row) <= limit < math.inf]}


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
