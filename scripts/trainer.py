"""Lightning's Trainer from its flags, with the loggers, checkpoints and progress bar of a run added."""

import csv
import io
import os
import shutil
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelPruning, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from analysis.files import write_atomically
from callbacks.checkpointing import AtomicCheckpointIO, SaveLast, SaveOnInterrupt, steps_done
from scripts.commandline import Parser, arguments, is_rank_zero, usage_errors
from scripts.run_dir import Checkpoint, claim

LIGHTNING = ("pytorch_lightning", "lightning_fabric")
CALLBACKS = "pytorch_lightning.callbacks."
UNFIT = {  # Lightning would say so after the first epoch
    ModelPruning: "needs layers' weight and bias in PyTorch's usual memory order, which these networks do not have",
    ProgressBar: "is a base class that shows nothing: give TQDMProgressBar",
}


def check_seeds(cfg: Namespace) -> None:
    """Raises UsageError unless there are seeds, and PyTorch takes all of them."""
    if cfg.num_seeds < 1:
        raise UsageError(f"--num_seeds is {cfg.num_seeds}; it must be at least 1")
    last = cfg.seed + cfg.num_seeds - 1
    if cfg.seed < 0 or last >= 2**32:
        raise UsageError(f"--seed is {cfg.seed}, with --num_seeds up to {last}; it must be from 0 to {2**32 - 1}")


def check_trainer_flags(cfg: Namespace) -> None:
    """Raises UsageError for values that Lightning would take, and then fail or do something else."""
    mps = cfg.accelerator == "gpu" and torch.backends.mps.is_available()
    if cfg.accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or mps):
        raise UsageError("there is no GPU that PyTorch can use on this machine: leave out --accelerator, or give cpu")
    if cfg.save_every_n_steps is not None and cfg.save_every_n_steps < 1:
        raise UsageError(f"--save_every_n_steps is {cfg.save_every_n_steps}; it must be at least 1")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval", "log_every_n_steps"):
        if isinstance(cfg[name], int | float) and cfg[name] <= 0:
            raise UsageError(f"--{name} is {cfg[name]}; it must be above 0")
    if any(word in str(cfg.strategy) for word in ("spawn", "fork", "notebook")):
        raise UsageError("a --strategy that spawns or forks keeps a run's results in its child processes: give ddp")
    if cfg.sync_batchnorm and (cfg.accelerator == "cpu" or not torch.cuda.is_available()):
        raise UsageError("--sync_batchnorm true is for GPUs only: leave it out")
    if cfg.barebones:
        raise UsageError("--barebones true logs no metrics, of which a run's results are made: leave it out")
    if cfg.num_nodes > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise UsageError("--num_nodes above 1 needs torchrun or srun, which start the run on each of the machines")


def check_callbacks(trainer: Trainer, logged: Collection[str]) -> None:
    """Raises UsageError where Lightning would after an epoch: a callback monitors a metric that is not ``logged``.

    Averages over an epoch are not there yet when a validation ends, after which some callbacks look. With a callback of
    the user's own, which may log any metric, only Lightning can tell.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for kind in UNFIT.keys() & {type(callback) for callback in callbacks}:
        raise UsageError(f"callback {kind.__name__} {UNFIT[kind]}")
    if not all(type(callback).__module__.startswith(("callbacks.", CALLBACKS)) for callback in callbacks):
        return
    validates_each_epoch = trainer.check_val_every_n_epoch == 1
    is_once_an_epoch = validates_each_epoch and getattr(trainer, "val_check_interval", None) == 1.0
    for callback in callbacks:
        asked = [getattr(callback, f"_{do}_on_train_epoch_end", None) for do in ("check", "save")]
        if True in asked or (is_once_an_epoch and False not in asked):
            known = [name for name in logged if validates_each_epoch or not name.startswith(("val/", "probe/"))]
        else:
            known = [name for name in logged if name.startswith(("val/", "probe/")) or name.endswith("_step")]
        monitor = getattr(callback, "monitor", None)
        if monitor not in (None, *known) and getattr(callback, "strict", True):
            name, names = type(callback).__name__, " ".join(sorted(known))
            raise UsageError(f"{name} monitors {monitor}, which is not there when it looks; it can monitor: {names}")


@contextmanager
def flag_errors(trainer: Trainer, checkpoint: Checkpoint | None, *folders: Path) -> Iterator[None]:
    """Around a run's start and ``trainer.fit``: what Lightning, or a callback of its own, refuses is a usage error.

    The ``folders`` become this process's own; if no step has been made, they are then again as they were. All else
    keeps its traceback: an error from below Lightning may be a bug.
    """
    folders = folders if is_rank_zero() else ()
    new = [folder for folder in folders if not folder.exists() or not any(folder.iterdir())]
    files = [folder / name for folder in folders for name in ("config.yaml", "summary.json")]
    before = {path: path.read_bytes() for path in files if path.exists()}
    for folder in folders:
        claim(folder)
    try:
        yield
    except Exception as error:
        modules = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
        callbacks = [name.removeprefix(CALLBACKS) for name in modules if name.startswith(CALLBACKS)]
        by_lightning = callbacks or modules[-1].startswith(LIGHTNING)
        if not isinstance(error, UsageError) and (isinstance(error, OSError) or not by_lightning):
            raise
        if steps_done(trainer) <= (checkpoint.next_step if checkpoint else 0):
            for path in files:
                if path in before:
                    path.write_bytes(before[path])
                else:
                    path.unlink(missing_ok=True)
            for folder in new:
                shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, UsageError):
            raise
        what = f"callback {callbacks[0]}" if callbacks else "a flag"
        raise UsageError(f"{what} does not fit this run: {str(error) or type(error).__name__}") from error


def build_trainer(
    parser: Parser,
    cfg: Namespace,
    run_dir: Path,
    callbacks: Sequence[Callback],
    bar: Callback,
    save_last: SaveLast,
    checkpoint: Checkpoint | None,
    resume_dir: Path,
    **instead: Any,
) -> Trainer:
    """A Trainer from ``cfg``; callbacks, loggers and plugins named there are added to those of a run in ``run_dir``.

    ``bar`` is shown where the output is a terminal. The way to resume names ``resume_dir``: run_dir, or the folder of
    all seeds. ``instead`` are arguments of the Trainer that take the place of their flags.

    Raises:
        UsageError: for flags that do not go together, or name what is not installed.
    """
    check_trainer_flags(cfg)
    seed_everything(cfg.seed, workers=True)
    with usage_errors():  # callbacks, loggers, ... that are named by their classes
        flags = arguments(Trainer, parser.instantiate(cfg)) | instead
    own = listed(flags["callbacks"])
    has_own_bar = any(isinstance(callback, ProgressBar) for callback in own)
    has_bar = flags["enable_progress_bar"] is not False and (sys.stdout.isatty() or has_own_bar)
    added = [bar] if has_bar and not has_own_bar else []
    if flags["enable_checkpointing"] is not False:
        added += [SaveOnInterrupt(save_last, resume_dir, requeues=cfg.run_dir is not None), save_last]
    flags |= {
        "logger": make_loggers(flags["logger"], run_dir, checkpoint),
        "callbacks": [*callbacks, *own, *added],
        "enable_progress_bar": has_bar,
        "plugins": [*listed(flags["plugins"]), AtomicCheckpointIO()],
        "default_root_dir": flags["default_root_dir"] or str(run_dir),
        "enable_model_summary": bool(flags["enable_model_summary"]),
        # cuDNN's fastest convolutions: the shapes stay the same
        "benchmark": not flags["deterministic"] if flags["benchmark"] is None else flags["benchmark"],
    }
    try:
        with usage_errors():
            return Trainer(**flags)
    except TypeError as error:  # a strategy or a duration takes other arguments
        raise UsageError(str(error)) from error


def make_loggers(asked: Any, run_dir: Path, checkpoint: Checkpoint | None) -> list[Logger]:
    """metrics.csv and TensorBoard of a run, which go on where the checkpoint is, and those that the user asked for."""
    if asked is False:
        return []
    first_step = checkpoint.next_step if checkpoint else 0
    folder = checkpoint.path.parents[1] if checkpoint else run_dir
    rows = [folder / name for name in ("metrics.csv", "metrics_new.csv")]  # the second while Excel kept the first
    history = max(rows, key=lambda path: path.stat().st_mtime if path.exists() else 0)
    board = Board(run_dir, name="", version="", default_hp_metric=False, purge_step=first_step)
    return [MetricsCSV(run_dir, first_step, history), board, *([] if asked is True else listed(asked))]


def listed(value: Any) -> list[Any]:
    """What Lightning takes as one thing, several or none, as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


class Board(TensorBoardLogger):
    """Lightning's, so that TensorBoard's first groups are curves: without ``epoch``, and with lr_step among train's."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        shown = {name: value for name, value in metrics.items() if name != "epoch"}
        super().log_metrics({"train/lr_step" if name == "lr_step" else name: v for name, v in shown.items()}, step)


class MetricsCSV(CSVLogger):
    """Lightning's metrics.csv, which a resumed run continues: it keeps the rows from before ``first_step``.

    Lightning's own logger begins anew in a folder that has been used, and rewrites the file in place.

    Args:
        run_dir: where metrics.csv is.
        first_step: the first step that is logged anew.
        history: the metrics.csv whose earlier rows are kept, this run's own or the one that it began with.
    """

    def __init__(self, run_dir: Path, first_step: int, history: Path) -> None:
        super().__init__(run_dir, name="", version="")
        self._experiment = MetricsRows(run_dir / "metrics.csv", read_rows(history, first_step))


class MetricsRows(ExperimentWriter):
    """The rows of a CSV file: new ones are appended; where they bring new columns, the file is replaced as a whole.

    To replace it each time would make a fit of 1,000 epochs, which saves 30 times, a quarter slower.
    """

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]]) -> None:  # not Lightning's, which deletes the file
        self.path, self.metrics = path, list(rows)
        self._written, self._columns = 0, set[str]()

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """They are in config.yaml."""

    def save(self) -> None:
        new = self.metrics[self._written :]
        if not new:
            return
        columns = self._columns.union(*new)
        if columns != self._columns or not self._append(new):
            self.path = write_atomically(self.path, lambda file: file.write(as_csv(self.metrics, columns).encode()))
        self._written, self._columns = len(self.metrics), columns

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """False where Excel has the file open on Windows."""
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, sorted(self._columns)).writerows(rows)
        except PermissionError:
            return False
        return True


def as_csv(rows: Sequence[Mapping[str, Any]], columns: set[str]) -> str:
    """A header and the rows, columns in alphabetical order."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, sorted(columns))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_rows(path: Path, first_step: int) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv from before ``first_step``, as text, without empty cells."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")  # a damaged row is no reason to stop
    lines = text[: text.rfind("\n") + 1].splitlines()  # a killed process may have left half a row
    rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(lines)]
    return [row for row in rows if int(row["step"]) < first_step]
