"""Ctrl-C, SIGTERM and SLURM's notice: save a checkpoint at the next batch, then leave."""

import os
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.save_last import is_between_steps


class SaveOnInterrupt(Callback):
    """On SIGINT or SIGTERM saves ``path`` at the end of the running step and exits with 130 or 143.

    During validation at an epoch's end it leaves ``path`` as SaveLast has put it there, before the epoch's last step,
    since half a validation cannot be resumed; one in the middle of an epoch goes on until the next step. A second
    signal exits at once. In a SLURM job SIGUSR1 (``--signal=USR1@90``) does the
    same and puts the job back into the queue, exit code 0; Lightning's own handler would save in the middle of a step.
    ``run_dir`` is what the user is told to give to go on; of one of several seeds it is the folder of all.
    """

    def __init__(self, path: Path, run_dir: str | Path) -> None:
        self.path, self.run_dir = path, run_dir
        self.signum = 0
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()  # once more: after setup Lightning puts a handler of its own in the place of SIGTERM's

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def _listen(self) -> None:
        signals = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):
            signals.append(signal.SIGUSR1)
        for signum in signals:
            previous = signal.signal(signum, self._received)
            self._previous.setdefault(signum, previous)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum

    def _leave_if_asked(self, trainer: Trainer, save: bool) -> None:
        """Leaves if any process was asked to; all of them must be at this place."""
        if not trainer.strategy.reduce_boolean_decision(bool(self.signum), all=False):
            return
        if save:
            trainer.save_checkpoint(self.path)
        requeue = self.signum not in (0, signal.SIGINT, signal.SIGTERM)
        if trainer.is_global_zero:
            print(f"\nInterrupted. To go on: add --run_dir {self.run_dir} --ckpt_path last", flush=True)
            if requeue:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        raise SystemExit(0 if requeue else 128 + (self.signum or signal.SIGTERM))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_between_steps(trainer, batch_idx):
            self._leave_if_asked(trainer, save=True)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # Processes may have different numbers of batches here; an epoch of one batch has no checkpoint before its last.
        at_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.world_size == 1 and at_end and trainer.num_training_batches > trainer.accumulate_grad_batches:
            self._leave_if_asked(trainer, save=False)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self._leave_if_asked(trainer, save=True)

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.world_size == 1:
            self._leave_if_asked(trainer, save=False)  # training has saved its end
