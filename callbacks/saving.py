"""SaveLast: when a run is saved, so that a resumed run is exactly the same run; on a signal it saves and leaves.

A checkpoint is taken at the end of a step or of an epoch, the places from which Lightning resumes exactly, but before
Lightning has logged that step or epoch. So it lies aside until the next hook; only then, with all that it stands for on
the disk, it becomes ``last.ckpt``.
"""

import io
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from analysis.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, each whole or absent, and readable: MisconfigurationException else."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        whole = io.BytesIO()  # torch.save would report a full disk by a RuntimeError of its own
        try:
            torch.save(checkpoint, whole)
            whole.seek(0)
            torch.load(whole, weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
            raise MisconfigurationException(
                f"a checkpoint could not be read again, since a callback or hyperparameter is no plain value: {reason}"
            ) from None
        write_atomically(Path(path), lambda file: file.write(whole.getbuffer()))


class SaveLast(Checkpoint):
    """Keeps ``last.ckpt`` up to date: at the end of each epoch, and inside it as often as asked.

    On SIGINT (Ctrl-C), SIGTERM or SIGHUP it saves at the end of the running step or validation and exits with 128 + the
    signal; at once by a second signal, or where nothing is trained. In a SLURM job SIGUSR1 (``--signal=USR1@90``) does
    the same and puts the job back into the queue, exit code 0.

    Args:
        every_n_steps: save inside an epoch whenever the number of optimizer steps has passed a multiple of this.
        interval: else save after so many seconds; several processes, whose clocks differ, do not.
        keep_before: epochs before which to keep ``end_of_epoch<n>.ckpt``, n the epoch before.
        requeues: whether the same command finds the run again; else a SLURM job is not put back into the queue.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int | None = None,
        interval: float = 300.0,
        each_epoch: bool = True,
        keep_before: Collection[int] = (),
        advice: str = "",
        requeues: bool = True,
    ) -> None:
        self.last, self.aside = folder / "last.ckpt", folder / ".last.ckpt.tmp"
        self.every_n_steps, self.interval, self.each_epoch = every_n_steps, interval, each_epoch
        self.keep_before, self.advice, self.requeues = keep_before, advice, requeues
        self._kept: Path | None = None
        self._is_aside = False
        self._is_stopped = False  # by a callback, before the length that was asked for
        self._signum = 0  # a signal that was received
        self._is_slurms = False  # which puts the job back into the queue
        self._leaves = False  # once the checkpoint that a signal asked for is in its place
        self._leaves_at_once = False  # where there is nothing to save

    def state_dict(self) -> dict[str, bool]:
        return {"is_stopped": self._is_stopped}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
        has_ended = epochs["current"]["processed"] == epochs["current"]["ready"]
        if has_ended and batches["current"]["completed"] and not batches["is_last_batch"]:
            pl_module.print("Resumed where a run ended inside an epoch: the rest of that epoch is left out")
        # Trained up to a number of steps, Lightning takes an epoch's end for a place inside the epoch: it would end the
        # epoch once more, and shuffle all later ones otherwise. The end of an epoch is the start of the next one.
        if trainer.max_steps != -1 and has_ended:
            for counts in (epochs["current"], epochs["total"]):
                counts["completed"] = counts["processed"]
            batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}
            loop["state_dict"].pop("combined_loader", None)  # where in the epoch its data were
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # which Lightning will add once more

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.aside)  # what cannot be saved is to fail now, when it costs nothing
        self.aside.unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._saved_steps = time.monotonic(), steps_done(trainer)
        obstacles = what_resumes_at_epochs_starts_only(trainer)
        self._saves_inside_epochs = not obstacles
        if obstacles and trainer.num_training_batches > 1:
            pl_module.print(f"Saved at epochs' ends only: Lightning resumes no {', '.join(obstacles)} inside an epoch")
        self._listen(trainer, pl_module)

    def _listen(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In each stage anew, at whose end Lightning restores the handlers from before it."""
        # Several processes differ in their batches of a test: they would not leave together.
        self._leaves_at_once = trainer.world_size == 1 and trainer.state.fn != TrainerFn.FITTING
        names = ["SIGINT", "SIGTERM", "SIGHUP", *(["SIGUSR1"] if "SLURM_JOB_ID" in os.environ else [])]
        for signum in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it for SIGHUP
                signal.signal(signum, self._received)
        if self._signum and self._leaves_at_once:
            self._leave(self._is_slurms)

    on_validation_start = on_test_start = _listen

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self._signum:
            os._exit(128 + signum)
        self._signum = signum
        self._is_slurms = self.requeues and signum == getattr(signal, "SIGUSR1", None)
        if self._leaves_at_once:
            self._leave(self._is_slurms)
        with suppress(OSError):  # Ctrl-C has ended "| tee" first. Not print, in whose middle the signal may have come
            rank_zero_only(os.write)(1, b"\nSaving, then leaving; a second signal leaves at once\n")

    def _leave(self, requeue: bool) -> None:
        rank_zero_only(print)(f"\nInterrupted. {self.advice}", flush=True)
        if requeue:
            env = os.environ
            task = [env[name] for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in env]
            rank_zero_only(subprocess.run)(["scontrol", "requeue", "_".join(task) or env["SLURM_JOB_ID"]], check=True)
        raise SystemExit(0 if requeue else 128 + (self._signum or signal.SIGTERM))

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # Not between an epoch's last batch and its end: Lightning would leave out the validation after a resume. Nor
        # between the batches of a step, whose gradients are in no checkpoint.
        progress, batches = trainer.fit_loop.epoch_loop.batch_progress, args[-1] + 1
        ends_epoch = progress.is_last_batch or trainer.global_step == trainer.max_steps
        if self._saves_inside_epochs and not ends_epoch and batches % trainer.accumulate_grad_batches == 0:
            self._save_if(False, trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 in self.keep_before:
            self._kept = self.last.with_name(f"end_of_epoch{trainer.current_epoch}.ckpt")
        may_stop = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
        self._is_stopped = trainer.should_stop and may_stop and trainer.global_step >= (trainer.min_steps or 0)
        self._save_if(self.each_epoch or trainer.should_stop, trainer)

    def _save_if(self, is_due: bool, trainer: Trainer) -> None:
        """Saves aside where it is due, by the number of steps or seconds too, or a process has received a signal."""
        if self.every_n_steps is not None:
            is_due |= steps_done(trainer) // self.every_n_steps > self._saved_steps // self.every_n_steps
        elif trainer.world_size == 1:
            is_due |= time.monotonic() - self._saved_at >= self.interval
        self._leaves = trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False)
        if is_due or self._leaves:
            if trainer.is_global_zero:
                self.last.parent.mkdir(exist_ok=True)  # fails where the run's folder has been deleted
            trainer.save_checkpoint(self.aside)
            self._is_aside = trainer.is_global_zero
            self._saved_at, self._saved_steps = time.monotonic(), steps_done(trainer)

    def _publish(self, trainer: Trainer, *args: object, **kwargs: object) -> None:
        """Turns what was saved aside into ``last.ckpt``, in any hook later than the one that saved it."""
        if self._is_aside:
            for logger in trainer.loggers:
                logger.save()
            if self._kept is not None:  # before last.ckpt, from which on it would not be made again
                write_atomically(self._kept, lambda file: file.write(self.aside.read_bytes()))
            os.replace(self.aside, self.last)
        self._kept, self._is_aside = None, False
        if self._leaves:
            self._leave(trainer.strategy.reduce_boolean_decision(self._is_slurms, all=False))

    on_train_batch_start = on_train_epoch_start = on_train_end = _publish


def steps_done(trainer: Trainer) -> int:
    """Optimizer steps so far; of a curve fit its epochs, since its Trainer counts measurements."""
    return int(getattr(trainer.lightning_module, "epochs_done", trainer.global_step))


def what_resumes_at_epochs_starts_only(trainer: Trainer) -> list[str]:
    """Validations inside an epoch, and callbacks whose ``on_train_epoch_start`` matters."""
    is_inside = trainer.check_val_every_n_epoch is None or trainer.val_check_batch != trainer.num_training_batches
    names = ["val_check_interval"] if is_inside else []
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        acts = type(each).on_train_epoch_start is not Callback.on_train_epoch_start
        is_ours = type(each).__module__.startswith("callbacks.")
        if acts and not is_ours and not isinstance(each, LearningRateMonitor | ProgressBar):
            names.append(type(each).__name__)
    return names
