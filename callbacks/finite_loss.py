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
        if self._first is None:
            self._first = torch.full((), -1, device=loss.device)
        # It stays on the device: to look at each loss would make the host wait for each step.
        self._first = torch.where(loss.isfinite() | (self._first >= 0), self._first, trainer.global_step - 1)
        if (loss.device.type == "cpu" and trainer.world_size == 1) or (batch_idx + 1) % BATCHES_BETWEEN_LOOKS == 0:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # The step after a finite loss may have thrown the weights away.
        self._look(trainer, all(bool(weights.isfinite().all()) for weights in pl_module.parameters()))

    def _look(self, trainer: Trainer, weights_are_finite: bool = True) -> None:
        first = -1 if self._first is None else int(self._first.item())
        if first < 0 and not weights_are_finite:
            first = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(first >= 0, all=False):
            where = f"step {first}" if first >= 0 else "one of the last steps"
            raise NonFiniteLoss(
                f"non-finite loss at {where} (epoch {trainer.current_epoch}); what is saved is from before it: try a "
                "smaller learning rate, or --precision 32-true"
            )
