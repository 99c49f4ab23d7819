"""The folder of a run: which one, whether it may be used, what it is resumed from, its config.yaml."""

import os
import sys
import zipfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_only

from callbacks.atomic import write_atomically
from scripts.cli import Parser, UserError, is_rank_zero


@dataclass(frozen=True)
class Checkpoint:
    """What the scripts look at before Lightning loads a checkpoint.

    ``next_step`` is the first step that the loggers will see: a curve fit's count epochs, a classifier's batches.
    ``settings`` are the hyperparameters of the model and of the data that it was trained with, as far as it has them.
    """

    path: Path
    shapes: dict[str, torch.Size]
    next_step: int
    settings: dict[str, Any]
    dtype: torch.dtype

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Raises UserError where there is no whole checkpoint of this program. Runs no code of the file's."""
        if not path.is_file():
            raise UserError(f"there is no checkpoint {path}: give another --ckpt_path, or leave it out to start anew")
        try:
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise ValueError(f"the checksum of {broken} is wrong")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            content["loops"], content["optimizer_states"]
            shapes = {name: value.shape for name, value in content["state_dict"].items()}
            dtype = next(iter(content["state_dict"].values())).dtype
            settings = {**content.get("hyper_parameters", {}), **content.get("datamodule_hyper_parameters", {})}
            step = content["epochs_done"] + 1 if "epochs_done" in content else content["global_step"]
            return cls(path, shapes, step, settings, dtype)
        except Exception as error:
            raise UserError(f"{path} is not a whole checkpoint of this program ({type(error).__name__})") from None

    @classmethod
    def newest(cls, folder: Path) -> "Checkpoint":
        """The whole checkpoint of ``folder`` that has come furthest; of two as far, ``last.ckpt``.

        Says so when that is not ``last.ckpt``. Raises UserError where there is none.
        """
        last = folder / "last.ckpt"
        found: list[Checkpoint] = []
        for path in sorted(folder.glob("*.ckpt"), key=lambda path: path == last):
            try:
                found.append(cls.read(path))
            except UserError as error:
                if is_rank_zero():
                    print(f"Passed over: {error}", file=sys.stderr)
        if not found:
            return cls.read(last)
        newest = max(reversed(found), key=lambda checkpoint: checkpoint.next_step)
        if newest.path != last and is_rank_zero():
            print(f"Going on from {newest.path}, the newest whole checkpoint", file=sys.stderr)
        return newest


def check_fits(checkpoint: Checkpoint | None, model: LightningModule) -> None:
    """Raises UserError unless the checkpoint, if there is one, holds the weights of this network."""
    if checkpoint and checkpoint.shapes != {name: value.shape for name, value in model.state_dict().items()}:
        raise UserError(f"{checkpoint.path} is of another network: resume it with the settings of its config.yaml")


def resolve_run_dir(cfg: Namespace, default: str) -> tuple[Path, Checkpoint | None]:
    """The run directory, not yet made, and the checkpoint to resume from; each of several seeds has its own.

    Raises:
        UserError: the directory holds a run that is not being resumed, or there is no such checkpoint.
    """
    if cfg.run_dir is None:
        if cfg.ckpt_path == "last":
            raise UserError("--ckpt_path last needs --run_dir, the run to go on with")
        # Processes that Lightning starts for other devices run this again, and must find the same folder.
        cfg.run_dir = os.environ.setdefault(
            "LITLAB_RUN_DIR", os.path.join(default, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        )
    run_dir = Path(cfg.run_dir)
    folder = run_dir / "checkpoints"
    begun = (run_dir / "config.yaml").exists()
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and begun:
        cfg.ckpt_path = "last"  # SLURM starts a job that it put back into the queue by the same command line
    checkpoint = None
    if cfg.ckpt_path == "last":
        # A run that was stopped before its first checkpoint goes on at its beginning, perhaps another run's checkpoint.
        if any(folder.glob("*.ckpt")) or not begun:
            checkpoint = Checkpoint.newest(folder)
        elif origin := began_from(run_dir):
            checkpoint = Checkpoint.read(Path(origin))
    elif cfg.ckpt_path is not None:
        checkpoint = Checkpoint.read(Path(cfg.ckpt_path))
    goes_on = cfg.ckpt_path == "last" or (checkpoint and run_dir.resolve() in checkpoint.path.resolve().parents)
    if is_rank_zero() and begun and not goes_on:
        raise UserError(f"{run_dir} holds a run already: choose another --run_dir, or go on with --ckpt_path last")
    return run_dir, checkpoint


def began_from(run_dir: Path) -> str | None:
    """The checkpoint of another run with which the run in ``run_dir`` began, if it did."""
    path = run_dir / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        return None if settings is None else settings.get("ckpt_path")
    except (yaml.YAMLError, AttributeError):
        raise UserError(f"{path} is damaged: start anew with another --run_dir") from None


_claims: list[FileLock] = []  # held until the process ends, or is killed


@rank_zero_only
def claim(run_dir: Path) -> None:
    """Makes ``run_dir`` this process's own, and removes what a killed one left half written.

    Raises UserError where another process has it. A resumed run gives TensorBoard all its points once more, so the old
    event files go.
    """
    if any(Path(lock.lock_file) == run_dir / ".lock" for lock in _claims):
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{run_dir} is in use by another process: wait for it, or choose another --run_dir") from None
    except NotImplementedError:  # a file system without locks
        return
    _claims.append(lock)
    for left in (*run_dir.glob(".*.tmp"), *run_dir.glob("checkpoints/.*.tmp"), *run_dir.glob("events.out.tfevents.*")):
        left.unlink(missing_ok=True)


# what may change in the middle of a run without making another run of it
_MAY_CHANGE = (
    "max_epochs",
    "max_steps",
    "max_time",
    "epochs",
    "save_every_n_steps",
    "enable_progress_bar",
    "num_seeds",
)


@rank_zero_only
def start_run(parser: Parser, cfg: Namespace, run_dir: Path) -> None:
    """Claims ``run_dir`` and writes config.yaml, the first file of a run: all settings but where the run goes.

    A checkpoint is one of the settings where the run begins with one of another run, not where it is resumed.

    Says so when a run goes on with other settings than it began with.
    """
    claim(run_dir)
    settings = cfg.clone()
    for key in ("config", "run_dir", "ckpt_path"):
        settings.pop(key, None)
    path = run_dir / "config.yaml"
    if cfg.ckpt_path not in (None, "last") and run_dir.resolve() not in Path(cfg.ckpt_path).resolve().parents:
        settings.ckpt_path = str(Path(cfg.ckpt_path).resolve())
    elif path.exists() and (origin := began_from(run_dir)):
        settings.ckpt_path = origin
    if path.exists():
        before = parser.parse_path(path, defaults=True)
        changed = [
            f"{k} {before[k]} -> {v}" for k, v in settings.items() if k not in _MAY_CHANGE and before.get(k) != v
        ]
        if changed:
            print(f"Not the run that it was: {', '.join(changed)}", file=sys.stderr)
    text = parser.dump(settings, skip_none=False)
    write_atomically(path, lambda file: file.write(text.encode()))
