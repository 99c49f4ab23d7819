"""Confidence intervals and quartiles: what a few seeds show of all seeds; and how numbers are written.

Not by scipy: where it is installed, torchmetrics imports its signal processing too, half a second of every start.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np


@dataclass(frozen=True)
class MeanCI:
    """A mean with its standard deviation and 95 % confidence interval, all three nan for a single value."""

    values: list[float]
    mean: float
    sd: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def text(self, unit: str = "", digits: int = 1) -> str:
        """As in "+8.9 pp (3 seeds, 95 % CI +0.2 to +17.5)"."""
        n, sign = len(self.values), f"+.{digits}f"
        interval = f"{n} seeds, 95 % CI {self.low:{sign}} to {self.high:{sign}}" if n > 1 else "one seed"
        return f"{self.mean:{sign}}{unit} ({interval})"


class Quartiles(TypedDict):
    """Over the seeds; read back from JSON, what is not finite is None."""

    median: float | None
    q25: float | None
    q75: float | None


def mean_ci(values: Sequence[float]) -> MeanCI:
    """The mean of at least one value, with Student's 95 % confidence interval.

    Raises:
        statistics.StatisticsError: there is no value.
    """
    n, mean = len(values), statistics.mean(values)
    if n == 1:
        return MeanCI(list(values), mean, math.nan, math.nan, math.nan)
    sd = statistics.stdev(values)
    half = student_t(n - 1) * sd / math.sqrt(n)
    return MeanCI(list(values), mean, sd, mean - half, mean + half)


def student_t(df: int) -> float:
    """t with P(|T| <= t) = 0.95 for Student's T of ``df`` >= 1 degrees of freedom.

    P(|T| > t) is the regularized incomplete beta function I_x(df / 2, 1 / 2) at x = df / (df + t**2).
    """
    from mpmath import betainc, findroot

    def miss(t: float) -> float:
        return betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True) - 0.05

    return float(findroot(miss, (1.0, 20.0), solver="anderson"))  # from 1.96 for many degrees to 12.71 for one


def median_ci(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(low, high, coverage): a confidence interval for the median of the distribution that (n,) ``values`` come from.

    It holds for any continuous distribution. It lies between the k-th smallest and the k-th largest value and covers
    the median with probability 1 - 2 P(Binomial(n, 1/2) < k); k is the largest that reaches ``level``, or 1 where none
    does (at 95 %: n below 6).
    """
    n, ordered = len(values), np.sort(values)
    tails = itertools.accumulate(math.comb(n, i) for i in range(max(n // 2, 1)))  # 2**n P(Binomial < k), k = 1 ...
    coverage = [1 - 2 * tail / 2**n for tail in tails]
    k = max(1, sum(c >= level for c in coverage))  # coverage decreases with k
    return float(ordered[k - 1]), float(ordered[n - k]), coverage[k - 1]


def quartiles(values: np.ndarray, worst: float = math.inf) -> Quartiles:
    """Median and quartiles of (S,) values over the seeds; a diverged seed counts as ``worst``."""
    known = np.where(np.isfinite(values), values, worst)
    # Quartiles are values that occurred: between a number and infinity there is nothing to interpolate.
    q25, q75 = np.quantile(known, (0.25, 0.75), method="nearest")
    return {"median": float(np.median(known)), "q25": float(q25), "q75": float(q75)}


def medians(error: np.ndarray) -> np.ndarray:
    """(T, S) errors -> (T,) medians over the seeds; a diverged seed counts as infinitely bad."""
    return np.median(np.where(np.isfinite(error), error, math.inf), axis=1)


def over_runs(runs: Sequence[Mapping[str, float]]) -> dict[str, MeanCI]:
    """{name: mean over the runs} for the numbers that all of them have, in their order."""
    names = [name for name in runs[0] if all(name in run for run in runs)] if runs else []
    return {name: mean_ci([run[name] for run in runs]) for name in names}


def spread(values: Iterable[float | None], scale: float = 1) -> str:
    """Mean ± standard deviation of ``scale`` times those that were measured; "-" for none."""
    measured = [scale * value for value in values if value is not None]
    digits = 2 if scale > 1 else 3
    deviation = f" ± {statistics.stdev(measured):.{digits}f}" if len(measured) > 1 else ""
    return f"{statistics.mean(measured):.{digits}f}{deviation}" if measured else "-"


def number(value: float | None, missing: str = "diverged", digits: int = 3) -> str:
    """These digits of a number; ``missing`` for None, nan and infinity."""
    return missing if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the header, right-aligned in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
