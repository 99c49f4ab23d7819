"""What cifar.py checks of a run before it begins, and whether the network is compiled."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from callbacks import OneCycle
from callbacks.lr_step import callbacks_of
from datamodules import CIFAR10DataModule
from scripts.hardware import gains_by_compilation, has_compiler
from scripts.run_dir import Checkpoint
from scripts.trainer import check_callbacks

# what decides which batches an epoch has, and which of them make a step
OF_AN_EPOCH = {"data", "seed", "batch_size", "val_size", "max_shift", "padding_mode", "alternate_flips"}
OF_AN_EPOCH |= {"limit_train_batches", "overfit_batches", "fast_dev_run", "accumulate_grad_batches"}


def check_run(data: CIFAR10DataModule, trainer: Trainer, schedule: Callback, checkpoint: Checkpoint | None) -> None:
    """Raises UsageError for what Lightning would refuse later, perhaps after hours, or not at all."""
    data.check_processes(trainer.world_size)
    check_batches(data, trainer)
    check_callbacks(trainer, logged_metrics(data, trainer))
    if checkpoint and callbacks_of(trainer, LearningRateFinder, BatchSizeFinder):
        raise UsageError("a finder would begin anew instead of resuming: give what it found as --lr or --batch_size")
    # StochasticWeightAveraging adds an epoch when training starts; OneCycle itself checks the length after that.
    if isinstance(schedule, OneCycle) and not callbacks_of(trainer, StochasticWeightAveraging):
        if checkpoint and "OneCycle" in checkpoint.callbacks:
            schedule.load_state_dict(checkpoint.callbacks["OneCycle"])
        schedule.check_length(num_steps(data, trainer))


def check_resume(checkpoint: Checkpoint, model: LightningModule, settings: Mapping[str, Any], run_dir: Path) -> None:
    """Raises UsageError for another network or optimizer, a shorter run, or an epoch whose other batches would change.

    A run does not change its recipe or data; one with a ``run_dir`` of its own may begin with another's checkpoint.
    """
    checkpoint.check_fits(model)
    epochs, steps = (settings[name] or -1 for name in ("max_epochs", "max_steps"))
    added = "StochasticWeightAveraging" in checkpoint.callbacks  # an epoch, of Lightning's own
    if 0 <= epochs < checkpoint.epochs - added or 0 <= steps < checkpoint.next_step:
        done = f"{checkpoint.epochs} epochs and {checkpoint.next_step} steps"
        raise UsageError(f"{checkpoint.path} has {done} behind it: give a --max_epochs and --max_steps of no less")
    checkpoint.check_same(settings, {"optimizer"}, "resume it with that")
    if checkpoint.is_of(run_dir):
        checkpoint.check_same(settings, {"recipe", "data"}, "resume it with that, or give another --run_dir")
    if checkpoint.inside_epoch is not None:
        advice = f"it was saved inside epoch {checkpoint.inside_epoch}: resume with that, or from an epoch's end"
        checkpoint.check_same(settings, OF_AN_EPOCH, advice)


def check_batches(data: CIFAR10DataModule, trainer: Trainer) -> None:
    """Raises UsageError where Lightning would, perhaps hours later, for a part of the batches that is none."""
    for stage, of_all in data.num_batches.items():
        limit = getattr(trainer, f"limit_{stage}_batches")
        if isinstance(limit, float) and 0 < limit * of_all < 1:
            raise UsageError(f"--limit_{stage}_batches {limit:g} of {of_all} batches is less than one: give more")
    interval = getattr(trainer, "val_check_interval", None)  # missing where it is a time
    batches = batches_per_epoch(data, trainer)
    if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
        raise UsageError(f"--val_check_interval is {interval}, but an epoch has {batches} batches: give at most that")


def logged_metrics(data: CIFAR10DataModule, trainer: Trainer) -> list[str]:
    """The names that callbacks can monitor in this run."""
    names = ["train/loss", "train/acc", "train/loss_step", "lr", "lr_step"]
    if data.probe_train:
        names += [f"trajectory/{name}" for name in ("path", "displacement", "gradient", "mean_gradient")]
    if trainer.limit_val_batches and (data.val_size or data.test_each_epoch or data.probe_train):
        names += [f"{part}/{name}" for part in ("val", "probe")[: 1 + data.probe_train] for name in ("loss", "acc")]
    return names


def batches_per_epoch(data: CIFAR10DataModule, trainer: Trainer) -> int:
    """Training batches of an epoch, as far as ``--limit_train_batches`` leaves them."""
    of_all, limit = data.num_batches["train"], trainer.limit_train_batches
    return min(of_all, limit) if isinstance(limit, int) else int(of_all * limit)


def num_steps(data: CIFAR10DataModule, trainer: Trainer) -> float:
    """Optimizer steps of the whole training run, as Lightning counts them; infinite where only ``--max_time`` ends it.

    An epoch's last step may be of fewer batches than ``--accumulate_grad_batches``.
    """
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    steps = epochs * math.ceil(batches_per_epoch(data, trainer) / trainer.accumulate_grad_batches)
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def compiles(cfg: Namespace, data: CIFAR10DataModule, trainer: Trainer) -> bool:
    """What ``--compile`` says, or for "auto" whether the run is long enough and the machine gains by it.

    Each size of the images is compiled for itself, in 25 to 50 s the first time on two CPU cores, in 5 s later.
    """
    if cfg.compile is True and sys.platform == "linux" and not has_compiler():
        raise UsageError("--compile true needs g++ and Python's headers: install them, or leave out --compile")
    if cfg.compile != "auto":
        return bool(cfg.compile)
    batches = num_steps(data, trainer) * trainer.accumulate_grad_batches / max(1, len(data.image_sizes))
    repays = batches >= 3_000 and gains_by_compilation(trainer.strategy.root_device)
    if repays:
        torch._dynamo.config.suppress_errors = True  # a compiler that fails after all costs speed, not the run
    return repays
