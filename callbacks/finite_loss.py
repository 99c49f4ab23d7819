"""StopOnNonFiniteLoss: a training run whose loss is nan or infinite ends before it overwrites what was good."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

BATCHES_BETWEEN_LOOKS = 50  # at the loss, for which a GPU or the other processes have to wait


class NonFiniteLoss(Exception):
    """The loss became nan or infinite; the message is one line that says at which step."""


class StopOnNonFiniteLoss(Callback):
    """Raises NonFiniteLoss soon after a loss that is nan or infinite, and always before the next checkpoint."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: object, batch_idx: int
    ) -> None:
        is_cheap = outputs["loss"].device.type == "cpu" and trainer.world_size == 1
        if is_cheap or (batch_idx + 1) % BATCHES_BETWEEN_LOOKS == 0:
            self._raise_unless(bool(outputs["loss"].isfinite()), trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # The weights are not finite after a loss that is not; a step may have thrown them away after one that is.
        are_finite = torch.stack([weights.isfinite().all() for weights in pl_module.parameters()]).all()
        self._raise_unless(bool(are_finite), trainer)

    def _raise_unless(self, is_finite: bool, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(not is_finite, all=False):
            raise NonFiniteLoss(
                f"non-finite loss at step {trainer.global_step - 1} (epoch {trainer.current_epoch}); what is saved is "
                "from before it: try a smaller learning rate, or --precision 32-true"
            )
