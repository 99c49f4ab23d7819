"""Ctrl-C and SIGTERM: save a checkpoint at the next batch, then leave."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class SaveOnInterrupt(Callback):
    """On SIGINT or SIGTERM saves ``path`` at the end of the running batch and exits with 130 or 143.

    During validation it waits for its end, since half a validation cannot be resumed. A second signal exits at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.signum = 0
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()  # once more: after setup Lightning puts a handler of its own in the place of SIGTERM's

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def _listen(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
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

    def _leave(self, trainer: Trainer, save: bool) -> None:
        if self.signum:
            if save:
                trainer.save_checkpoint(self.path)
            if trainer.is_global_zero:
                print(
                    f"\nInterrupted. To go on: add --run_dir {self.path.parent.parent} --ckpt_path last",
                    flush=True,
                )
            raise SystemExit(128 + self.signum)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # The last batch of an epoch waits for the validation that belongs to it.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._leave(trainer, save=True)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self._leave(trainer, save=True)

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._leave(trainer, save=False)  # training has saved its end
