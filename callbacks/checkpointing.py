"""SaveLast, SaveOnInterrupt and AtomicCheckpointIO: when a run is saved, so that a resume is exactly the same run.

A checkpoint is taken at the end of a step or of an epoch, the places from which Lightning resumes exactly, but before
Lightning has logged that step or epoch. So it lies aside until the next hook; only then, with all that it stands for on
the disk, it becomes ``last.ckpt``.
"""

import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from analysis.files import move, write_atomically
from analysis.provenance import quoted

BATCHES_BETWEEN_LOOKS = 50  # at what makes all processes or a GPU wait: a clock to agree on, a loss


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, each whole or absent, and read without running any code of theirs."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        whole = io.BytesIO()  # torch.save would report a full disk by a RuntimeError of its own
        torch.save(checkpoint, whole)
        write_atomically(Path(path), lambda file: file.write(whole.getbuffer()))

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        return super().load_checkpoint(path, *args, **{**options, "weights_only": True})


def may_save_now(trainer: Trainer, batch_idx: int) -> bool:
    """In ``on_train_batch_end``: whether an optimizer step was just made, and another step of this epoch follows next.

    Not between an epoch's last batch and its end, nor before a validation inside the epoch: Lightning would leave the
    validation out after a resume. Not inside a step of several batches, whose gradients are in no checkpoint.
    """
    ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
    every = getattr(trainer, "val_check_batch", None)
    index = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    validates = trainer.enable_validation and isinstance(every, int) and (index + 1) % every == 0
    return not ends_epoch and not validates and (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def steps_done(trainer: Trainer) -> int:
    """Optimizer steps so far; of a curve fit its epochs, since its Trainer counts measurements."""
    return int(getattr(trainer.lightning_module, "epochs_done", trainer.global_step))


class SaveLast(Checkpoint):
    """Keeps ``last.ckpt`` in ``folder`` up to date: at the end of each epoch, before its last step (so that nothing but
    that step is lost when validation is interrupted), inside an epoch as often as asked, and when ``wanted`` is set.

    Args:
        folder: where the checkpoints go.
        every_n_steps: save inside an epoch whenever the number of optimizer steps has passed a multiple of this.
        interval: seconds after which to save without ``every_n_steps``; then epochs' ends wait for it too, if
            ``each_epoch`` is False.
        each_epoch: save at the end of each epoch, not only where training is stopped.
        branches: epochs before which to keep ``end_of_epoch<n>.ckpt``, n the epoch before: a run resumed from there
            shows what happens without a milestone.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int | None = None,
        interval: float = 300.0,
        each_epoch: bool = True,
        branches: Collection[int] = (),
    ) -> None:
        self.last, self.aside = folder / "last.ckpt", folder / ".last.ckpt.tmp"
        self.every_n_steps, self.interval, self.each_epoch = every_n_steps, interval, each_epoch
        self.branches = set(branches)
        self.wanted = False
        self._branch: Path | None = None
        self._is_aside = False
        self._saved_at, self._saved_steps = time.monotonic(), 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Trained up to a number of steps, Lightning takes an epoch's end for a place inside the epoch: it would end the
        # epoch once more, and shuffle all later ones otherwise. The end of an epoch is the start of the next one.
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
        if trainer.max_steps != -1 and epochs["current"]["processed"] == epochs["current"]["ready"]:
            for counts in (epochs["current"], epochs["total"]):
                counts["completed"] = counts["processed"]
            batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}
            loop["state_dict"].pop("combined_loader", None)  # where in the epoch its data were
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # which Lightning will add once more

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._saved_steps = time.monotonic(), steps_done(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if not may_save_now(trainer, batch_idx):
            return
        before_last = batch_idx + 1 >= trainer.num_training_batches - trainer.accumulate_grad_batches
        if (before_last and trainer.enable_validation) or self._is_due(trainer, batch_idx):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 in self.branches:
            self._branch = self.last.with_name(f"end_of_epoch{trainer.current_epoch}.ckpt")
        if self.each_epoch or trainer.should_stop or self._is_due(trainer, 0):
            self._save(trainer)

    def _is_due(self, trainer: Trainer, batch_idx: int) -> bool:
        if self.wanted:
            return True
        if self.every_n_steps is not None:
            return steps_done(trainer) // self.every_n_steps > self._saved_steps // self.every_n_steps
        if trainer.world_size > 1 and batch_idx % BATCHES_BETWEEN_LOOKS:
            return False
        return bool(trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.interval))

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self.last.parent.mkdir(exist_ok=True)  # fails where the run's folder has been deleted
        trainer.save_checkpoint(self.aside)
        self.wanted, self._is_aside = False, trainer.is_global_zero
        self._saved_at, self._saved_steps = time.monotonic(), steps_done(trainer)

    def publish(self, trainer: Trainer, *args: object, **options: object) -> None:
        """What was saved aside becomes ``last.ckpt``; at any later hook than the one that saved it."""
        if not self._is_aside:
            return
        for logger in trainer.loggers:
            logger.save()
        if self._branch is not None:  # before last.ckpt, from which on it would not be made again
            with open(self.aside, "rb") as source:
                write_atomically(self._branch, lambda file: shutil.copyfileobj(source, file))
        move(self.aside, self.last)
        self._branch, self._is_aside = None, False

    on_train_batch_start = on_train_end = publish


class SaveOnInterrupt(Callback):
    """On SIGINT (Ctrl-C), SIGTERM or SIGHUP saves at the end of the running step and exits with 128 + the signal.

    During validation at an epoch's end it leaves the checkpoint as SaveLast has put it there, before the epoch's last
    step, since half a validation cannot be resumed; one in the middle of an epoch is continued until the next step. A
    second signal exits at once. In a SLURM job SIGUSR1 (``--signal=USR1@90``) does the same and puts the job back into
    the queue, exit code 0; Lightning's own handler would save in the middle of a step.

    Args:
        save_last: what saves.
        run_dir: the folder to name in order to resume; of one of several seeds it is the folder of all.
        requeues: whether the same command finds the run again; else a SLURM job is not put back into the queue.
    """

    def __init__(self, save_last: SaveLast, run_dir: Path, requeues: bool = True) -> None:
        self.save_last, self.run_dir, self.requeues = save_last, run_dir, requeues
        self.signum = 0
        self._leaves = False  # once what is wanted has been saved
        self._previous: dict[int, Callable[..., object] | int | None] = {}

    def _listen(self, *args: object, **options: object) -> None:
        signals = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signals.append(signal.SIGHUP)
        if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):
            signals.append(signal.SIGUSR1)
        for signum in signals:
            previous = signal.signal(signum, self._received)
            self._previous.setdefault(signum, previous)

    # Twice before training: after setup Lightning puts a handler of its own in the place of SIGTERM's.
    setup = on_train_start = on_test_start = _listen

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
        if stage == "test" and trainer.world_size == 1 and self.signum:  # while pictures were drawn
            self._leave(trainer)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum

    def _is_asked(self, trainer: Trainer) -> bool:
        """Whether any process was; all of them must be at this place."""
        return bool(trainer.strategy.reduce_boolean_decision(bool(self.signum), all=False))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if may_save_now(trainer, batch_idx) and self._is_asked(trainer):
            self.save_last.wanted = self._leaves = True  # SaveLast's turn comes after all other callbacks

    def on_train_epoch_end(self, trainer: Trainer, *args: object) -> None:
        if self._is_asked(trainer):
            self.save_last.wanted = self._leaves = True

    def _leave_if_saved(self, trainer: Trainer, *args: object, **options: object) -> None:
        if self._leaves:
            self._leave(trainer)

    on_train_batch_start = on_train_epoch_start = on_train_end = _leave_if_saved

    def on_validation_batch_end(self, trainer: Trainer, *args: object) -> None:
        # Processes may have different numbers of batches here; an epoch of one batch has no checkpoint before its last.
        at_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        may_leave = trainer.world_size == 1 and trainer.num_training_batches > trainer.accumulate_grad_batches
        if at_end and may_leave and self._is_asked(trainer):
            self._leave(trainer)

    def on_test_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.world_size == 1 and self._is_asked(trainer):
            self._leave(trainer)  # training has saved its end

    def _leave(self, trainer: Trainer) -> None:
        self.save_last.publish(trainer)
        is_slurms = self.requeues and self.signum == getattr(signal, "SIGUSR1", None)
        requeue = trainer.strategy.reduce_boolean_decision(is_slurms, all=False)
        if trainer.is_global_zero:
            print(
                f"\nInterrupted. To resume: repeat the command with --run_dir {quoted(self.run_dir)} --ckpt_path last",
                flush=True,
            )
            if requeue:
                env = os.environ
                task = [env[name] for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in env]
                subprocess.run(["scontrol", "requeue", "_".join(task) or env["SLURM_JOB_ID"]], check=True)
        raise SystemExit(0 if requeue else 128 + (self.signum or signal.SIGTERM))
