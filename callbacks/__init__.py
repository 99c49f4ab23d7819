"""Lightning callbacks: schedules and records of a run. Each file defines what its first line names."""

from callbacks.lr_schedule import LRStep, OneCycle

__all__ = ["LRStep", "OneCycle"]
