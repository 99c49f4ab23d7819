"""ClassifierRecord: what every epoch of a classifier's training reached: a line on the terminal, and the summary."""

import re
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch.optim import Optimizer

from analysis.provenance import command_line
from callbacks.tensorboard_layout import tensorboard_writers

WARM_UP = 5  # batches of each epoch that are left out of its throughput: compilation, first allocations
EVALUATED = ("val/", "probe/")
MEASURED = ("train/loss", "train/acc", "val/loss", "val/acc")
COLUMNS = ("epoch", "lr", *(name.replace("/", "_") for name in MEASURED), "seconds")


class ClassifierRecord(Callback):
    """Collects what each epoch reached, over resumes too, prints a line for it, and puts it together for summary.json.

    Args:
        settings: all settings of the run, with ``recipe``, ``data``, ``seed``, ``val_size``; plain values.
        is_branch: training begins with the checkpoint of another run, which becomes this run's ``origin``.
        start: ``time.perf_counter()`` at the start of the process, for the total time.
    """

    def __init__(self, settings: Mapping[str, Any], is_branch: bool = False, start: float | None = None) -> None:
        self.settings, self.is_branch = dict(settings), is_branch
        self.start = time.perf_counter() if start is None else start
        self.origin: dict[str, Any] | None = None
        self.epochs: list[dict[str, Any]] = []
        self.test: dict[str, float | None] = {"test_acc": None, "test_loss": None}
        self.batches = {"train_batches": 0, "val_batches": 0}
        self.first_step: float | None = None
        self._validated: dict[str, float] = {}  # val/* and probe/* of the epoch's latest validation, if it had one
        self._has_header = False  # on the terminal, in this process
        self._measuring = 0.0  # seconds of all validations, which are no training
        self._start_of_epoch: float | None = None
        self._earlier = self._earlier_total = 0.0  # seconds before an interruption, of an epoch and of the run

    def state_dict(self) -> dict[str, Any]:
        clock = time.perf_counter()
        inside = 0.0 if self._start_of_epoch is None else clock - self._measuring - self._start_of_epoch
        return {
            "settings": self.settings,
            "origin": self.origin,
            "epochs": self.epochs,
            "batches": self.batches,
            "validated": self._validated,
            "seconds_of_this_epoch": inside,
            "seconds_in_all": self._earlier_total + clock - self.start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs, self.batches, self.origin = list(state["epochs"]), dict(state["batches"]), state["origin"]
        if self.is_branch:
            self.origin = {"settings": state["settings"], "epochs": len(self.epochs)}
        self._validated = dict(state.get("validated", {}))
        self._earlier, self._earlier_total = state["seconds_of_this_epoch"], state["seconds_in_all"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, self._earlier)  # resuming inside an epoch, Lightning leaves out the next hook

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module)
        self._validated = {}

    def _begin(self, trainer: Trainer, pl_module: LightningModule, earlier: float = 0.0) -> None:
        self._start_of_count = self._training_clock(pl_module)
        self._start_of_epoch = self._start_of_count - earlier
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]
        self._images = self._batches = 0

    def _training_clock(self, pl_module: LightningModule) -> float:
        """Seconds, of which those between two readings in an epoch are of training alone."""
        return now(pl_module.device) - self._measuring

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._lr = optimizer.param_groups[0]["lr"]  # when an epoch ends, schedulers have set the next one's already

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        if self.first_step is None:
            self.first_step = now(pl_module.device) - self.start
        self._batches += 1
        self._images += len(batch[1])
        if self._batches == WARM_UP and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._start_of_count, self._images = self._training_clock(pl_module), 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_of_validation = now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:  # of the end of a training run that ended inside an epoch
            for name, value in trainer.callback_metrics.items():
                self.epochs[-1][name.replace("/", "_")] = value.item()
            return
        self._measuring += now(pl_module.device) - self._start_of_validation
        self._validated = {n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith(EVALUATED)}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end = self._training_clock(pl_module)
        assert self._start_of_epoch is not None
        # Where this epoch had no validation, Lightning still holds the values of an earlier one.
        metrics = {name: v.item() for name, v in trainer.callback_metrics.items() if not name.startswith(EVALUATED)}
        metrics |= self._validated
        self.batches = {
            "train_batches": int(trainer.num_training_batches),
            "val_batches": int(trainer.num_val_batches[0]) if trainer.num_val_batches else 0,
        }
        row = {
            "epoch": trainer.current_epoch,
            "lr": self._lr,
            **{name.replace("/", "_"): metrics.get(name) for name in MEASURED},
            "seconds": end - self._start_of_epoch,
            "images_per_second": self._images * trainer.world_size / (end - self._start_of_count),
            **{name.replace("/", "_"): value for name, value in metrics.items() if name.startswith("probe/")},
            **{n.removeprefix("trajectory/"): v for n, v in metrics.items() if n.startswith("trajectory/")},
        }
        self.epochs.append(row)
        for writer in tensorboard_writers(trainer.loggers) if trainer.is_global_zero else ():
            # not into metrics.csv, which a seed repeats bit for bit
            writer.add_scalar("train/images_per_second", row["images_per_second"], trainer.global_step - 1)
        self._start_of_epoch = None
        # Through Lightning, which writes above a running bar, and on the first process alone.
        if not self._has_header:
            pl_module.print("  ".join(f"{name:>10}" for name in COLUMNS))
            self._has_header = True
        pl_module.print("  ".join(f"{cell(name, row[name]):>10}" for name in COLUMNS))

    def ended_unmeasured(self, trainer: Trainer) -> bool:
        """Whether training has ended inside an epoch, whose weights no validation has seen."""
        validates = trainer.num_val_batches and trainer.limit_val_batches and trainer.check_val_every_n_epoch == 1
        return bool(validates and self.epochs and self.epochs[-1]["val_acc"] is None)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.test = {f"test_{name}": trainer.callback_metrics[f"test/{name}"].item() for name in ("acc", "loss")}

    def summary(self, model: LightningModule, device: torch.device) -> dict[str, Any]:
        """The content of summary.json, once all is done; ``device`` is where it was, for Lightning moves it away."""
        speeds = [row["images_per_second"] for row in self.epochs]
        return {
            **{name: self.settings[name] for name in ("recipe", "data", "seed")},
            "measured_on": "validation" if self.settings["val_size"] else "test",
            "command": command_line(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "parameters": sum(p.numel() for p in model.parameters()),
            **self.batches,
            "epochs": self.epochs,
            **self.test,
            "images_per_second": statistics.median(speeds) if speeds else None,
            "seconds": {
                "train": sum(row["seconds"] for row in self.epochs),
                "total": self._earlier_total + time.perf_counter() - self.start,
                "to_first_step": self.first_step,
            },
            "peak_memory_mb": peak_memory_mb(device),
            "settings": self.settings,
            "origin": self.origin,
        }


def cell(name: str, value: float | None) -> str:
    """A number of the table on the terminal."""
    return "-" if value is None else f"{value:.4g}" if name in ("epoch", "lr") else f"{value:.4f}"


def now(device: torch.device) -> float:
    """Seconds on a clock that sees finished work only."""
    if device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def peak_memory_mb(device: torch.device) -> float | None:
    """Of the GPU if training ran there, else resident memory of this process; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")  # Linux; ru_maxrss there includes the process that started this one
    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
