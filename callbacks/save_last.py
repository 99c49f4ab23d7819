"""When a run's checkpoints are saved: only where Lightning resumes to exactly the run that was not interrupted."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

BATCHES_BETWEEN_LOOKS = 50  # at the clock, where several processes have to agree on it


class SaveLast(Checkpoint):
    """Keeps ``last.ckpt`` in ``folder`` up to date.

    It is saved at the end of each epoch, after its validation, and inside an epoch: before its last step, so that
    nothing but that step is lost when validation is interrupted, and as often as asked. Never between an epoch's last
    batch and its end: Lightning would resume such a checkpoint with the next epoch and leave out the validation. Nor
    inside a step of several batches, whose gradients are in no checkpoint.

    Args:
        folder: where the checkpoints go.
        every_n_steps: save inside an epoch whenever the number of optimizer steps has passed a multiple of this.
        interval: seconds after which to save without ``every_n_steps``; then epochs' ends wait for it too, if
            ``each_epoch`` is False.
        each_epoch: save at the end of each epoch.
        branches: epochs before which to keep ``end_of_epoch<n>.ckpt``, n the epoch before: what would have happened
            without a milestone is told by a run resumed from there.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int | None = None,
        interval: float = 300.0,
        each_epoch: bool = True,
        branches: Collection[int] = (),
    ) -> None:
        self.path = folder / "last.ckpt"
        self.every_n_steps, self.interval, self.each_epoch = every_n_steps, interval, each_epoch
        self.branches = set(branches)
        self._saved_at, self._saved_steps = time.monotonic(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._saved_steps = time.monotonic(), steps_done(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_between_steps(trainer, batch_idx):
            return
        before_last = batch_idx + 1 >= trainer.num_training_batches - trainer.accumulate_grad_batches
        before_last = before_last and trainer.enable_validation
        if before_last or self._is_due(trainer, batch_idx):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.each_epoch or self._is_due(trainer, 0):
            self._save(trainer)
        if trainer.current_epoch + 1 in self.branches:
            trainer.save_checkpoint(self.path.with_name(f"end_of_epoch{trainer.current_epoch}.ckpt"))

    def _is_due(self, trainer: Trainer, batch_idx: int) -> bool:
        if self.every_n_steps is not None:
            return steps_done(trainer) // self.every_n_steps > self._saved_steps // self.every_n_steps
        if trainer.world_size > 1 and batch_idx % BATCHES_BETWEEN_LOOKS:
            return False
        return bool(trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.interval))

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at, self._saved_steps = time.monotonic(), steps_done(trainer)


def steps_done(trainer: Trainer) -> int:
    """Optimizer steps so far; of a curve fit its epochs, since its Trainer counts measurements."""
    return int(getattr(trainer.lightning_module, "epochs_done", trainer.global_step))


def is_between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """In ``on_train_batch_end``: whether an optimizer step was just made, and another one of this epoch follows."""
    ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
    return not ends_epoch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
