"""What the measurements of a curve fit say, in numbers and plain sentences."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def quartiles(values: np.ndarray, worst: float = math.inf) -> dict[str, float]:
    """{"median", "q25", "q75"} over the seeds; a diverged seed counts as ``worst``."""
    known = np.where(np.isfinite(values), values, worst)
    # Quartiles are values that occurred: between a number and infinity there is nothing to interpolate.
    q25, q75 = np.quantile(known, (0.25, 0.75), method="nearest")
    return {"median": float(np.median(known)), "q25": float(q25), "q75": float(q75)}


def medians(error: np.ndarray) -> np.ndarray:
    """(T, S) errors -> (T,) medians over the seeds; a diverged seed counts as infinitely bad."""
    return np.median(np.where(np.isfinite(error), error, math.inf), axis=1)


def median_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(low, high, coverage): an interval for the median of what ``values`` are a sample of, whatever its shape.

    It lies between the k-th smallest and k-th largest value and covers the median with probability
    1 - 2 P(Binomial(n, 1/2) < k); k is the largest that reaches ``level``, or 1 where none does (n below 6).
    """
    n, ordered = len(values), np.sort(values)

    def coverage(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max([1, *(k for k in range(1, n // 2 + 1) if coverage(k) >= level)])
    return float(ordered[k - 1]), float(ordered[n - k]), coverage(k)


def best_epochs(epochs: np.ndarray, error: np.ndarray) -> int:
    """The measured epoch count at which the median over the seeds of ``error`` (T, S) is least."""
    return int(epochs[medians(error).argmin()])


def does_more_training_hurt(epochs: np.ndarray, true_mse: np.ndarray) -> dict[str, Any]:
    """Compares the true error (T, S) at the last epoch with that at the best epoch, for one learning rate.

    For each seed the best epoch is the one that the *other* seeds would choose, so that picking the minimum of a noisy
    curve does not by itself look like harm. Returns the ratio's median over seeds, an interval for it, and a verdict:
    "hurts", "helps" (least at the end), "no evidence", "one seed", "exact" (an error of 0, to which nothing has a
    ratio), or "diverged" (at least one seed did).
    """
    S = true_mse.shape[1]
    best = best_epochs(epochs, true_mse)
    answer: dict[str, Any] = {"best_epochs": best, "last_epochs": int(epochs[-1])}
    if not np.isfinite(true_mse).all():
        return answer | {"verdict": "diverged", "diverged": int((~np.isfinite(true_mse)).any(0).sum())}
    if (true_mse == 0).any():
        return answer | {"verdict": "exact"}
    still_falling = best == epochs[-1]
    if S == 1:
        if still_falling:
            return answer | {"verdict": "helps"}
        return answer | {"verdict": "one seed", "ratio": float(true_mse[-1, 0] / true_mse[epochs == best, 0][0])}
    ratios = []
    for s in range(S):
        others = np.delete(true_mse, s, axis=1)
        ratios.append(true_mse[-1, s] / true_mse[medians(others).argmin(), s])
    low, high, coverage = median_interval(np.array(ratios))
    verdict = "helps" if still_falling else "hurts" if low > 1 and coverage >= 0.95 else "no evidence"
    ratio = float(np.median(ratios))
    return answer | {"ratio": ratio, "low": low, "high": high, "coverage": coverage, "verdict": verdict}


def sentence(lr: float, answer: dict[str, Any], num_seeds: int) -> str:
    """The answer to "does more training ever hurt?" for one learning rate, in one plain sentence."""
    best, last = f"{answer['best_epochs']:,}", f"{answer['last_epochs']:,}"
    start = f"Learning rate {lr:g}: "
    if answer["verdict"] == "diverged":
        return start + f"{answer['diverged']} of {num_seeds} seeds diverged, so nothing is said of more training."
    if answer["verdict"] == "exact":
        return start + "the true error falls to 0, so no ratio says whether more training hurts."
    if answer["verdict"] == "one seed":
        return start + (
            f"the true error is least at {best} epochs; at {last} it is {answer['ratio']:.2f} times that "
            "(one seed gives no interval: --num_seeds 8 does)."
        )
    if answer["verdict"] == "helps":
        return (
            start + f"the true error is least at {last} epochs, the most that were measured: no bell shape up to there."
        )
    numbers = (
        f"the true error is least at {best} epochs; at {last} a seed's is {answer['ratio']:.2f} times its own at the "
        f"epochs that the other seeds choose (median of {num_seeds} seeds, {answer['coverage']:.0%} interval "
        f"{answer['low']:.2f} to {answer['high']:.2f})"
    )
    if answer["verdict"] == "hurts":
        return start + numbers + ": past its best, more training hurts."
    return start + numbers + ": that more training hurts is not shown."


def held_out_choice(epochs: np.ndarray, true_mse: np.ndarray, held_out_mse: np.ndarray) -> dict[str, Any]:
    """The best epoch by true error, and by a held-out noisy sample, which is what one has when f is unknown.

    Both arrays are (T, S). The best epoch is that of the median over the seeds. A held-out sample chooses for its own
    seed alone, as it would for who has only that one: the medians of what the seeds choose, and of their true errors
    there, are told.
    """
    best, median = best_epochs(epochs, true_mse), medians(true_mse)
    chosen = np.where(np.isfinite(held_out_mse), held_out_mse, math.inf).argmin(0)
    true_there = np.take_along_axis(true_mse, chosen[None], axis=0)
    return {
        "best_epochs": best,
        "best_true_mse": float(median[epochs == best][0]),
        "held_out_epochs": int(np.quantile(epochs[chosen], 0.5, method="nearest")),
        "held_out_true_mse": float(medians(true_there)[0]),
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the header, right-aligned in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
