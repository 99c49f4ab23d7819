"""OneCycle: the learning rate up to a peak and down to zero, linearly, over the whole of a training run."""

import math
from collections.abc import Mapping

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from callbacks.lr_step import set_rate


class OneCycle(Callback):
    """Sets the learning rate of every parameter group before each step (Smith and Topin 2017, arXiv 1708.07120).

    The rate is a function of the step and of the length of the training run alone, so it is right after any resume. The
    length is in checkpoints: another one would be another schedule. A LearningRateMonitor is listed behind it.

    Args:
        lr: the peak learning rate.
        warmup_fraction: the part of the training run, as a fraction of 1, in which the rate rises.

    Raises:
        ValueError: a peak that is not positive and finite, or a warmup_fraction that is not between 0 and 1.
        MisconfigurationException: when training starts without an end in steps or epochs, or from a checkpoint of a
            cycle of another length.
    """

    def __init__(self, lr: float, warmup_fraction: float) -> None:
        if not (0 < lr < math.inf and 0 < warmup_fraction < 1):
            raise ValueError(f"lr {lr} is not positive, or warmup_fraction {warmup_fraction} not between 0 and 1")
        self.lr, self.warmup_fraction = float(lr), float(warmup_fraction)
        self.num_steps = 0  # of the whole run; known when training starts

    def state_dict(self) -> dict[str, int]:
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.num_steps = state["num_steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        num_steps = trainer.estimated_stepping_batches
        if not 0 < num_steps < math.inf:
            raise MisconfigurationException("one cycle of the learning rate needs an end: give max_epochs or max_steps")
        if self.num_steps not in (0, num_steps):
            raise MisconfigurationException(
                f"the checkpoint is of a run of {self.num_steps:,} steps, not {num_steps:,}, and so of another cycle: "
                "resume it with the length that it began with, or start anew"
            )
        self.num_steps = int(num_steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        set_rate(trainer, one_cycle_rate(trainer.global_step, self.num_steps, self.lr, self.warmup_fraction))


def one_cycle_rate(step: int, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """The learning rate of a step, counted from 0, of ``num_steps``."""
    done = (step + 0.5) / num_steps  # the middle of the step: the first one learns too, and the last one
    return peak * min(done / warmup_fraction, (1 - done) / (1 - warmup_fraction))
