"""The learning rate up to a peak and down to zero, in straight lines over the whole of a training."""

import math
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException


class OneCycle(Callback):
    """Sets the learning rate of every parameter group before each step (Smith and Topin 2017, arXiv 1708.07120).

    The rate is a function of the step and of the length of the training alone, so it is right after any resume.

    Args:
        peak: the highest learning rate.
        warm_up: the part of the training, as a fraction of 1, in which the rate rises.

    Raises:
        ValueError: a peak that is not positive and finite, or a warm_up that is not between 0 and 1.
        MisconfigurationException: when training starts without an end in steps or epochs, or from a checkpoint that has
            come further in steps than its epochs now have.
    """

    def __init__(self, peak: float, warm_up: float) -> None:
        if not (0 < peak < math.inf and 0 < warm_up < 1):
            raise ValueError(f"a cycle needs a positive peak and a warm-up between 0 and 1, not {peak} and {warm_up}")
        self.peak, self.warm_up = peak, warm_up

    def lr_at(self, step: int, num_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        done = (step + 0.5) / num_steps  # the middle of the step: the first one learns too, and the last one
        return self.peak * min(done / self.warm_up, (1 - done) / (1 - self.warm_up))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        num_steps = trainer.estimated_stepping_batches
        if not 0 < num_steps < math.inf:
            raise MisconfigurationException("this recipe must know its end: give --max_epochs or --max_steps")
        self._num_steps = int(num_steps)
        if trainer.max_epochs not in (None, -1):
            an_epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
            if not 0 <= trainer.global_step - trainer.current_epoch * an_epoch <= an_epoch:
                raise MisconfigurationException(
                    f"the checkpoint is not from epochs of {an_epoch} steps as these are: resume a recipe of one cycle "
                    "with the --batch_size, --val_size and limits that it began with"
                )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        lr = self.lr_at(trainer.global_step, self._num_steps)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
