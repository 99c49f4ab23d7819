"""The learning rate as a step function of the epoch."""

import math
from collections.abc import Mapping

from pytorch_lightning import Callback, LightningModule, Trainer


class LRStep(Callback):
    """Sets the learning rate of every parameter group at the start of the first epoch not before each milestone.

    The rate is a function of the epoch alone (before the first milestone the optimizer's own), so it is right after any
    resume.

    Args:
        milestones: {epoch: learning rate}, epochs counted from 0. The lab's recipe is {5: 0.01}.

    Raises:
        ValueError: a negative epoch, or a learning rate that is negative or not finite.
    """

    def __init__(self, milestones: Mapping[int, float]) -> None:
        for epoch, lr in milestones.items():
            if epoch < 0 or not (math.isfinite(lr) and lr >= 0):
                raise ValueError(f"milestone {epoch}: {lr} needs an epoch from 0 and a finite learning rate from 0")
        self.milestones = dict(sorted(milestones.items()))

    def lr_at(self, epoch: int) -> float | None:
        """The learning rate set for this epoch; None before the first milestone."""
        passed = [lr for milestone, lr in self.milestones.items() if milestone <= epoch]
        return passed[-1] if passed else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out when it resumes inside an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lr = self.lr_at(trainer.current_epoch)
        if lr is not None:
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
