"""Run: the folder of a run, its settings, and the checkpoint that it is resumed from."""

import itertools
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer

from analysis.files import write_atomically
from analysis.provenance import quoted
from cli.command import UsageError, is_rank_zero, print_once
from cli.parser import Parser

# The settings that may differ when a run is resumed: its length, where things are, how it is shown, and the machine.
MAY_DIFFER = set(
    "ckpt_path epochs max_epochs max_steps max_time min_epochs min_steps data_root download default_root_dir logger "
    "callbacks profiler plugins log_every_n_steps save_every_n_steps enable_progress_bar enable_model_summary "
    "limit_test_batches accelerator strategy devices num_nodes benchmark detect_anomaly".split()
)
# And those that may differ in another run that begins with its checkpoint.
MAY_DIFFER_IN_A_BRANCH = MAY_DIFFER | {"milestones", "milestone_unit"}


@dataclass(frozen=True)
class Checkpoint:
    """What the commands look at before Lightning loads a checkpoint.

    ``settings`` are those of the run that saved it. ``next_step`` is the first step that the loggers will see: those of
    a curve fit count epochs, a classifier's count batches. ``is_cut``: the run had ended inside an epoch.
    """

    path: Path
    settings: dict[str, Any]
    next_step: int
    is_cut: bool

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Raises UsageError where there is no valid checkpoint of this program. Runs no code in the file."""
        try:
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise ValueError(f"the checksum of {broken} is wrong")
            content = torch.load(path, map_location="cpu", weights_only=True)  # no mmap: Windows keeps mapped files
            # Of the record, see callbacks/record.py.
            settings = next(state["settings"] for state in content["callbacks"].values() if "settings" in state)
            step = content["epochs_done"] + 1 if "epochs_done" in content else content["global_step"]
            loop = content["loops"]["fit_loop"]
            epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
            has_ended = epochs["processed"] == epochs["started"]
            is_cut = has_ended and batches["current"]["completed"] > 0 and not batches["is_last_batch"]
            return cls(path, settings, step, is_cut)
        except Exception as error:  # a file can be broken in any way
            raise UsageError(f"{path} is no valid checkpoint of this program ({type(error).__name__})") from None

    @classmethod
    def latest(cls, folder: Path) -> "Checkpoint":
        """``last.ckpt``, or if it is damaged the newest valid one. UsageError where there is none."""
        others = set(folder.glob("*.ckpt")) - {folder / "last.ckpt"}
        for path in [folder / "last.ckpt", *sorted(others, key=os.path.getmtime, reverse=True)]:
            try:
                return cls.read(path)
            except UsageError as error:
                print_once(f"Skipped: {error}")
        raise UsageError(f"there is no valid checkpoint in {folder}: leave out --ckpt_path to start anew")


class Run:
    """A run in a folder of its own, with all its settings as plain values, and what it is resumed from, if anything.

    Raises:
        UsageError: the folder holds a run that is not being resumed, another process has it, there is no such
            checkpoint, or the checkpoint's run had settings that may not differ.
    """

    def __init__(self, parser: Parser, cfg: Namespace, folder: Path) -> None:
        self.folder, self.settings = folder, plain_settings(parser, cfg)
        self.named = Path(cfg.run_dir).expanduser() if cfg.run_dir else folder  # with several seeds the folder of all
        checkpoint = self.checkpoint = self._checkpoint_to_resume(cfg.ckpt_path)
        self.is_branch = checkpoint is not None and not self._is_own(checkpoint)
        if checkpoint:
            origin = str(checkpoint.path.resolve()) if self.is_branch else checkpoint.settings["ckpt_path"]
            self.settings["ckpt_path"] = origin  # the checkpoint of another run with which this one began
            self._check_settings(checkpoint)
            if checkpoint.is_cut:
                print_once(f"{checkpoint.path}: its run ended inside an epoch, the rest of which is left out")
        if is_rank_zero():
            self._lock = locked(folder)

    @property
    def ckpt_path(self) -> Path | None:
        return self.checkpoint.path if self.checkpoint else None

    def _is_own(self, checkpoint: Checkpoint) -> bool:
        return self.folder.resolve() in checkpoint.path.resolve().parents

    def _checkpoint_to_resume(self, ckpt_path: str | None) -> Checkpoint | None:
        """What ``--ckpt_path`` names; for "last" the latest of the folder, or what the run there began with.

        A job that SLURM has put back into the queue resumes by the command line that it was started with.
        """
        folder, config = self.folder / "checkpoints", self.folder / "config.yaml"
        if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and config.exists():
            ckpt_path = "last"
        if ckpt_path == "last":
            # A run that was stopped before its first checkpoint begins anew, perhaps with another run's checkpoint.
            if config.exists() and not any(folder.glob("*.ckpt")) and not (self.folder / "summary.json").exists():
                origin = yaml.safe_load(config.read_text(encoding="utf-8"))["ckpt_path"]
                return Checkpoint.read(Path(origin)) if origin else None
            return Checkpoint.latest(folder)
        checkpoint = Checkpoint.read(Path(ckpt_path).expanduser()) if ckpt_path is not None else None
        holds_runs = config.exists() or any(self.folder.glob("seed*/config.yaml"))
        is_resumed = checkpoint is not None and self._is_own(checkpoint)
        if holds_runs and not is_resumed and is_rank_zero():  # for another process it may be this very run
            raise UsageError(
                f"{self.folder} holds a run already: choose another --run_dir, or resume it: --ckpt_path last"
            )
        return checkpoint

    def _check_settings(self, checkpoint: Checkpoint) -> None:
        before, now = checkpoint.settings, self.settings
        if before.keys() != now.keys():
            raise UsageError(f"{checkpoint.path} is of another command, or of another version of it")
        may_differ = MAY_DIFFER_IN_A_BRANCH if self.is_branch else MAY_DIFFER
        changed = [name for name in now if before[name] != now[name] and name not in may_differ]
        if changed:
            changes = "; ".join(f"--{name} {before[name]}, not {now[name]}" for name in changed)
            raise UsageError(f"{checkpoint.path} was trained with {changes}: resume it with that")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes config.yaml. Results of a run that is resumed go: it has none until it ends."""
        if trainer.is_global_zero:
            half_written = (*self.folder.glob(".*.tmp"), *self.folder.glob("checkpoints/.*.tmp"))  # when it was killed
            for path in (self.folder / "summary.json", *half_written):
                path.unlink(missing_ok=True)
            write_settings(self.folder, self.settings)

    def how_to_resume(self) -> str:
        return f"To resume: repeat the command with --run_dir {quoted(self.named)} --ckpt_path last"


@contextmanager
def open_run(parser: Parser, cfg: Namespace, folder: Path) -> Iterator[Run]:
    """A Run; where nothing has been trained in it, a folder that was new is removed again."""
    is_new, run = not folder.exists() or not any(folder.iterdir()), None
    try:
        run = Run(parser, cfg, folder)
        yield run
    except BaseException:
        if run and is_new and is_rank_zero() and not (folder / "config.yaml").exists():
            shutil.rmtree(folder, ignore_errors=True)
        for empty in (folder, folder.parent):
            with suppress(OSError):  # it is gone, or there is something in it
                empty.rmdir()
        raise


def run_folder(cfg: Namespace, default: str) -> Path:
    """The folder that ``--run_dir`` names, or a new one below ``default`` that no other run has.

    Raises:
        UsageError: none is named where torchrun or SLURM have started several processes, or for ``--ckpt_path last``.
    """
    asked = cfg.run_dir
    if asked is None and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        asked = os.environ.get("LITLAB_RUN_DIR")  # of the process that has started this one for another device
    if asked is not None:
        return Path(asked).expanduser()
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise UsageError("give --run_dir DIR: torchrun and srun start the processes of a run one by one")
    if cfg.ckpt_path == "last":
        raise UsageError(f"--ckpt_path last is the last of which run? Name its folder: --run_dir {default}/...")
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        folder = Path(default) / (time if number == 1 else f"{time}_{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)  # who makes it has it, on any disk
            os.environ["LITLAB_RUN_DIR"] = str(folder)
            break
    return folder


def locked(folder: Path) -> FileLock:
    """Makes the folder and locks it for as long as the lock lives; on a disk without locks says so and goes without.

    Raises:
        UsageError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{folder} is in use by another process: wait for it, or choose another --run_dir") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        print_once(f"{folder} is on a disk without file locks: start no second process on it")
    return lock


def plain_settings(parser: Parser, cfg: Namespace) -> dict[str, Any]:
    """All settings of a run as plain values, without where the run is and what it resumes."""
    settings: dict[str, Any] = yaml.safe_load(parser.dump(cfg, skip_none=False))
    del settings["run_dir"]
    return settings | {"ckpt_path": None}


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes config.yaml."""
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", lambda file: file.write(text.encode()))


def where_to_look(folder: Path) -> str:
    """The last line of a training script."""
    return f"Figures and summary.json are in {folder}; TensorBoard: tensorboard --logdir {quoted(folder)}"
