"""LRStep: the learning rate as a step function of the epoch, or of the optimizer step."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer


class LRStep(Callback):
    """From each milestone on, the learning rate of every parameter group is that milestone's.

    It is set before each step, whatever a scheduler has set, and is a function of the epoch (or step) alone: before the
    first milestone the optimizer's own, and right after any resume. A LearningRateMonitor is listed behind it.

    Args:
        milestones: {epoch: learning rate}, epochs counted from 0. The lab's recipe is {5: 0.01}.
        unit: "step" counts milestones in optimizer steps, as He et al. 2015 do: {32_000: 0.01, 48_000: 0.001}.

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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._own = [group["lr"] for group in param_groups(trainer)]  # before a checkpoint's rates are loaded

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.lr_scheduler_configs:  # whose rate it would be
            for group, lr in zip(param_groups(trainer), self._own, strict=False):  # finetuning adds groups later
                group["lr"] = lr
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lr = step_rate(self.milestones, trainer.current_epoch if self.unit == "epoch" else trainer.global_step)
        if lr is not None:
            set_rate(trainer, lr)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self.on_train_epoch_start(trainer, pl_module)


def step_rate(milestones: Mapping[int, float], now: int) -> float | None:
    """The learning rate in this epoch or step; None before the first of the ascending milestones."""
    passed = [lr for milestone, lr in milestones.items() if milestone <= now]
    return passed[-1] if passed else None


def param_groups(trainer: Trainer) -> list[dict[str, Any]]:
    """The parameter groups of all optimizers."""
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def set_rate(trainer: Trainer, lr: float) -> None:
    for group in param_groups(trainer):
        group["lr"] = lr
