"""ClassifierRecord: what every epoch of a classifier's training reached: a line on the terminal, and the summary."""

import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch.optim import Optimizer

WARM_UP = 5  # batches that are left out of a throughput: compilation, first allocations
MEASURED = ("train_loss", "train_acc", "val_loss", "val_acc")
COLUMNS = {"epoch": "d", "lr": ".4g", **dict.fromkeys((*MEASURED, "seconds"), ".4f")}  # on the terminal


class ClassifierRecord(Callback):
    """Records each epoch, as far as callbacks before it have logged it, and prints a line for it."""

    def __init__(self, start: float) -> None:
        self.start = start  # of the run, by ``time.perf_counter()``
        self.epochs: list[dict[str, Any]] = []
        self.test: dict[str, float | None] = {"test_acc": None, "test_loss": None}
        self.batches = {"train_batches": 0, "val_batches": 0}
        self.first_step: float | None = None
        self._validated: dict[str, float | None] = {}  # by the epoch's latest validation, if it had one
        self._has_header = False  # on the terminal, in this process
        self._seconds = 0.0  # of training in this epoch, when the clock was stopped
        self._since = time.perf_counter()  # when the epoch would have begun, had it never been stopped

    def state_dict(self) -> dict[str, Any]:
        state = {"epochs": self.epochs, "batches": self.batches, "validated": self._validated}
        return {**state, "seconds_of_this_epoch": time.perf_counter() - self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs, self.batches = state["epochs"], state["batches"]
        self._validated, self._seconds = state["validated"], state["seconds_of_this_epoch"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Resuming inside an epoch, Lightning leaves out the next hook.
        self._since = now(pl_module.device) - self._seconds
        self._images, self._batches, self._uncounted = 0, 0, self._seconds

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated, self._seconds = {}, 0.0
        self.on_train_start(trainer, pl_module)

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
            self._images, self._uncounted = 0, now(pl_module.device) - self._since

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds = now(pl_module.device) - self._since

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = now(pl_module.device) - self._seconds
        self._validated = logged(trainer, "val/", "probe/")
        if trainer.state.fn == TrainerFn.VALIDATING:  # after a training run that ended inside an epoch
            self.epochs[-1] |= self._validated

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = now(pl_module.device) - self._since
        row = {
            "epoch": trainer.current_epoch,
            "lr": self._lr,
            **dict.fromkeys(MEASURED),
            **logged(trainer, "train/"),
            **self._validated,
            "seconds": seconds,
            "images_per_second": self._images * trainer.world_size / (seconds - self._uncounted),
        }
        self.epochs.append(row)
        val_batches = int(trainer.num_val_batches[0]) if trainer.num_val_batches else 0
        self.batches = {"train_batches": int(trainer.num_training_batches), "val_batches": val_batches}
        # Through Lightning, which writes above a running bar, and from the first process alone.
        if not self._has_header:
            pl_module.print("  ".join(f"{name:>10}" for name in COLUMNS))
            self._has_header = True
        cells = ["-" if row[name] is None else format(row[name], digits) for name, digits in COLUMNS.items()]
        pl_module.print("  ".join(f"{cell:>10}" for cell in cells))

    def ended_unmeasured(self) -> bool:
        """Whether no validation has seen the last epoch's weights, though there is something to validate on."""
        return bool(self.batches["val_batches"] and self.epochs and self.epochs[-1]["val_acc"] is None)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.test = logged(trainer, "test/")

    def summary(self, settings: Mapping[str, Any], model: LightningModule, device: torch.device) -> dict[str, Any]:
        """The results, once all is done; ``device`` is where the model was, for Lightning moves it away."""
        speeds = [row["images_per_second"] for row in self.epochs]
        return {
            **{name: settings[name] for name in ("recipe", "data", "seed")},
            "measured_on": "validation" if settings["val_size"] else "test",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "parameters": sum(p.numel() for p in model.parameters()),
            **self.batches,
            "epochs": self.epochs,
            **self.test,
            "images_per_second": statistics.median(speeds) if speeds else None,
            "seconds": {"train": sum(row["seconds"] for row in self.epochs), "to_first_step": self.first_step},
            "peak_memory_mb": peak_memory_mb(device),
        }


def logged(trainer: Trainer, *prefixes: str) -> dict[str, float | None]:
    """An epoch's logged values, by the names of summary.json: val_acc for val/acc."""
    names = [name for name in trainer.callback_metrics if name.startswith(prefixes) and not name.endswith("_step")]
    return {n.replace("/", "_"): trainer.callback_metrics[n].item() for n in names}


def now(device: torch.device) -> float:
    """Seconds on a clock that waits for the device's work to be finished."""
    if device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def peak_memory_mb(device: torch.device) -> float | None:
    """Memory of the GPU if training ran there, else resident memory of this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
