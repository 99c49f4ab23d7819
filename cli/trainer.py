"""Lightning's Trainer from its flags, with the loggers of a run added."""

import csv
import io
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from analysis.files import write_atomically
from callbacks.progress import ProgressLines
from callbacks.saving import AtomicCheckpointIO
from cli.command import UsageError
from cli.parser import Parser, build
from cli.run import Run

LIGHTNING = "lightning"  # where Lightning's own callbacks and profilers put their files, in the folder of a run


def build_trainer(parser: Parser, cfg: Namespace, run: Run, callbacks: list[Callback], **instead: object) -> Trainer:
    """A Trainer from ``cfg``; callbacks, loggers and plugins named there are added to those of the run.

    A progress bar among ``callbacks`` is shown on a terminal only. ``instead`` takes the place of flags. Raises
    UsageError for flags that do not go together, or name what is not installed.
    """
    if any(word in str(cfg.strategy) for word in ("spawn", "fork", "notebook")):
        raise UsageError("a --strategy that spawns or forks keeps a run's results in its child processes: give ddp")
    flags = parser.instantiate(cfg)
    own = listed(flags.callbacks)
    may_show = flags.enable_progress_bar is not False
    has_bar = may_show and sys.stdout.isatty() and not any(isinstance(each, ProgressBar) for each in own)
    out = (*([] if has_bar else [ProgressBar]), *([Checkpoint] if flags.enable_checkpointing is False else []))
    callbacks = [*(each for each in callbacks if not isinstance(each, out)), ProgressLines(), *own]
    if any(Path(each.dirpath or "").resolve() == run.checkpoints.resolve() for each in own if hasattr(each, "dirpath")):
        raise UsageError(f"{run.checkpoints} is for what a run is resumed from: give a callback another dirpath")
    added = {
        "logger": make_loggers(flags.logger, run),
        "callbacks": callbacks,
        # not None, with which Lightning would add a bar of its own
        "enable_progress_bar": may_show and any(isinstance(each, ProgressBar) for each in callbacks),
        "plugins": [*listed(flags.plugins), AtomicCheckpointIO()],
        "default_root_dir": flags.default_root_dir or str(run.folder.resolve() / LIGHTNING),
        "enable_model_summary": bool(flags.enable_model_summary),
        # cuDNN's fastest convolutions: the shapes stay the same
        "benchmark": not flags.deterministic if flags.benchmark is None else flags.benchmark,
    }
    if run.is_stopped:
        instead["limit_train_batches"] = 0  # Lightning loads the checkpoint, and trains nothing
    trainer = build(Trainer, flags, **added | instead)
    if trainer.world_size < trainer.num_devices * trainer.num_nodes:
        raise UsageError(f"this job has {trainer.world_size} process, for {trainer.num_devices} --devices of each node")
    return trainer


def make_loggers(asked: Any, run: Run) -> list[Logger]:
    """metrics.csv and TensorBoard of a run, from where the checkpoint is, and those that the user asked for."""
    if asked is False:
        return []
    folder, step = run.folder.resolve(), run.checkpoint.next_step if run.checkpoint else 0
    history = run.checkpoint.path.resolve().parents[1] if run.checkpoint else folder
    rows = read_rows(history / "metrics.csv", step)
    board = TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=step)
    # Where ModelCheckpoint saves: not among the checkpoints from which a run is resumed.
    table = CSVLogger(folder, name=LIGHTNING, version="")
    table._experiment = MetricsRows(folder / "metrics.csv", rows)
    return [table, board, *([] if asked is True else listed(asked))]


def listed(value: Any) -> list[Any]:
    """What Lightning takes as one thing, several or none, as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


class MetricsRows(ExperimentWriter):
    """The rows of a CSV file, which is replaced as a whole once there are new ones; columns in alphabetical order.

    It begins with ``rows``; Lightning's own deletes the file of an earlier run.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]]) -> None:
        self.path, self.metrics, self._written = path, rows, len(rows)

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """They are in config.yaml."""

    def save(self) -> None:
        if len(self.metrics) == self._written:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, sorted(set[str]().union(*self.metrics)))
        writer.writeheader()
        writer.writerows(self.metrics)
        with suppress(PermissionError):  # Excel has the file open on Windows: the rows wait for the next time
            write_atomically(self.path, lambda file: file.write(text.getvalue().encode()), durable=False)
            self._written = len(self.metrics)


def read_rows(path: Path, first_step: int) -> list[dict[str, str]]:
    """The rows of a metrics.csv from before ``first_step``, as text, without empty cells.

    Raises UsageError where the file is not as the run wrote it, but as a spreadsheet did.
    """
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < first_step]
            return [{name: value for name, value in row.items() if value} for row in rows]
    except (KeyError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} is not as the run wrote it ({error!r}): move it away, or restore it") from None
