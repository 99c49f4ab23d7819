"""LRStep: the learning rate as a step function of the epoch, or of the optimizer step."""

import math
from collections.abc import Mapping
from typing import Literal

from pytorch_lightning import Callback, LightningModule, Trainer


class LRStep(Callback):
    """From each milestone on, the learning rate of every parameter group is that milestone's.

    It is set at the start of an epoch, and is a function of the epoch (or step) alone: before the first milestone the
    optimizer's own, and right after any resume, from another run's checkpoint too.

    Args:
        milestones: {epoch: learning rate}, epochs counted from 0. The lab's recipe is {5: 0.01}.
        unit: "step" counts milestones in optimizer steps, as He et al. 2015 do: {32_000: 0.01, 48_000: 0.001}.

    Raises:
        ValueError: a negative milestone, or a learning rate that is negative or not finite.
    """

    def __init__(self, milestones: Mapping[int, float], unit: Literal["epoch", "step"] = "epoch") -> None:
        for milestone, lr in milestones.items():
            if milestone < 0 or not (math.isfinite(lr) and lr >= 0):
                raise ValueError(f"milestone {milestone}: {lr} needs a {unit} from 0 and a finite learning rate from 0")
        self.milestones = dict(sorted(milestones.items()))
        self.unit = unit

    def lr_at(self, now: int) -> float | None:
        """The learning rate set for this epoch or step; None before the first milestone."""
        passed = [lr for milestone, lr in self.milestones.items() if milestone <= now]
        return passed[-1] if passed else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before a checkpoint's optimizer state, with the rates that it had, is loaded.
        self._own = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None and not trainer.lr_scheduler_configs:
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            for group, lr in zip(groups, self._own, strict=True):
                group["lr"] = lr
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out when it resumes inside an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer, trainer.current_epoch if self.unit == "epoch" else trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if self.unit == "step" and trainer.global_step in self.milestones:
            self._set(trainer, trainer.global_step)

    def _set(self, trainer: Trainer, now: int) -> None:
        lr = self.lr_at(now)
        if lr is not None:
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
