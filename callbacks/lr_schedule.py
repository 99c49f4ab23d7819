"""LRStep and OneCycle: the learning rate as a pure function of the epoch or the step, set before each step.

So both schedules are right after any resume. A LearningRateMonitor is listed behind them.
"""

import math
from collections.abc import Mapping
from typing import Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException


class LRStep(Callback):
    """From each milestone on, the learning rate of every parameter group is that milestone's, before it their own.

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

    def on_train_batch_start(self, trainer: Trainer, *args: object, **kwargs: object) -> None:
        now = trainer.current_epoch if self.unit == "epoch" else trainer.global_step
        passed = [lr for milestone, lr in self.milestones.items() if milestone <= now]
        set_rate(trainer, passed[-1] if passed else None)

    on_train_epoch_start = on_train_batch_start


class OneCycle(Callback):
    """Up to a peak and down to zero, linearly, over a whole training run (Smith and Topin 2017, arXiv 1708.07120).

    A resumed run needs the length that it began with.

    Args:
        lr: the peak learning rate.
        warmup_fraction: the part of the training run, as a fraction of 1, in which the rate rises.

    Raises:
        ValueError: a peak that is not positive and finite, or a warmup_fraction that is not between 0 and 1.
        MisconfigurationException: when training starts without an end in steps or epochs.
    """

    def __init__(self, lr: float, warmup_fraction: float) -> None:
        if not (0 < lr < math.inf and 0 < warmup_fraction < 1):
            raise ValueError(f"lr {lr} is not positive, or warmup_fraction {warmup_fraction} not between 0 and 1")
        self.lr, self.warmup_fraction = float(lr), float(warmup_fraction)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.num_steps = trainer.estimated_stepping_batches
        if not 0 < self.num_steps < math.inf:
            raise MisconfigurationException("one cycle of the learning rate needs an end: give max_epochs or max_steps")

    def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
        done = (trainer.global_step + 0.5) / self.num_steps  # the middle of the step: the first and last learn too
        set_rate(trainer, self.lr * min(done / self.warmup_fraction, (1 - done) / (1 - self.warmup_fraction)))


def set_rate(trainer: Trainer, lr: float | None) -> None:
    """Sets the rate of every parameter group; None restores its own, where a checkpoint had other milestones."""
    for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
        own = group.pop("own_lr", group["lr"])
        group.update({"lr": own} if lr is None else {"lr": lr, "own_lr": own})  # checkpoints keep both
