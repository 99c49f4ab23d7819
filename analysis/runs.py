"""The finished runs of a report, and which of them belong together."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = Mapping[str, Any]  # an object of a summary.json
Rows = Sequence[Row]
# settings that do not change what a run learns
NEUTRAL = {"data_root", "download", "num_seeds", "save_every_n_steps", "enable_progress_bar", "ckpt_path"}


class FinishedRun(NamedTuple):
    """A run that has its summary.json, in the folder ``path``."""

    path: Path
    summary: Row

    @property
    def epochs(self) -> Rows:
        return self.summary["epochs"]


Pair = tuple[FinishedRun, FinishedRun | None]  # a run, and the one that continued it without its drop


def over_epochs(rows: Rows, name: str, scale: float = 1) -> tuple[list[int], list[float]]:
    """The epochs in which this was measured, and ``scale`` times what was measured."""
    rows = [row for row in rows if row.get(name) is not None]
    return [row["epoch"] for row in rows], [scale * row[name] for row in rows]


def epoch_ticks(last: int) -> list[int]:
    """Ticks of an axis of the epochs from 0 to ``last``: up to seven, both ends among them."""
    step = next(10**i * few for i in itertools.count() for few in (1, 2, 5) if 6 * 10**i * few >= last)
    return [*(tick for tick in range(0, last, step) if 2 * (last - tick) >= step), last]


def lr_changes(rows: Rows) -> list[tuple[int, float]]:
    """(epoch, new learning rate) of each step; none for a rate that changes all the time, which is no event."""
    changes = [(b["epoch"], b["lr"]) for a, b in itertools.pairwise(rows) if a["lr"] != b["lr"]]
    return changes if 2 * len(changes) <= len(rows) else []


def epoch_of_drop(run: FinishedRun) -> int | None:
    """The first epoch after the only milestone, if that lowered the learning rate and each epoch was measured."""
    rows, changes = run.epochs, lr_changes(run.epochs)
    is_drop = len(changes) == 1 and rows[-1]["lr"] < rows[0]["lr"] and run.summary["settings"].get("milestones")
    return changes[0][0] if is_drop and all(row["val_acc"] is not None for row in rows) else None


def comparable(settings: Row, but: str = "") -> str:
    """The settings that decide what a run learns, without one, as JSON: equal where two runs agree."""
    neutral = NEUTRAL - {"data_root"} if settings.get("data") == "folder" else NEUTRAL
    return json.dumps({k: v for k, v in settings.items() if k not in {*neutral, but}}, sort_keys=True)


def is_branch(run: FinishedRun, other: FinishedRun) -> bool:
    """Whether ``other`` continued ``run`` from just before its drop, without it, as long and with its settings."""
    origin = other.summary["origin"]
    if not origin or origin["epochs"] != epoch_of_drop(run):
        return False
    settings = (run.summary["settings"], other.summary["settings"], origin["settings"])
    has_no_drop = [row["lr"] for row in other.epochs] == [run.epochs[0]["lr"]] * len(run.epochs)
    return has_no_drop and len({comparable(each, "milestones") for each in settings}) == 1


def groups(runs: Sequence[FinishedRun]) -> list[list[Pair]]:
    """Runs that differ by their seeds only together, each with its branch; a seed counts once, however often it ran."""
    together: dict[str, dict[int, Pair]] = {}
    for run in runs:
        if not any(is_branch(other, run) for other in runs):
            branch = next((other for other in runs if is_branch(run, other)), None)
            seeds = together.setdefault(comparable(run.summary["settings"], "seed"), {})
            seeds.setdefault(run.summary["seed"], (run, branch))
    return [list(seeds.values()) for seeds in together.values()]
