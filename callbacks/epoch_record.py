"""The record of a classifier's training: a line an epoch, the figure, summary.json."""

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only

from callbacks.atomic import write_json
from callbacks.figures import publish, training_figure
from callbacks.run_page import command_line, tensorboard_writers

WARM_UP = 5  # batches of each epoch that are left out of its throughput: compilation, first allocations


class EpochRecord(Callback):
    """Collects what every epoch reached; ``finish`` writes figure and summary into ``run_dir``.

    Args:
        run_dir: where the files go.
        facts: what the summary says first: recipe, data and batch size.
        measured_on: what validation measures, for the figure: "test" or "held-out".
        start: ``time.perf_counter()`` at the start of the process, for the total time.
    """

    def __init__(self, run_dir: Path, facts: Mapping[str, Any], start: float, measured_on: str = "test") -> None:
        self.run_dir, self.facts, self.start, self.measured_on = run_dir, dict(facts), start, measured_on
        self.epochs: list[dict[str, Any]] = []
        # what the loggers were given so far, {"step", "epoch", "metrics"} each, to give it them after a resume
        self.logged: list[dict[str, Any]] = []
        self.test: dict[str, float] = {}
        self.batches = {"train_batches": 0, "val_batches": 0}
        self.first_step: float | None = None
        self._start_of_epoch: float | None = None
        self._earlier = 0.0  # seconds of this epoch before an interruption
        self._earlier_total = 0.0  # and of the whole run

    @classmethod
    def read(cls, run_dir: Path) -> "EpochRecord":
        """The record of a finished run, from its summary.json."""
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        facts = {name: summary[name] for name in ("recipe", "data", "batch_size") if name in summary}
        record = cls(run_dir, facts, start=0.0, measured_on=summary["measured_on"])
        record.epochs = summary["epochs"]
        if summary["test_acc"] is not None:
            record.test = {"acc": summary["test_acc"], "loss": summary["test_loss"]}
        return record

    def state_dict(self) -> dict[str, Any]:
        inside = 0.0 if self._start_of_epoch is None else time.perf_counter() - self._start_of_epoch - self._pause
        return {
            "epochs": self.epochs,
            "logged": self.logged,
            "batches": self.batches,
            "seconds_of_this_epoch": self._earlier + inside,
            "seconds_in_all": self._earlier_total + time.perf_counter() - self.start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.logged, self.batches = list(state["epochs"]), list(state["logged"]), dict(state["batches"])
        self._earlier, self._earlier_total = state["seconds_of_this_epoch"], state["seconds_in_all"]

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """After a resume: the loggers begin anew, and get what they had up to the checkpoint."""
        for logged in self.logged:
            for logger in trainer.loggers:
                logger.log_metrics({**logged["metrics"], "epoch": logged["epoch"]}, logged["step"])
            if "lr" in logged["metrics"]:  # an epoch's end
                row = next(row for row in self.epochs if row["epoch"] == logged["epoch"])
                self._log_throughput(trainer, row, logged["step"])

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._begin(pl_module)  # Lightning leaves out on_train_epoch_start when it resumes inside an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._earlier = 0.0
        self._begin(pl_module)

    def _begin(self, pl_module: Any) -> None:
        self._start_of_epoch = self._start_of_count = self._now(pl_module)
        self._images = self._batches = 0
        self._pause = self._pause_before_count = 0.0
        self._validated = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.first_step is None:
            self.first_step = self._now(pl_module) - self.start
        self._batches += 1
        self._images += len(batch[1])
        if self._batches == WARM_UP and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._start_of_count, self._images = self._now(pl_module), 0
            self._pause_before_count = self._pause

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._end = self._now(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        metrics = {n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith(("val/", "probe/"))}
        if trainer.state.fn == TrainerFn.VALIDATING:  # of the end of a training that ended inside an epoch
            self.epochs[-1] |= {name.replace("/", "_"): value for name, value in metrics.items()}
            return
        self._pause += self._now(pl_module) - self._end
        self._validated = True
        self._remember(trainer, metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        end = self._now(pl_module) - self._pause
        counted = end - self._start_of_count + self._pause_before_count
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if not self._validated:  # Lightning still holds the values of an earlier epoch
            metrics = {name: value for name, value in metrics.items() if not name.startswith(("val/", "probe/"))}
        self.batches = {
            "train_batches": int(trainer.num_training_batches),
            "val_batches": int(trainer.num_val_batches[0]) if trainer.num_val_batches else 0,
        }
        row = {
            "epoch": trainer.current_epoch,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": metrics.get("train/loss"),
            "train_acc": metrics.get("train/acc"),
            "val_loss": metrics.get("val/loss"),
            "val_acc": metrics.get("val/acc"),
            "seconds": self._earlier + end - (self._start_of_epoch or 0.0),
            "images_per_second": self._images * trainer.world_size / counted,
        }
        if "probe/acc" in trainer.callback_metrics:
            row |= {"probe_acc": metrics.get("probe/acc"), "probe_loss": metrics.get("probe/loss")}
        motion = {name: value for name, value in metrics.items() if name.startswith("motion/")}
        row |= {name.removeprefix("motion/"): value for name, value in motion.items()}
        self.epochs.append(row)
        training = {n: value for n, value in metrics.items() if not n.startswith(("val/", "probe/"))}
        # The module logs its rate after this hook, in float32.
        self._remember(trainer, training | {"lr": torch.tensor(row["lr"]).item()})
        self._log_throughput(trainer, row, trainer.global_step - 1)
        self._start_of_epoch, self._earlier = None, 0.0
        self._print(pl_module, row, header=len(self.epochs) == 1)

    def _remember(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.logged.append({"step": trainer.global_step - 1, "epoch": trainer.current_epoch, "metrics": metrics})

    @rank_zero_only
    def _log_throughput(self, trainer: Trainer, row: dict[str, Any], step: int) -> None:
        for writer in tensorboard_writers(trainer.loggers):  # not into metrics.csv, which a seed repeats bit for bit
            writer.add_scalar("images_per_second", row["images_per_second"], step)

    def ended_unmeasured(self, trainer: Trainer) -> bool:
        """Whether training has ended inside an epoch, whose weights no validation has seen."""
        validates = trainer.limit_val_batches and trainer.check_val_every_n_epoch == 1
        return bool(validates and self.epochs and self.epochs[-1]["val_acc"] is None)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.test = {name: trainer.callback_metrics[f"test/{name}"].item() for name in ("acc", "loss")}

    @staticmethod
    def _now(pl_module: Any) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # so that the clock sees finished work
        return time.perf_counter()

    @staticmethod
    def _print(pl_module: Any, row: dict[str, Any], header: bool) -> None:
        # Through Lightning, which writes above a running bar, and on the first process alone.
        names = ("epoch", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "seconds")
        if header:
            pl_module.print("  ".join(f"{name:>10}" for name in names))
        cells = ("-" if row[n] is None else f"{row[n]:.4g}" if n in ("epoch", "lr") else f"{row[n]:.4f}" for n in names)
        pl_module.print("  ".join(f"{cell:>10}" for cell in cells))

    @rank_zero_only
    def finish(self, trainer: Trainer, pl_module: Any) -> None:
        """Draws the figure and writes ``summary.json``, last."""
        if self.epochs:
            figure = training_figure([self.epochs], [self.test.get("acc")], self.measured_on)
            publish(figure, "training", self.run_dir, trainer.loggers)
        speeds = [row["images_per_second"] for row in self.epochs]
        summary = {
            **self.facts,
            "measured_on": self.measured_on,
            "command": command_line(),
            "device": _device_name(pl_module.device),
            "parameters": sum(p.numel() for p in pl_module.net.parameters()),
            **self.batches,
            "epochs": self.epochs,
            "test_acc": self.test.get("acc"),
            "test_loss": self.test.get("loss"),
            "images_per_second": statistics.median(speeds) if speeds else None,
            "seconds": {
                "train": sum(row["seconds"] for row in self.epochs),
                "total": self._earlier_total + time.perf_counter() - self.start,
                "to_first_step": self.first_step,
            },
            "peak_memory_mb": _peak_memory_mb(pl_module.device),
        }
        write_json(self.run_dir / "summary.json", summary)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _peak_memory_mb(device: torch.device) -> float | None:
    """Of the GPU if training ran there, else resident memory of this process; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def finish_seeds(run_dir: Path, records: Mapping[int, EpochRecord], start: float) -> None:
    """Figure with bands and top ``summary.json`` of several runs: {seed: record}, each already finished."""
    runs = list(records.values())
    figure = training_figure([r.epochs for r in runs], [r.test.get("acc") for r in runs], runs[0].measured_on)
    publish(figure, "training", run_dir, [])
    spread: dict[str, float | None] = {}
    for name in ("acc", "loss"):
        values = [record.test[name] for record in runs if record.test]
        if values:
            spread[f"test_{name}_mean"] = statistics.mean(values)
            spread[f"test_{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    per_seed = [
        {"seed": seed, "test_acc": r.test.get("acc"), "test_loss": r.test.get("loss"), "epochs": r.epochs}
        for seed, r in records.items()
    ]
    total = {
        "train": sum(row["seconds"] for r in runs for row in r.epochs),
        "total": time.perf_counter() - start,
    }
    write_json(run_dir / "summary.json", {**runs[0].facts, **spread, "runs": per_seed, "seconds": total})
