"""RecordCallback: what both records share: a run's settings, which a resume compares, its origin, its seconds."""

import time
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback

from analysis.provenance import command_line


class RecordCallback(Callback):
    """Collects what a run reached, over resumes too, for summary.json.

    Args:
        settings: all settings of the run, as plain values.
        is_branch: training begins with the checkpoint of another run, which becomes this run's ``origin``.
        start: ``time.perf_counter()`` when it began, for the seconds in all.
    """

    def __init__(self, settings: Mapping[str, Any], is_branch: bool, start: float) -> None:
        self.settings, self.is_branch, self.start = dict(settings), is_branch, start
        self.origin: dict[str, Any] | None = None
        self._earlier_total = 0.0  # seconds of the processes before a resume

    def total_seconds(self) -> float:
        return self._earlier_total + time.perf_counter() - self.start

    def state_dict(self) -> dict[str, Any]:
        """A subclass adds its own part, with "epochs_done"."""
        return {"settings": self.settings, "origin": self.origin, "total_seconds": self.total_seconds()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._earlier_total, self.origin = state["total_seconds"], state["origin"]
        if self.is_branch:
            self.origin = {"settings": state["settings"], "epochs": state["epochs_done"]}

    def common(self) -> dict[str, Any]:
        """What both summaries say of a run in the same way."""
        return {"command": command_line(), "settings": self.settings, "origin": self.origin}
