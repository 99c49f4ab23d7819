"""Run: the folder of a run, its settings, the checkpoint that it is resumed from, and what is known of it in all."""

import atexit
import os
import shutil
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningModule, Trainer

from analysis.files import write_atomically
from cli.command import UsageError, command_line, is_rank_zero, print_once, quoted
from cli.parser import Parser

# The settings that may differ when a run is resumed: where things are, how it is shown, and the machine.
MAY_DIFFER = set(
    "ckpt_path data_root download default_root_dir logger callbacks profiler plugins log_every_n_steps "
    "save_every_n_steps enable_progress_bar enable_model_summary limit_test_batches accelerator strategy devices "
    "num_nodes benchmark detect_anomaly".split()
)
# Its length too, unless the run is a function of it.
LENGTH = {"epochs", "max_epochs", "max_steps", "max_time", "min_epochs", "min_steps"}
# And those that may differ in another run that begins with its checkpoint.
BRANCH = {"milestones", "milestone_unit"}


@dataclass(frozen=True)
class SavedRun:
    """What the commands look at before Lightning loads a checkpoint."""

    path: Path
    run: dict[str, Any]  # the state of its Run
    global_step: int  # Lightning's
    next_step: int  # the first that the loggers will see: an epoch of a curve fit, a batch of a classifier
    epochs: int  # how many are done
    is_stopped: bool  # before its length

    @classmethod
    def read(cls, path: Path) -> "SavedRun":
        """Raises UsageError where there is no valid checkpoint of this program. Runs no code in the file."""
        try:
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise ValueError(f"the checksum of {broken} is wrong")
            content = torch.load(path, map_location="cpu", weights_only=True)  # no mmap: Windows keeps mapped files
            step = content["global_step"]
            next_step = content["epochs_done"] + 1 if "epochs_done" in content else step
            epochs, states = content["loops"]["fit_loop"]["epoch_progress"]["current"], content["callbacks"]
            return cls(path, states["Run"], step, next_step, epochs["processed"], states["SaveLast"]["is_stopped"])
        except Exception as error:  # a file can be broken in any way
            raise UsageError(f"{path} is no valid checkpoint of this program ({type(error).__name__})") from None

    @classmethod
    def valid(cls, folder: Path) -> list["SavedRun"]:
        """All of a folder, the one that has come furthest last; a damaged one is skipped with a line."""
        valid = []
        for path in sorted(folder.glob("*.ckpt")):
            try:
                valid.append(cls.read(path))
            except UsageError as error:
                print_once(f"Skipped: {error}", file=sys.stderr)
        return sorted(valid, key=lambda each: each.next_step)


class Run(Callback):
    """A run in a folder of its own, with all its settings as plain values, and what it is resumed from, if anything.

    ``top`` is the folder of all seeds' runs; ``start`` is when this one began, by ``time.perf_counter()``. Raises
    UsageError for a folder that is another run's or in use, and for a checkpoint of other settings.
    """

    def __init__(self, parser: Parser, cfg: Namespace, folder: Path, top: Path, start: float) -> None:
        self.folder, self.config, self.checkpoints = folder, folder / "config.yaml", folder / "checkpoints"
        self.settings, self._resume = plain_settings(parser, cfg), command_line(resumes=top)
        self.origin: dict[str, Any] | None = None  # the run with whose checkpoint this one began
        self.saving = {  # of SaveLast
            "folder": self.checkpoints,
            "every_n_steps": cfg.save_every_n_steps,
            "advice": f"To resume: {self._resume}",
            "requeues": cfg.run_dir is not None,
        }
        self._has_begun = False
        self._abandoned: list[Path] = []  # later checkpoints of a run that is rewound
        self.is_stopped = False  # before its length, by a callback, and not asked for another length
        if is_rank_zero() and not (folder.exists() and any(folder.iterdir())):
            parents = [parent for parent in folder.parents if cfg.run_dir is None or not parent.exists()]
            atexit.register(self._remove_unused, parents)
        self._start = start
        self.checkpoint = self._checkpoint_to_resume(cfg.ckpt_path)
        self.ckpt_path = self.checkpoint.path if self.checkpoint else None
        if self.checkpoint:
            self._continue(self.checkpoint, cfg.ckpt_path == "last")
        if is_rank_zero():
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock", timeout=0)
            try:
                self._lock.acquire()
            except Timeout:
                raise UsageError(f"{folder} is in use by another process: wait, or choose another --run_dir") from None
            except NotImplementedError:  # a disk without locks, as of some clusters
                pass

    def _is_own(self, checkpoint: SavedRun) -> bool:
        return self.folder.resolve() in checkpoint.path.resolve().parents

    def _checkpoint_to_resume(self, ckpt_path: str | None) -> SavedRun | None:
        """What ``--ckpt_path`` names; for "last" the latest of the folder, or what the run there began with."""
        is_requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # by the command line that it was started with
        if ckpt_path == "last" or (is_requeued and self.config.exists()):
            has_results = (self.folder / "summary.json").exists()
            # A run that was stopped before its first checkpoint begins anew, perhaps with another run's checkpoint.
            if self.config.exists() and not has_results and not any(self.checkpoints.glob("*.ckpt")):
                origin = read_settings(self.config).get("ckpt_path")
                return SavedRun.read(Path(origin)) if origin else None
            if valid := SavedRun.valid(self.checkpoints):
                return valid[-1]
            raise UsageError(f"there is no valid checkpoint in {self.checkpoints}: leave out --ckpt_path to start anew")
        checkpoint = SavedRun.read(Path(ckpt_path).expanduser()) if ckpt_path is not None else None
        holds_runs = self.config.exists() or any(self.folder.glob("seed*/config.yaml"))
        is_own = checkpoint is not None and self._is_own(checkpoint)
        if holds_runs and is_rank_zero() and not is_own:  # for another process it may be this very run
            way_out = f"choose another --run_dir, or resume it: {self._resume}"
            raise UsageError(f"{self.folder} holds a run already: {way_out}")
        return checkpoint

    def _continue(self, checkpoint: SavedRun, is_latest: bool) -> None:
        before, now, may_differ = checkpoint.run["settings"], self.settings, set(MAY_DIFFER)
        if missing := sorted(before.keys() ^ now.keys()):
            raise UsageError(f"{checkpoint.path} is of another command or version: only one of them has {missing[:3]}")
        now["ckpt_path"], self.origin = before["ckpt_path"], checkpoint.run["origin"]
        if self._is_own(checkpoint):
            self.is_stopped = checkpoint.is_stopped and all(before.get(name) == now.get(name) for name in LENGTH)
            others = [] if is_latest else SavedRun.valid(self.checkpoints)
            self._abandoned = [each.path for each in others if each.next_step > checkpoint.next_step]
        else:
            now["ckpt_path"] = str(checkpoint.path.resolve())
            may_differ |= BRANCH
            self.origin = {"settings": before, "epochs": checkpoint.epochs}
        has_one_cycle = before.get("warmup_fraction") is not None and before["milestones"] is None
        depends_on_length = has_one_cycle or before.get("image_sizes") or before.get("grow_at")  # fractions of it
        if not depends_on_length:
            may_differ |= LENGTH
        self._start -= checkpoint.run["total_seconds"]
        changed = [name for name in now if before[name] != now[name] and name not in may_differ]
        if changed:
            changes = "; ".join(f"--{name} {before[name]}, not {now[name]}" for name in changed)
            raise UsageError(f"{checkpoint.path} was trained with {changes}: resume it with that")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning loads a checkpoint's weights before it converts the module: in 64-true they would be rounded.
        trainer.precision_plugin.convert_module(pl_module)

    def state_dict(self) -> dict[str, Any]:
        total_seconds = time.perf_counter() - self._start
        return {"settings": self.settings, "origin": self.origin, "total_seconds": total_seconds}

    def with_facts(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The content of summary.json: a record's, and what both commands say of a run in the same way."""
        if is_rank_zero() and not self.config.exists():  # nothing was trained
            write_settings(self.folder, self.settings)
        seconds = {**summary["seconds"], "total": time.perf_counter() - self._start}
        facts = {"command": command_line(), "settings": self.settings, "origin": self.origin}
        return {**summary, "seconds": seconds, **facts}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # LearningRateFinder and BatchSizeFinder lose the checkpoint's place, OnExceptionCheckpoint begins with its own.
        if trainer.global_step != (step := self.checkpoint.global_step if self.checkpoint else 0):
            raise UsageError(f"a callback begins at step {trainer.global_step}, not at {step}: do without it from here")

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        """After its first step a run has a config.yaml; a resumed one has no results, and no later checkpoints."""
        if trainer.is_global_zero and not self._has_begun:
            self._has_begun = True
            for path in self._abandoned:
                path.rename(path.with_suffix(".abandoned"))
            half_written = (*self.folder.glob(".*.tmp"), *self.folder.glob("checkpoints/.*.tmp"))  # when it was killed
            for path in (self.folder / "summary.json", *half_written):
                path.unlink(missing_ok=True)
            write_settings(self.folder, self.settings)

    def _remove_unused(self, parents: list[Path]) -> None:
        """A new folder in which nothing was trained goes as the process ends, and these that hold nothing else."""
        if not self.config.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # there is something else in it
                for parent in parents:
                    parent.rmdir()


def run_folder(cfg: Namespace, default: str) -> Path:
    """The folder that ``--run_dir`` names, or a new one below ``default`` that no other run has.

    Raises UsageError where none is named, for ``--ckpt_path last`` or processes that torchrun or SLURM have started.
    """
    asked = cfg.run_dir
    if asked is None and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        asked = os.environ.get("LITLAB_RUN_DIR")  # of the process that has started this one for another device
    if asked is not None:
        if "://" in str(asked):
            raise UsageError(f"--run_dir {asked} is a URL: give a folder of this machine")
        return Path(asked).expanduser()
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise UsageError("give --run_dir DIR: torchrun and srun start the processes of a run one by one")
    if cfg.ckpt_path == "last":
        raise UsageError(f"--ckpt_path last is the last of which run? Name its folder: --run_dir {default}/...")
    while True:
        folder = Path(default) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)  # who makes it has it, on any disk; another run has the next second's
            os.environ["LITLAB_RUN_DIR"] = str(folder)
            return folder
        time.sleep(0.1)


def saved_settings(cfg: Namespace) -> dict[str, Any]:
    """config.yaml of the run that is resumed, or with whose checkpoint a run begins; {} for a new one."""
    folders = [Path(cfg.run_dir).expanduser()] if cfg.run_dir else []
    folders += [Path(cfg.ckpt_path).expanduser().resolve().parent.parent] if cfg.ckpt_path else []
    paths = [path for f in folders for path in (f / "config.yaml", *f.glob("seed*/config.yaml"))]
    return next((read_settings(path) for path in paths if path.is_file()), {})


def plain_settings(parser: Parser, cfg: Namespace) -> dict[str, Any]:
    """All settings of a run as plain values, without where the run is and what it resumes."""
    settings = yaml.safe_load(parser.dump(cfg, skip_none=False))
    del settings["run_dir"]
    return settings | {"ckpt_path": None}


def read_settings(path: Path) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        return dict(yaml.safe_load(file) or {})


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes config.yaml."""
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", lambda file: file.write(text.encode()))


def where_to_look(folder: Path) -> str:
    """The last line of a training script."""
    return f"Figures and summary.json are in {folder}; TensorBoard: tensorboard --logdir {quoted(folder)}"
