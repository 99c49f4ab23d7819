"""Confidence intervals and quartiles: what a few seeds show of all seeds; and how numbers are written."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class MeanCI(NamedTuple):
    """Mean and standard deviation of n values, and Student's 95 % confidence interval; nan for one value."""

    n: int
    mean: float
    sd: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def text(self, unit: str = "", digits: int = 1) -> str:
        """As in "+8.9 pp (3 seeds, 95 % CI +0.2 to +17.5)"."""
        low, mean, high = (f"{value:+.{digits}f}" for value in (self.low, self.mean, self.high))
        return f"{mean}{unit} " + (f"({self.n} seeds, 95 % CI {low} to {high})" if self.n > 1 else "(one seed)")


def mean_ci(values: Sequence[float]) -> MeanCI:
    """Raises statistics.StatisticsError for no value."""
    n, mean = len(values), statistics.mean(values)
    sd, t = (statistics.stdev(values), student_t(n - 1)) if n > 1 else (math.nan, math.nan)
    half = t * sd / math.sqrt(n)
    return MeanCI(n, mean, sd, mean - half, mean + half)


def student_t(df: int) -> float:
    """t with P(|T| <= t) = 0.95 for Student's T of ``df`` >= 1 degrees of freedom."""
    # Not by scipy: where it is installed, torchmetrics imports it at every start, which takes half a second.
    from mpmath import betainc, findroot

    def miss(t: float) -> float:
        return betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True) - 0.05  # P(|T| > t) - 0.05

    return float(findroot(miss, (1.0, 20.0), solver="anderson"))  # from 1.96 for many degrees to 12.71 for one


def median_ci(values: np.ndarray) -> tuple[float, float, float]:
    """(low, high, coverage): a confidence interval for the median of any continuous distribution, from (n,) values.

    The k-th smallest to the k-th largest value cover it with probability 1 - 2 P(Binomial(n, 1/2) < k); k is the
    largest that reaches 95 %, or 1 where none does (n below 6).
    """
    n, ordered = len(values), np.sort(values)
    coverage = [1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(1, n // 2 + 2)]  # decreases
    k = max(1, sum(c >= 0.95 for c in coverage))
    return float(ordered[k - 1]), float(ordered[n - k]), coverage[k - 1]


def quartiles(values: np.ndarray, worst: float = math.inf) -> dict[str, float]:
    """{"median", "q25", "q75"} of (S,) values over the seeds; a diverged seed counts as ``worst``."""
    known = np.where(np.isfinite(values), values, worst)
    q25, q75 = np.quantile(known, (0.25, 0.75), method="nearest")  # nothing lies between a number and infinity
    return {"median": float(np.median(known)), "q25": float(q25), "q75": float(q75)}


def medians(error: np.ndarray) -> np.ndarray:
    """(T, S) errors -> (T,) medians over the seeds; a diverged seed counts as infinitely bad."""
    return np.median(np.where(np.isfinite(error), error, math.inf), axis=1)


def over_runs(runs: Sequence[Mapping[str, float]]) -> dict[str, MeanCI]:
    """{name: mean over the runs, one at least} for the numbers that all of them have, in their order."""
    return {name: mean_ci([run[name] for run in runs]) for name in runs[0] if all(name in run for run in runs)}


def spread(values: Iterable[float | None], scale: float = 1, digits: int = 3) -> str:
    """Mean ± standard deviation of ``scale`` times those that were measured; "-" for none."""
    measured = [scale * value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(measured):.{digits}f}" if len(measured) > 1 else ""
    return f"{statistics.mean(measured):.{digits}f}{deviation}" if measured else "-"


def number(value: float | None, missing: str = "diverged", digits: int = 3) -> str:
    """These digits of a number; ``missing`` for None, nan and infinity."""
    return missing if value is None or not math.isfinite(value) else f"{value:.{digits}g}"
