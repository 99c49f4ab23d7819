"""CurveRecord: every measurement of a curve fit, and what becomes of them: summary.json and curves.json."""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from analysis.curves import METRICS, Growth, early_stopping, error_name, more_training, spread_over_seeds
from analysis.statistics import medians
from datamodules import CurveDataModule
from lit_models import FunctionRegressor

THIN = 5  # of the 1,001 points of a curve every fifth is kept
MOST_POINTS = 2000  # of a sample, in curves.json and the figures


class CurveRecord(Callback):
    """Records the measurements of a FunctionRegressor.

    ``asked`` are the epoch counts to report; ``auto`` reports the one with the lowest error too, and what a validation
    sample would have chosen.
    """

    def __init__(self, asked: Sequence[int], auto: bool) -> None:
        self.asked, self.auto = asked, auto
        # epochs done -> {"train_mse": (M,), "true_mse": (M,), ...}; and the fitted curves (M, G) of some epoch counts
        self.measured: dict[int, dict[str, Tensor]] = {}
        self.curves: dict[int, Tensor] = {}
        self.train_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured, "curves": self.curves, "train_seconds": self.train_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.measured, self.curves, self.train_seconds = state["measured"], state["curves"], state["train_seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter() - self.train_seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_seconds = time.perf_counter() - self._since

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:
        self._train_mse = outputs["train_mse"]

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            measured = {"train_mse": self._train_mse, **outputs}
            epochs, self._latest = measured.pop("epochs"), measured.pop("curve")
            self.measured[epochs] = measured
            if self.auto or epochs in self.asked or epochs >= 1.5 * max(self.curves, default=0):
                self.curves[epochs] = self._latest

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.measured:
            self.curves[max(self.measured)] = self._latest  # which is reported where the training run ends early

    def table(self, model: FunctionRegressor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(T,) measured epoch counts, and (T, L, S) values of each metric."""
        epochs = sorted(self.measured)
        shape = (len(epochs), len(model.lrs), len(model.seeds))
        values = {name: np.array([self.measured[e][name].numpy() for e in epochs]).reshape(shape) for name in METRICS}
        return np.array(epochs, dtype=int), values

    def summary(self, model: FunctionRegressor, data: CurveDataModule) -> dict[str, Any]:
        """The content of summary.json, once all is done; what diverged is not finite."""
        epochs, values = self.table(model)
        error = error_name(data.function)
        each = [(lr, values[error][:, i], values["val_mse"][:, i]) for i, lr in enumerate(model.lrs) if len(epochs)]
        auto = [{"lr": lr, **early_stopping(epochs, errors, val, error)} for lr, errors, val in each if self.auto]
        more = [{"lr": lr, **more_training(epochs, errors)} for lr, errors, _ in each if len(epochs) > 1]
        reported = sorted({*self.asked, *(choice["best_epochs"] for choice in auto)})
        missing = [e for e in reported if e not in epochs]  # where the training run ended early
        at = np.flatnonzero(np.isin(epochs, [*reported, *(epochs[-1:] if missing else [])]))
        results = []
        for (i, lr), (s, seed), t in product(enumerate(model.lrs), enumerate(model.seeds), at):
            metrics = {name: float(values[name][t, i, s]) for name in METRICS}
            results.append({"lr": lr, "seed": seed, "epochs": int(epochs[t]), **metrics})
        return {
            **{"function": data.function, "x_min": data.x_min, "x_max": data.x_max, "seed": model.seeds[0]},
            "results": results,
            "over_seeds": spread_over_seeds(model.lrs, epochs[at], {name: v[at] for name, v in values.items()}),
            "more_training": more,
            **({"auto": auto} if auto else {}),
            "not_measured": missing,
            "seconds": {"train": self.train_seconds},
        }

    def growth(self, model: FunctionRegressor, data: CurveDataModule) -> Growth:
        """The content of curves.json: how the fitted curves grow, on 201 points, to hundredths of the scales."""

        def digits(values: Any, scale: float = model.y_scale[0].item()) -> list[float]:
            places = 2 - round(math.log10(scale))
            return [round(value, places) for value in np.asarray(values).ravel().tolist()]

        L, S, fits, name = len(model.lrs), len(model.seeds), [], error_name(data.function)
        for epochs, curves in sorted(self.curves.items()):
            each = curves[:, ::THIN].numpy().reshape(L, S, -1)
            errors = medians(self.measured[epochs][name].view(L, S).numpy())
            for lr, seeds, error in zip(model.lrs, each, errors, strict=True):
                finite = seeds[np.isfinite(seeds).all(1)]
                low, high = np.quantile(finite, (0.25, 0.75), axis=0) if len(finite) else ([], [])
                first = seeds[0] if np.isfinite(seeds[0]).all() else []
                lists = {"fit": digits(first), "low": digits(low), "high": digits(high)}
                fits.append({"lr": lr, "epochs": epochs, name: float(error), **lists})
        few = np.s_[0, :MOST_POINTS]  # in random order
        points = {"x": digits(data.x[few], model.x_scale), "y": digits(data.y[few])}
        held_out = {"x": digits(data.held_out_x[few], model.x_scale), "y": digits(data.held_out_y[few])}
        truth, grid = digits(data.truth[::THIN]) if data.function else [], digits(data.grid[::THIN], model.x_scale)
        return {"x": grid, "truth": truth, "points": points, "held_out": held_out, "fits": fits}
