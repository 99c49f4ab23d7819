"""The finished runs of a report, and which of them belong together."""

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]  # the epochs of a classifier's run, as in its summary.json

# settings that say where the data are, how a run is shown and how often it is saved, not what it learns
NEUTRAL = {"data_root", "download", "num_seeds", "save_every_n_steps", "enable_progress_bar"}
LENGTH = {"max_epochs", "max_steps", "max_time"}


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, and its summary.json."""

    path: Path
    summary: Mapping[str, Any]

    @property
    def is_curve(self) -> bool:
        return "over_seeds" in self.summary

    def settings(self, but: Collection[str] = ()) -> str:
        """The settings as JSON, without the neutral ones and those with these names: equal where two runs agree."""
        return comparable(self.summary["settings"], but)

    def origin(self, but: Collection[str] = ()) -> tuple[str, int] | None:
        """Settings of the run with whose checkpoint this one began, and its epochs until then; None without one."""
        origin = self.summary["origin"]
        return None if origin is None else (comparable(origin["settings"], but), origin["epochs"])


def comparable(settings: Mapping[str, Any], but: Collection[str] = ()) -> str:
    return json.dumps({k: v for k, v in settings.items() if k not in NEUTRAL and k not in but}, sort_keys=True)


def distinct(runs: Iterable[Run]) -> list[Run]:
    """The runs without those that repeat another one: a command given twice is not two seeds."""
    first: dict[tuple[object, ...], Run] = {}
    for run in runs:
        first.setdefault((run.settings(), run.origin(), len(run.summary.get("results", []))), run)
    return list(first.values())


def epoch_of_drop(rows: Rows) -> int | None:
    """The index in ``rows`` of the first epoch with a lower learning rate than the one before; None without a drop."""
    return next((i for i in range(1, len(rows)) if rows[i]["lr"] < rows[i - 1]["lr"]), None)


def lr_changes(rows: Rows) -> list[tuple[int, float]]:
    """(epoch, new learning rate) of up to three steps; none for a rate that changes all the time, which is no event."""
    changes = [(b["epoch"], b["lr"]) for a, b in itertools.pairwise(rows) if a["lr"] != b["lr"]]
    return changes if len(changes) <= 3 and (len(changes) < len(rows) - 1 or len(changes) == 1) else []


def drops_once(run: Run) -> bool:
    """Whether the milestones make the learning rate one number, then a smaller one, and each epoch was measured."""
    rows = run.summary["epochs"]
    if not run.summary["settings"].get("milestones") or any(row["val_acc"] is None for row in rows):
        return False
    return len(lr_changes(rows)) == 1 and epoch_of_drop(rows) is not None


def is_branch(run: Run, other: Run) -> bool:
    """Whether ``other`` continued ``run`` from just before its drop, without it, as long and with its settings."""
    rows, its = run.summary["epochs"], other.summary["epochs"]
    return (
        other.origin(but=LENGTH) == (run.settings(but=LENGTH), epoch_of_drop(rows))
        and other.settings(but=LENGTH | {"milestones"}) == run.settings(but=LENGTH | {"milestones"})
        and len(its) == len(rows)
        and all(row["lr"] == rows[0]["lr"] and row["val_acc"] is not None for row in its)
    )


def groups(runs: Iterable[Run]) -> list[list[tuple[Run, Run | None]]]:
    """Runs that differ by their seeds only together, each with the run that continued it without its drop."""
    runs = list(runs)
    pairs = {run.path: [other for other in runs if is_branch(run, other)] for run in runs if drops_once(run)}
    branches = {other.path for others in pairs.values() for other in others}
    together: dict[object, list[tuple[Run, Run | None]]] = {}
    for run in runs:
        if run.path not in branches:
            key = (run.settings(but={"seed"}), run.origin(but={"seed"}))
            together.setdefault(key, []).append((run, next(iter(pairs.get(run.path, [])), None)))
    return list(together.values())
