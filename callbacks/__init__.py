"""Lightning callbacks: schedules and records of a run. Each file defines what its first line names."""

from callbacks.lr_step import LRStep
from callbacks.one_cycle import OneCycle

__all__ = ["LRStep", "OneCycle"]
