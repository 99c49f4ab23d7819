"""LRStep: the learning rate as a step function of the epoch, or of the optimizer step."""

import math
import sys
from collections.abc import Mapping
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateFinder, StochasticWeightAveraging


class LRStep(Callback):
    """From each milestone on, the learning rate of every parameter group is that milestone's.

    It is set before each step, whatever a scheduler has set, and is a function of the epoch (or step) alone: before the
    first milestone the optimizer's own, and right after any resume, from another run's checkpoint too. A
    LearningRateMonitor is listed behind it, or logs the rate before.

    Args:
        milestones: {epoch: learning rate}, epochs counted from 0. The lab's recipe is {5: 0.01}.
        unit: "step" counts milestones in optimizer steps, as He et al. 2015 do: {32_000: 0.01, 48_000: 0.001}; of
            several optimizers together, as Lightning counts them.

    Raises:
        ValueError: a milestone that is no whole number from 0, a learning rate that is negative or not finite, or
            another unit.
    """

    def __init__(self, milestones: Mapping[int, float], unit: Literal["epoch", "step"] = "epoch") -> None:
        for milestone, lr in milestones.items():
            if not (float(milestone).is_integer() and float(milestone) >= 0 and 0 <= lr < math.inf):
                what = f"{unit} from 0 and finite learning rate from 0"
                raise ValueError(f"milestones: {milestone}: {lr} is no {what}: write for example {{5: 0.01}}")
        if unit not in ("epoch", "step"):
            raise ValueError(f"unit is {unit!r}; it is 'epoch' or 'step'")
        self.milestones = dict(sorted((int(milestone), float(lr)) for milestone, lr in milestones.items()))
        self.unit = unit

    def lr_at(self, now: int) -> float | None:
        """The learning rate set for this epoch or step; None before the first milestone."""
        passed = [lr for milestone, lr in self.milestones.items() if milestone <= now]
        return passed[-1] if passed else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before a checkpoint's optimizer state, with the rates that it had, is loaded.
        self._own = [group["lr"] for group in param_groups(trainer)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before another schedule, whose rate the optimizer's state holds; Lightning's averaging makes one later.
        others = trainer.lr_scheduler_configs or callbacks_of(trainer, StochasticWeightAveraging)
        if trainer.ckpt_path is not None and not others:
            for group, lr in zip(param_groups(trainer), self._own, strict=False):  # others came later, as of finetuning
                group["lr"] = lr
        if self.milestones:
            say_which_wins(f"LRStep's from {self.unit} {min(self.milestones)} on", trainer)
        self._set(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer)  # before what looks at an epoch's rate then, such as a LearningRateMonitor

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self._set(trainer)

    def _set(self, trainer: Trainer) -> None:
        lr = self.lr_at(trainer.current_epoch if self.unit == "epoch" else trainer.global_step)
        if lr is not None:
            for group in param_groups(trainer):
                group["lr"] = lr


def param_groups(trainer: Trainer) -> list[dict[str, Any]]:
    """Those of all optimizers."""
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def callbacks_of(trainer: Trainer, *kinds: type[Callback]) -> list[Callback]:
    """The trainer's callbacks of these kinds."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kinds)]


def say_which_wins(winner: str, trainer: Trainer) -> None:
    """One line on stderr where schedulers or callbacks of Lightning's set the learning rate too."""
    setters = callbacks_of(trainer, LearningRateFinder, StochasticWeightAveraging)
    others = [type(setter).__name__ for setter in (*setters, *(c.scheduler for c in trainer.lr_scheduler_configs))]
    if others and trainer.is_global_zero:
        print(f"The learning rate is {winner}, whatever {' or '.join(others)} sets", file=sys.stderr)
