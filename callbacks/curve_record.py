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
from callbacks.curve_answers import does_more_training_hurt, held_out_choice, quartiles, sentence, table
from callbacks.figures import curves_figure, error_figure, publish
from callbacks.run_page import command_line

METRICS = ("train_mse", "true_mse", "true_max_abs_error", "r2")
WORST = {"r2": -math.inf}  # what a diverged network counts as; infinity for the errors


class CurveRecord(Callback):
    """Collects the measurements of a FunctionRegressor; ``finish`` writes figures and summary into ``run_dir``.

    Args:
        run_dir: where the files go.
        asked: the epoch counts to report.
        auto: report the epoch count of least true error too, and what a held-out sample would have chosen.
        start: ``time.perf_counter()`` at the start of the process, for the total time.
    """

    def __init__(self, run_dir: Path, asked: Sequence[int], auto: bool, start: float) -> None:
        self.run_dir, self.asked, self.start = run_dir, sorted(set(asked)), start
        self.auto = auto
        # epochs done -> {"train_mse": (M,), "true_mse": (M,), ...}; and the learnt curves (M, G) where asked for
        self.measured: dict[int, dict[str, torch.Tensor]] = {}
        self.curves: dict[int, torch.Tensor] = {}
        self.earlier = {"train": 0.0, "total": 0.0}  # seconds before a resume
        self._train_start: float | None = None
        self._train_end: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured, "curves": self.curves, "seconds_in_all": self.seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured, self.curves = state["measured"], state["curves"]
        self.earlier = state.get("seconds_in_all", self.earlier)  # older checkpoints lack them

    def seconds(self) -> dict[str, float]:
        """Seconds of training so far, and in all, with those before a resume."""
        now = time.perf_counter()
        training = 0.0 if self._train_start is None else (self._train_end or now) - self._train_start
        return {"train": self.earlier["train"] + training, "total": self.earlier["total"] + now - self.start}

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """After a resume: the loggers begin anew, and get what they had up to the checkpoint."""
        for epochs, measured in self.measured.items():
            for name, part in (("val/loss", "true_mse"), ("train/loss", "train_mse")):
                if part in measured:
                    median = measured[part].quantile(0.5).item()
                    for logger in trainer.loggers:
                        logger.log_metrics({name: median, "epoch": float(epochs)}, epochs)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._train_start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.measured.setdefault(outputs["epochs"], {})["train_mse"] = outputs["train_mse"]

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking:
            return
        epochs, curve = outputs.pop("epochs"), outputs.pop("curve")
        self.measured.setdefault(epochs, {}).update(outputs)
        if self.auto or epochs in self.asked:
            self.curves[epochs] = curve

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._train_end = time.perf_counter()

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
        """Draws the figures, prints the answers and writes ``summary.json``, last."""
        L, S = len(pl_module.lrs), len(pl_module.seeds)
        whole = {e: m for e, m in sorted(self.measured.items()) if len(m) > 1}
        epochs = np.array(list(whole))
        by_lr = {
            name: torch.stack([m[name] for m in whole.values()]).view(len(whole), L, S).numpy()
            for name in (*METRICS, "held_out_mse")
            if whole
        }
        choices = {}
        if self.auto and whole:
            for i, lr in enumerate(pl_module.lrs):
                choices[lr] = held_out_choice(epochs, by_lr["true_mse"][:, i], by_lr["held_out_mse"][:, i])
            self.asked = sorted({*self.asked, *(choice["best_epochs"] for choice in choices.values())})
        results = self.results(pl_module)
        reached = [e for e in self.asked if e in whole]

        if whole:
            self._draw(trainer, pl_module, data, reached, epochs, by_lr)
        answers = [
            {"lr": lr, "epochs": e}
            | {name: quartiles(by_lr[name][epochs == e, i][0], WORST.get(name, math.inf)) for name in METRICS}
            for i, lr in enumerate(pl_module.lrs)
            for e in reached
        ]
        print(table([self._header(S), *(self._cells(answer, S) for answer in answers)]))
        print(f"Trained {L * S} network{'s'[: L * S > 1]} in {self.seconds()['train']:.1f} s")
        if missing := [e for e in self.asked if e not in whole]:
            print(f"Not measured, and so not reported: {', '.join(map(str, missing))} epochs")
        more_training = []
        for i, lr in enumerate(pl_module.lrs if len(whole) > 1 else []):
            answer = does_more_training_hurt(epochs, by_lr["true_mse"][:, i])
            text = sentence(lr, answer, S)
            more_training.append({"lr": lr, **answer, "sentence": text})
            if len(results) > 1:
                print(text)
        for lr, choice in choices.items():
            best, there = choice["best_true_mse"], choice["held_out_true_mse"]
            if math.isinf(best):
                print(f"Learning rate {lr:g}: diverged")
                continue
            print(
                f"Learning rate {lr:g}: the true error is least, {best:.4g}, at "
                f"{choice['best_epochs']:,} epochs; a held-out noisy sample chooses {choice['held_out_epochs']:,}"
                f"{', in the median over the seeds' if S > 1 else ''}, and gets {there:.4g}"
                + (f", {there / best:.2f} times that" if best else "")
            )
        summary = {
            "function": data.function,
            "x_min": data.x_min,
            "x_max": data.x_max,
            "command": command_line(),
            "results": results,
            "over_seeds": answers,
            "more_training": more_training,
            **({"auto": [{"lr": lr, **choice} for lr, choice in choices.items()]} if choices else {}),
            "seconds": self.seconds(),
        }
        write_json(self.run_dir / "summary.json", summary)

    def _draw(
        self, trainer: Trainer, pl_module: Any, data: Any, reached: list[int], epochs: np.ndarray, by_lr: Any
    ) -> None:
        S, panels = len(pl_module.seeds), []
        for e in (e for e in reached if e in self.curves):  # a resumed run may ask for more than was kept
            for i, lr in enumerate(pl_module.lrs):
                error = quartiles(by_lr["true_mse"][epochs == e, i][0])["median"]
                label = f"{'true MSE' if S == 1 else 'median true MSE'} {error:.3g}"
                title = f"{e:,} epochs, learning rate {lr:g}\n{label if math.isfinite(error) else 'diverged'}"
                panels.append((title, self.curves[e][i * S : (i + 1) * S].numpy()))
        points = (data.x[0].numpy(), data.y[0].numpy())
        if panels:
            figure = curves_figure(data.grid.numpy(), data.truth.numpy(), points, panels, data.function)
            publish(figure, "curves", self.run_dir, trainer.loggers)
        figure = error_figure(epochs, pl_module.lrs, by_lr["train_mse"], by_lr["true_mse"], data.noise_std**2)
        publish(figure, "errors", self.run_dir, trainer.loggers)

    @staticmethod
    def _header(num_seeds: int) -> list[str]:
        suffix = "" if num_seeds == 1 else " [quartiles]"
        return ["lr", "epochs", *(f"{name.replace('_max_abs', ' max')}{suffix}".replace("_", " ") for name in METRICS)]

    @staticmethod
    def _cells(answer: dict[str, Any], num_seeds: int) -> list[str]:
        cells = [f"{answer['lr']:g}", f"{answer['epochs']:,}"]
        is_finite = all(math.isfinite(answer[name]["median"]) for name in ("train_mse", "true_mse"))
        for name in METRICS:
            q = answer[name]
            if is_finite and math.isinf(q["median"]):  # a constant function has no r2, however well it is learnt
                cells.append("-")
                continue
            text = f"{q['median']:.4g}" if math.isfinite(q["median"]) else "diverged"
            cells.append(text if num_seeds == 1 else f"{text} [{q['q25']:.3g}, {q['q75']:.3g}]")
        return cells
