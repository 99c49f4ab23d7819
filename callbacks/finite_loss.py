"""StopOnNonFiniteLoss: a training run whose loss is nan or infinite ends before it overwrites what was good."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

BATCHES_BETWEEN_LOOKS = 50  # at the loss, for which a GPU or the other processes have to wait


class NonFiniteLoss(Exception):
    """The loss became nan or infinite; the message is one line that says at which step."""


class StopOnNonFiniteLoss(Callback):
    """Raises NonFiniteLoss soon after a loss that is nan or infinite, and always before the next checkpoint."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # step of the first such loss; -1: none so far

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: object, batch_idx: int
    ) -> None:
        loss: Tensor = outputs["loss"].detach()
        first = torch.full((), -1, device=loss.device) if self._first is None else self._first
        # It stays on the device: to look at each loss would make the host wait for each step.
        self._first = torch.where(loss.isfinite() | (first >= 0), first, trainer.global_step - 1)
        if (loss.device.type == "cpu" and trainer.world_size == 1) or (batch_idx + 1) % BATCHES_BETWEEN_LOOKS == 0:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # The step after a finite loss may have thrown the weights away.
        are_finite = all(bool(weights.isfinite().all()) for weights in pl_module.parameters())
        self._look(trainer, -1 if are_finite else trainer.global_step - 1)

    def _look(self, trainer: Trainer, step_of_weights: int = -1) -> None:
        first = -1 if self._first is None else int(self._first.item())
        first = first if first >= 0 else step_of_weights
        if trainer.strategy.reduce_boolean_decision(first >= 0, all=False):
            where = f"step {first}" if first >= 0 else "one of the last steps"
            raise NonFiniteLoss(
                f"non-finite loss at {where} (epoch {trainer.current_epoch}); what is saved is from before it: try a "
                "smaller learning rate, or --precision 32-true"
            )
