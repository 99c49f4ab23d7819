"""The folder of a run: which one, whether it may be used, what it is resumed from, its config.yaml."""

import errno
import json
import os
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
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
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from analysis.files import write_atomically
from analysis.provenance import quoted
from analysis.runs import LENGTH
from scripts.commandline import Parser, is_rank_zero, usage_errors

# what may change in the middle of a run without making another run of it
MAY_CHANGE = LENGTH | {"epochs", "data_root", "download", "save_every_n_steps", "enable_progress_bar"}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass(frozen=True)
class Checkpoint:
    """What the scripts look at before Lightning loads a checkpoint.

    ``next_step`` is the first step that the loggers will see: a curve fit's count epochs, a classifier's batches.
    ``epochs`` have begun; ``inside_epoch`` is the one in whose middle it was saved, or None, and ``is_cut`` whether the
    run had ended in the middle of an epoch. ``settings`` are those of the run that saved it, and ``callbacks`` what its
    callbacks keep.
    """

    path: Path
    shapes: dict[str, torch.Size]
    next_step: int
    epochs: int
    callbacks: dict[str, dict[str, Any]]
    inside_epoch: int | None
    is_cut: bool

    @property
    def settings(self) -> dict[str, Any]:
        return next((state["settings"] for state in self.callbacks.values() if "settings" in state), {})

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Raises UsageError where there is no valid checkpoint of this program. Runs no code of the file's."""
        if not path.is_file():
            raise UsageError(f"there is no checkpoint {path}: give another --ckpt_path, or leave it out to start anew")
        try:
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise ValueError(f"the checksum of {broken} is wrong")
            content = torch.load(path, map_location="cpu", weights_only=True)  # no mmap: Windows keeps mapped files
            content["optimizer_states"]
            loop = content["loops"]["fit_loop"]
            epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
            inside = epochs["completed"] if epochs["processed"] < epochs["started"] else None
            is_cut = inside is None and batches["current"]["completed"] > 0 and not batches["is_last_batch"]
            shapes = {name: value.shape for name, value in content["state_dict"].items()}
            step = content["epochs_done"] + 1 if "epochs_done" in content else content["global_step"]
            return cls(path, shapes, step, epochs["started"], content.get("callbacks", {}), inside, is_cut)
        except Exception as error:
            raise UsageError(f"{path} is not a valid checkpoint of this program ({type(error).__name__})") from None

    @classmethod
    def latest(cls, folder: Path) -> "Checkpoint":
        """The latest valid checkpoint of ``folder``; of two of the same step ``last.ckpt``.

        Says so when that is not ``last.ckpt``. Raises UsageError where there is none.
        """
        last = folder / "last.ckpt"
        found: list[Checkpoint] = []
        for path in sorted(folder.glob("*.ckpt")):
            try:
                found.append(cls.read(path))
            except UsageError as error:
                if is_rank_zero():
                    print(f"Skipped: {error}", file=sys.stderr)
        if not found:
            return cls.read(last)
        latest = max(found, key=lambda checkpoint: (checkpoint.next_step, checkpoint.path == last))
        if latest.path != last and is_rank_zero():
            print(f"Resuming from {latest.path}, the latest valid checkpoint", file=sys.stderr)
        return latest

    def is_of(self, run_dir: Path) -> bool:
        """Whether the run in ``run_dir`` saved it."""
        return run_dir.resolve() in self.path.resolve().parents

    def check_fits(self, model: LightningModule) -> None:
        """Raises UsageError unless it holds the weights of this network."""
        if self.shapes != {name: value.shape for name, value in model.state_dict().items()}:
            raise UsageError(f"{self.path} is of another network: resume it with the settings of its config.yaml")

    def check_same(self, settings: Mapping[str, Any], names: Collection[str], advice: str) -> None:
        """Raises UsageError, with this advice, where one of the named settings is not that of the run that saved it."""
        changes = [
            f"--{name} {as_typed(before)}, not {as_typed(now)}"
            for name, (before, now) in changed_settings(self.settings, settings).items()
            if name in names
        ]
        if changes:
            raise UsageError(f"{self.path} was trained with {'; '.join(changes)}; {advice}")


def as_typed(value: object) -> str:
    """A setting as it is written behind its flag."""
    if isinstance(value, list):
        return " ".join(map(as_typed, value))
    return value if isinstance(value, str) else json.dumps(value)


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (before, now)} of those by which two runs differ, other than in their length."""
    both = {name: (before[name], value) for name, value in now.items() if name in before}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1] and name not in MAY_CHANGE}


@contextmanager
def run_directory(asked: str | None, default: str, ckpt_path: str | None = None) -> Iterator[Path]:
    """The run's folder: the one asked for, or a new one below ``default`` that no other run has.

    Processes that Lightning starts for other devices find it in their environment. A new folder that an error has left
    empty is removed again.

    Raises:
        UsageError: the name asked for is empty; none is asked for where many processes were started by torchrun or
            SLURM, or where its last checkpoint is to be resumed; or a name on the command line is not UTF-8.
    """
    try:
        "\n".join((os.getcwd(), *sys.argv)).encode()
    except UnicodeEncodeError as error:
        name = error.object[: error.end].splitlines()[-1]
        raise UsageError(f"{name}... is not UTF-8, as TensorBoard needs names to be: rename it") from None
    if asked is None and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        asked = os.environ.get("LITLAB_RUN_DIR")
    if asked is not None:
        if not asked.strip():
            raise UsageError("--run_dir is empty: give the name of a folder")
        yield Path(asked).expanduser()
        return
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise UsageError("give --run_dir DIR: torchrun and srun start the processes of a run one by one")
    if ckpt_path == "last":
        raise UsageError(f"--ckpt_path last is the last of which run? Name its folder: --run_dir {default}/...")
    run_dir = new_folder(Path(default) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    os.environ["LITLAB_RUN_DIR"] = str(run_dir)
    try:
        yield run_dir
    except BaseException:
        with suppress(OSError):
            run_dir.rmdir()
        raise


def new_folder(path: Path) -> Path:
    """Makes ``path``, or the first of path_2, path_3, ... that is not there; who makes it has it, on any disk."""
    number = 1
    while True:
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise
            number += 1


def checkpoint_to_resume(run_dir: Path, ckpt_path: str | None) -> Checkpoint | None:
    """What ``--ckpt_path`` names; for "last" the latest of ``run_dir``, or what the run there began with.

    A job that SLURM has put back into the queue resumes by the command line that it was started with.

    Raises:
        UsageError: ``run_dir`` holds a run that is not being resumed, or there is no such checkpoint.
    """
    folder, begun = run_dir / "checkpoints", (run_dir / "config.yaml").exists()
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and begun:
        ckpt_path = "last"
    checkpoint = None
    if ckpt_path == "last":
        # A run that was stopped before its first checkpoint begins anew, perhaps with another run's checkpoint.
        if any(folder.glob("*.ckpt")) or not begun:
            checkpoint = Checkpoint.latest(folder)
        elif origin := began_with(run_dir):
            checkpoint = Checkpoint.read(Path(origin))
        elif (run_dir / "summary.json").exists() and not any(run_dir.glob("seed*/config.yaml")):
            raise UsageError(f"{run_dir} is finished and has no checkpoint to resume: give another --run_dir")
    elif ckpt_path is not None:
        checkpoint = Checkpoint.read(Path(ckpt_path).expanduser())
    resumes = ckpt_path == "last" or (checkpoint and checkpoint.is_of(run_dir))
    if is_rank_zero() and begun and not resumes:
        raise UsageError(f"{run_dir} holds a run already: choose another --run_dir, or resume it: --ckpt_path last")
    return checkpoint


def began_with(run_dir: Path) -> str | None:
    """The checkpoint of another run with which the run in ``run_dir`` began, if it did."""
    path = run_dir / "config.yaml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")).get("ckpt_path") if path.exists() else None
    except (yaml.YAMLError, AttributeError):
        raise UsageError(f"{path} is damaged: start anew with another --run_dir") from None


def plain_settings(parser: Parser, cfg: Namespace) -> dict[str, Any]:
    """All settings of a run as plain values: what config.yaml holds, without where the run is and what it resumes."""
    kept = cfg.clone()
    for key in ("config", "run_dir", "ckpt_path"):
        kept.pop(key, None)
    with usage_errors():
        settings: dict[str, Any] = yaml.safe_load(parser.dump(kept, skip_none=False))
    return settings


@rank_zero_only
def start_run(settings: Mapping[str, Any], run_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Writes config.yaml, the first file of a run.

    Results of a run that is resumed go: it has none until it ends again. What a killed process left half written goes
    too. A checkpoint of another run, with which this one begins, is one of the settings. Says so when a run is resumed
    with other settings than it was saved with, or where it had ended inside an epoch.
    """
    is_own = checkpoint is not None and checkpoint.is_of(run_dir)
    if checkpoint and is_own and (changes := changed_settings(checkpoint.settings, settings)):
        changed = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changes.items())
        print(f"Resumed with other settings: {changed}", file=sys.stderr)
    if checkpoint and checkpoint.is_cut:
        print(f"{checkpoint.path}: its run ended inside an epoch, the rest of which is left out", file=sys.stderr)
    half_written = (*run_dir.glob(".*.tmp"), *run_dir.glob("checkpoints/.*.tmp"))
    for left in (run_dir / "summary.json", *half_written, *event_files_of_results(run_dir)):
        try:
            left.unlink(missing_ok=True)
        except PermissionError:  # Windows keeps a file that a program has open
            if left.suffix == ".json":
                raise UsageError(f"{left} would go, but is open in another program: close it there") from None
            print(f"{left} is out of date, but open in another program: remove it later", file=sys.stderr)
    content = dict(settings)
    if checkpoint and not is_own:
        content["ckpt_path"] = str(checkpoint.path.resolve())
    elif origin := began_with(run_dir):
        content["ckpt_path"] = origin
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_atomically(run_dir / "config.yaml", lambda file: file.write(text.encode()))


def where_to_look(run_dir: Path) -> str:
    """The last line of a training script."""
    shown = "all runs: tensorboard --logdir runs"
    if run_dir.parts[:1] != ("runs",):
        shown = f"TensorBoard: tensorboard --logdir {quoted(run_dir)}"
    return f"Figures and summary.json are in {run_dir}; {shown}"


def event_files_of_results(run_dir: Path) -> list[Path]:
    """TensorBoard's files from after a training run: test, figures. They are all but the first file of each process.

    Lightning closes the writer when ``fit`` ends; names end in ``time.host.process.writer``, the writers of a process
    being counted from 0. In a container each process may have the same number, but counts anew.
    ``purge_step`` does not reach them: TensorBoard's fast reader drops what is not older only tag by tag.
    """
    results: list[Path] = []
    latest: dict[str, int] = {}
    paths = run_dir.glob("events.out.tfevents.*.*.*.*")
    for path in sorted(paths, key=lambda path: (int(path.name.split(".")[3]), int(path.suffix[1:]))):
        process, writer = path.stem.split(".", 4)[4], int(path.suffix[1:])
        if writer > latest.get(process, writer):
            results.append(path)
        latest[process] = writer
    return results


_claims: list[FileLock] = []  # held until the process ends, or is killed


@rank_zero_only
def claim(run_dir: Path) -> None:
    """Makes ``run_dir`` and locks it until this process ends; on a disk without locks, says so and goes without.

    Raises:
        UsageError: another process has it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock", is_singleton=True)  # that this process has it already does no harm
    try:
        lock.acquire(timeout=0)
        _claims.append(lock)
    except Timeout:
        raise UsageError(f"{run_dir} is in use by another process: wait for it, or choose another --run_dir") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        print(f"{run_dir} is on a disk without file locks: start no second process on it", file=sys.stderr)
