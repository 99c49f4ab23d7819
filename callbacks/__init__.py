"""Schedules, figures and records of a run (Lightning callbacks)."""

from callbacks.lr_step import LRStep

__all__ = ["LRStep"]
