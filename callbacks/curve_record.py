"""The record of a curve fit: every measurement, the figures, the table, summary.json."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer

from callbacks.atomic import write_json
from callbacks.figures import curves_figure, error_figure, publish

METRICS = ("train_mse", "true_mse", "true_max_abs_error", "r2")


class CurveRecord(Callback):
    """Collects the measurements of a FunctionRegressor; ``finish`` writes figures and summary into ``run_dir``.

    Args:
        run_dir: where the files go.
        asked: the epoch counts to report.
        start: ``time.perf_counter()`` at the start of the process, for the total time.
    """

    def __init__(self, run_dir: Path, asked: Sequence[int], start: float) -> None:
        self.run_dir, self.asked, self.start = run_dir, sorted(set(asked)), start
        # epochs done -> {"train_mse": (M,), "true_mse": (M,), ...}; and the learnt curves (M, G) where asked for
        self.measured: dict[int, dict[str, torch.Tensor]] = {}
        self.curves: dict[int, torch.Tensor] = {}
        self.train_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured, "curves": self.curves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured, self.curves = state["measured"], state["curves"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._train_start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.measured.setdefault(outputs["epochs"], {})["train_mse"] = outputs["train_mse"]

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        epochs = outputs.pop("epochs")
        if trainer.sanity_checking:
            return
        self.measured.setdefault(epochs, {}).update(outputs)
        if epochs in self.asked:
            self.curves[epochs] = pl_module(batch[0].cpu())

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.train_seconds = time.perf_counter() - self._train_start

    def results(self, pl_module: Any) -> list[dict[str, Any]]:
        """One entry for every (lr, seed, epochs) that was reached; nan where it diverged."""
        members = [(lr, seed) for lr in pl_module.lrs for seed in pl_module.seeds]
        rows = []
        for m, (lr, seed) in enumerate(members):
            for epochs in self.asked:
                if METRICS[1] in self.measured.get(epochs, {}):
                    values = {name: self.measured[epochs][name][m].item() for name in METRICS}
                    if not all(map(math.isfinite, (values["train_mse"], values["true_mse"]))):
                        values = dict.fromkeys(METRICS, math.nan)
                    rows.append({"lr": lr, "seed": seed, "epochs": epochs, **values})
        return rows

    def finish(self, trainer: Trainer, pl_module: Any, data: Any) -> None:
        """Draws the figures, prints the table and writes ``summary.json``, last."""
        results = self.results(pl_module)
        self._draw(trainer, pl_module, data)
        self._print(results)
        reached = {row["epochs"] for row in results}
        if missing := [epochs for epochs in self.asked if epochs not in reached]:
            print(f"Stopped early: not reached and so not reported: {', '.join(map(str, missing))} epochs")
        summary = {
            "function": data.function,
            "x_min": data.x_min,
            "x_max": data.x_max,
            "results": results,
            "seconds": {"train": self.train_seconds, "total": time.perf_counter() - self.start},
        }
        write_json(self.run_dir / "summary.json", summary)

    def _draw(self, trainer: Trainer, pl_module: Any, data: Any) -> None:
        L, S = len(pl_module.lrs), len(pl_module.seeds)
        panels = []
        for epochs, curves in sorted(self.curves.items()):
            for i, lr in enumerate(pl_module.lrs):
                mine = slice(i * S, (i + 1) * S)
                error = self.measured[epochs]["true_mse"][mine].median().item()
                title = f"{epochs:,} epochs, learning rate {lr:g}\ntrue MSE {error:.3g}"
                panels.append((title, curves[mine].numpy()))
        if panels:
            figure = curves_figure(
                data.grid.numpy(),
                data.truth.numpy(),
                (data.x[0].numpy(), data.y[0].numpy()),
                panels,
                data.function,
            )
            publish(figure, "curves", self.run_dir, trainer.loggers)
        whole = {e: m for e, m in sorted(self.measured.items()) if "train_mse" in m and "true_mse" in m}
        if whole:
            train, true = (
                torch.stack([m[name] for m in whole.values()]).view(-1, L, S).numpy() for name in METRICS[:2]
            )
            figure = error_figure(np.array(list(whole)), pl_module.lrs, train, true, data.noise_std**2)
            publish(figure, "errors", self.run_dir, trainer.loggers)

    @staticmethod
    def _print(results: list[dict[str, Any]]) -> None:
        """Medians over the seeds."""
        columns = ("lr", "epochs", *METRICS)
        print("  ".join(f"{name.replace('true_max_abs_error', 'max_error'):>10}" for name in columns))
        for lr, epochs in dict.fromkeys((row["lr"], row["epochs"]) for row in results):
            mine = [row for row in results if (row["lr"], row["epochs"]) == (lr, epochs)]
            cells = [f"{lr:g}", f"{epochs}"]
            for name in METRICS:
                values = torch.tensor([row[name] for row in mine], dtype=torch.float64)
                cells.append(f"{values.nanquantile(0.5):.4g}" if values.isfinite().any() else "diverged")
            print("  ".join(f"{cell:>10}" for cell in cells))
