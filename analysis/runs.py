"""The finished runs of a report, and which of them belong together."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.classifier_findings import epoch_of_drop

# settings that say where the data are, how a run is shown and how often it is saved, not what it learns
NEUTRAL = {"data_root", "download", "num_seeds", "save_every_n_steps", "enable_progress_bar"}
LENGTH = {"max_epochs", "max_steps", "max_time"}
# settings of the classifier that decide what a training step does; with these alike two runs differ by their rate only
TRAINING = "batch_size momentum nesterov weight_decay precision image_sizes max_shift alternate_flips".split()
TRAINING += "padding_mode optimizer muon_lr_ratio muon_momentum".split()
TRAINING += "limit_train_batches accumulate_grad_batches gradient_clip_val".split()


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, and its summary.json."""

    path: Path
    summary: Mapping[str, Any]

    @property
    def is_curve(self) -> bool:
        return "over_seeds" in self.summary

    @property
    def num_seeds(self) -> int:
        """Of a curve fit."""
        return len({result["seed"] for result in self.summary["results"]})

    def settings(self, but: Collection[str] = ()) -> str:
        """What is comparable of the settings: all but the neutral ones and those of these names."""
        return comparable(self.summary["settings"], but)

    def origin(self, but: Collection[str] = ()) -> tuple[str, int] | None:
        """Settings of the run with whose checkpoint this one began, and the epochs that it had done; None without."""
        origin = self.summary["origin"]
        return None if origin is None else (comparable(origin["settings"], but), origin["epochs"])


def comparable(settings: Mapping[str, Any], but: Collection[str] = ()) -> str:
    return json.dumps({k: v for k, v in settings.items() if k not in NEUTRAL and k not in but}, sort_keys=True)


def distinct(runs: Iterable[Run]) -> list[Run]:
    """The runs without those that repeat another one."""
    found: dict[tuple[object, ...], Run] = {}
    for run in runs:
        seeds = (run.summary["seed"], run.num_seeds if run.is_curve else 1)
        found.setdefault((run.is_curve, seeds, run.settings(), run.origin()), run)
    return list(found.values())


def drops_once(run: Run) -> bool:
    """Whether the milestones make the learning rate one number, then a smaller one, and each epoch was measured."""
    rows = run.summary["epochs"]
    at = epoch_of_drop(rows) if run.summary["settings"].get("milestones") else None
    if at is None or any(row["val_acc"] is None for row in rows):
        return False
    return {row["lr"] for row in rows[:at]} == {rows[0]["lr"]} and {row["lr"] for row in rows[at:]} == {rows[at]["lr"]}


def is_branch(run: Run, other: Run) -> bool:
    """Whether ``other`` continued ``run`` from just before its drop, without it, as long and measured alike."""
    rows, its = run.summary["epochs"], other.summary["epochs"]
    settings, its_settings = run.summary["settings"], other.summary["settings"]
    return (
        other.origin(but=LENGTH) == (run.settings(but=LENGTH), epoch_of_drop(rows))
        and all(settings.get(name) == its_settings.get(name) for name in TRAINING)
        and all(other.summary[name] == run.summary[name] for name in ("seed", "measured_on", "val_batches"))
        and len(its) == len(rows)
        and all(row["lr"] == rows[0]["lr"] and row["val_acc"] is not None for row in its)
    )
