"""CurveRecord: every measurement of a curve fit, and what becomes of them: results, findings, figures."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from analysis.curves import METRICS, Fit, Growth, early_stopping, more_training, spread_over_seeds
from analysis.figures import errors_figure, fits_figure
from analysis.provenance import command_line
from analysis.statistics import medians
from datamodules import CurveDataModule
from lit_models import FunctionRegressor


class CurveRecord(Callback):
    """Collects the measurements of a FunctionRegressor, over resumes too.

    Args:
        asked: the epoch counts to report.
        auto: report the epoch count with the lowest MSE against f too, and what a validation sample would have chosen.
        settings: all settings of the run, for its summary; plain values.
        is_branch: training begins with the checkpoint of another run, which becomes this run's ``origin``.
        start: ``time.perf_counter()`` at the start of the process, for the total time.
    """

    def __init__(
        self, asked: Sequence[int], auto: bool, settings: Mapping[str, Any], is_branch: bool, start: float
    ) -> None:
        self.asked, self.auto, self.settings, self.is_branch = sorted(set(asked)), auto, dict(settings), is_branch
        self.start = start
        # epochs done -> {"train_mse": (M,), "true_mse": (M,), ...}; and the fitted curves (M, G) of some epoch counts
        self.measured: dict[int, dict[str, Tensor]] = {}
        self.curves: dict[int, Tensor] = {}
        self._latest: dict[int, Tensor] = {}
        self.origin: dict[str, Any] | None = None
        self.earlier = {"train": 0.0, "total": 0.0}  # seconds before a resume
        self._train_start: float | None = None
        self._train_end: float | None = None

    def state_dict(self) -> dict[str, Any]:
        state = {"measured": self.measured, "curves": self.curves, "seconds_in_all": self.seconds()}
        return state | {"settings": self.settings, "origin": self.origin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.measured, self.curves, self.earlier = state["measured"], state["curves"], state["seconds_in_all"]
        self.origin = state["origin"]
        if self.is_branch:
            self.origin = {"settings": state["settings"], "epochs": max(self.measured, default=0)}

    def seconds(self) -> dict[str, float]:
        """Seconds of training so far, and in all, with those before a resume."""
        now = time.perf_counter()
        training = 0.0 if self._train_start is None else (self._train_end or now) - self._train_start
        return {"train": self.earlier["train"] + training, "total": self.earlier["total"] + now - self.start}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:
        self.measured.setdefault(outputs["epochs"], {})["train_mse"] = outputs["train_mse"]

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object
    ) -> None:
        if trainer.sanity_checking:
            return
        measured = dict(outputs)
        epochs, curve = measured.pop("epochs"), measured.pop("curve")
        self.measured.setdefault(epochs, {}).update(measured)
        self._latest = {epochs: curve}
        if self.auto or epochs in self.asked or epochs >= 1.2 * max(self.curves, default=0):
            self.curves[epochs] = curve

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_end = time.perf_counter()
        self.curves |= self._latest  # which is reported where the training run ends early

    def table(self, model: FunctionRegressor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(T,) whole measured epoch counts, and (T, L, S) values of each metric and of ``held_out_mse``."""
        whole = {e: m for e, m in sorted(self.measured.items()) if len(m) > 1}
        shape = (len(whole), len(model.lrs), len(model.seeds))
        names = (*METRICS, "held_out_mse")
        values = {name: torch.stack([m[name] for m in whole.values()]).view(shape).numpy() for name in names if whole}
        return np.array(list(whole), dtype=int), values

    def summary(self, model: FunctionRegressor, data: CurveDataModule) -> dict[str, Any]:
        """The content of summary.json, once all is done; a diverged run's values are nan."""
        epochs, values = self.table(model)
        auto: list[dict[str, Any]] = []
        if self.auto and len(epochs):
            for i, lr in enumerate(model.lrs):
                choice = early_stopping(epochs, values["true_mse"][:, i], values["held_out_mse"][:, i])
                auto.append({"lr": lr, **choice})
        reported = sorted({*self.asked, *(choice["best_epochs"] for choice in auto)})
        reached = [e for e in reported if e in epochs]
        if reached != reported and len(epochs):  # stopped early
            reached = sorted({*reached, int(epochs[-1])})
        at = np.searchsorted(epochs, reached)
        trajectories = enumerate(model.lrs if len(epochs) > 1 else [])
        return {
            "function": data.function,
            "x_min": data.x_min,
            "x_max": data.x_max,
            "seed": model.seeds[0],
            "command": command_line(),
            "results": self._results(model, reached),
            "over_seeds": spread_over_seeds(model.lrs, epochs[at], {n: v[at] for n, v in values.items()}),
            "more_training": [{"lr": lr, **more_training(epochs, values["true_mse"][:, i])} for i, lr in trajectories],
            **({"auto": auto} if auto else {}),
            "not_measured": [e for e in reported if e not in epochs],
            "seconds": self.seconds(),
            "settings": self.settings,
            "origin": self.origin,
        }

    def _results(self, model: FunctionRegressor, reached: Sequence[int]) -> list[dict[str, float]]:
        rows = []
        for m, (lr, seed) in enumerate((lr, seed) for lr in model.lrs for seed in model.seeds):
            for e in reached:
                values = {name: self.measured[e][name][m].item() for name in METRICS}
                if not math.isfinite(values["train_mse"]) or not math.isfinite(values["true_mse"]):
                    values = dict.fromkeys(METRICS, math.nan)
                rows.append({"lr": lr, "seed": seed, "epochs": e, **values})
        return rows

    def growth(self, model: FunctionRegressor, data: CurveDataModule) -> Growth:
        """The content of curves.json: how the fitted curves grow, on some 100 points, with four digits.

        A list each of "x" and "truth" (f there), "points" (x and y of the first seed's training points), and "fits",
        one for each learning rate and kept epoch count: the first seed's curve "fit", empty where it diverged, and the
        quartiles "low" and "high" of the seeds that did not; "true_mse" is the median error of all.
        """
        S, thin = len(model.seeds), slice(None, None, 10)

        def digits(values: Any) -> list[float]:
            return [float(f"{value:.4g}") for value in np.asarray(values).ravel()]

        fits: list[Fit] = []
        for epochs, curves in sorted(self.curves.items()):
            each = curves[:, thin].numpy().reshape(len(model.lrs), S, -1)
            errors = medians(self.measured[epochs]["true_mse"].view(len(model.lrs), S).numpy())
            for lr, seeds, error in zip(model.lrs, each, errors, strict=True):
                finite = seeds[np.isfinite(seeds).all(1)]
                low, high = np.quantile(finite, (0.25, 0.75), axis=0) if len(finite) else ([], [])
                row = {"fit": seeds[0] if np.isfinite(seeds[0]).all() else [], "low": low, "high": high}
                lists = {name: digits(values) for name, values in row.items()}
                fits.append(Fit(lr=lr, epochs=epochs, true_mse=float(error), **lists))  # type: ignore[typeddict-item]
        truth = digits(data.truth[thin])
        x = digits(np.linspace(data.x_min, data.x_max, len(truth)))
        return {"x": x, "truth": truth, "points": {"x": digits(data.x[0]), "y": digits(data.y[0])}, "fits": fits}

    def figures(self, model: FunctionRegressor, data: CurveDataModule, summary: Mapping[str, Any]) -> dict[str, Figure]:
        """{"curves", "errors"}: the fitted curves where asked for, and the errors over all measured epochs."""
        epochs, values = self.table(model)
        if not len(epochs):
            return {}
        reported = [(row["lr"], row["epochs"]) for row in summary["over_seeds"]]
        figures = {"curves": fits_figure(self.growth(model, data), reported, data.function)}
        rows = spread_over_seeds(model.lrs, epochs, values)
        return figures | {"errors": errors_figure(rows, data.noise_std**2)}
