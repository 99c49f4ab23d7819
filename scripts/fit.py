"""Exercise 1: a small MLP learns a curve from noisy samples, for every learning rate, seed and epoch count."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before what PYTHONPATH holds
from cli import START  # before all others: it starts the clock of the total time
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt
from pytorch_lightning import seed_everything

from analysis.curves import error_name, fit_text, spread_over_seeds
from analysis.figures import errors_figure, fit_cards, fits_figure, save_png, show_pictures
from analysis.files import write_json
from callbacks.curve_record import CurveRecord
from callbacks.saving import SaveLast
from cli.command import UsageError, main
from cli.parser import Parser, add_trainer_flags, build, training_parser
from cli.run import Run, run_folder, where_to_look
from cli.trainer import build_trainer
from datamodules import CurveDataModule
from lit_models import FunctionRegressor

AUTO_HORIZON = 50_000  # epochs in which --epochs auto looks for the best
MOST_SAVES = 1_000  # by --save_every_n_steps: each costs more than some hundred epochs


def fit_parser() -> Parser:
    parser = training_parser(__doc__)
    add = parser.add_argument
    text = "epoch counts, every one reported (default 1000, or --max_epochs); auto: the one of the lowest error, up "
    add("--epochs", type=PositiveInt | Literal["auto"], nargs="+", help=text + "to the largest given, or 50,000")
    add("--lr", type=PositiveFloat, nargs="+", default=[0.01], help="learning rates of Adam; every one is trained")
    add("--num_seeds", type=PositiveInt, default=1, help="repetitions: seed, seed+1, ...")
    add("--hidden", type=PositiveInt, nargs="+", default=[32, 32], help="widths of the hidden layers (ReLU)")
    add("--columns", type=str, nargs=2, metavar=("X", "Y"), help="the names of two columns in the header of --csv")
    parser.add_class_arguments(CurveDataModule, skip={"seeds", "columns", "x", "y"})
    # Networks this small train faster on a CPU than on any accelerator.
    add_trainer_flags(parser, accelerator="cpu", devices=1, num_sanity_val_steps=0, precision="32-true")
    return parser


def fit() -> None:
    parser = fit_parser()
    cfg = parser.parse_args()
    is_full = str(cfg.precision) in ("32", "64", "32-true", "64-true")
    if not is_full or cfg.num_nodes != 1 or cfg.devices not in (1, "1", "auto"):
        raise UsageError("all settings train together: leave --devices at 1, and --precision at 32-true or 64-true")
    asked, last = epoch_counts(cfg)
    lrs, seeds = list(dict.fromkeys(cfg.lr)), list(range(cfg.seed, cfg.seed + cfg.num_seeds))
    seed_everything(cfg.seed, workers=True)
    data = build(CurveDataModule, cfg, seeds=seeds)
    measure_at = measured_epochs(asked, last, cfg.save_every_n_steps)
    model = build(FunctionRegressor, cfg, lrs=lrs, seeds=seeds, measure_at=measure_at, **data.scale)
    if len(lrs) * len(seeds) < 8:
        torch.set_num_threads(1)  # measured: so small a batch gains nothing from a second thread, and may wait for it
    folder = run_folder(cfg, "runs/fit")
    run = Run(parser, cfg, folder, folder, START)
    record = CurveRecord(asked, "auto" in (cfg.epochs or ()))
    # The model ends the training run. Without batches Lightning loads the checkpoint, and trains nothing.
    instead: dict[str, Any] = {"max_epochs": -1, "max_steps": -1, "min_epochs": None, "min_steps": None}
    done = run.checkpoint.next_step - 1 if run.checkpoint else 0
    if done > last:
        raise UsageError(f"{run.ckpt_path} has {done:,} epochs already: ask for at least as many with --epochs")
    if done == last:
        instead["limit_train_batches"] = 0
    callbacks = [run, record, SaveLast(**run.saving, interval=60, each_epoch=False)]
    trainer = build_trainer(parser, cfg, run, callbacks, **instead)
    read = "" if data.function in (None, cfg.function) else f" (read from {cfg.function!r})"
    print(f"Fitting {data.title}{read} for {last:,} epochs, learning rates {lrs}, seeds {seeds}")
    trainer.fit(model, data, ckpt_path=run.ckpt_path, weights_only=True)
    print(fit_text(write_results(record, model, data, run)))
    print(where_to_look(folder))


def epoch_counts(cfg: Namespace) -> tuple[list[int], int]:
    """The epoch counts to report, and the last one; ``--max_epochs`` and ``--max_steps`` cut them."""
    limits = [limit for limit in (cfg.max_epochs, cfg.max_steps) if limit not in (None, -1)]
    asked = [epochs for epochs in cfg.epochs or [min(limits, default=1000)] if epochs != "auto"]
    last = min([max(asked, default=AUTO_HORIZON), *limits])
    if not 1 <= last <= 10**9:
        raise UsageError(f"{last:,} epochs are too few or too many: from 1 to {10**9:,}")
    return ([e for e in asked if e < last] + [last] if asked or limits else []), last


def measured_epochs(asked: Sequence[int], last: int, save_every: int | None = None) -> list[int]:
    """When to measure on the way: from 10 on ten times a decade, at least every 2,000 epochs, and where asked."""
    epochs = {1, 2, 5} | {round(10 ** (i / 10)) for i in range(10, 100)} | set(range(2000, last, 2000)) | {*asked, last}
    if save_every:  # only after a measurement can a checkpoint be saved
        step = max(save_every, math.ceil(last / MOST_SAVES))
        epochs |= set(range(step, last, step))
    return sorted(e for e in epochs if e <= last)


def write_results(record: CurveRecord, model: FunctionRegressor, data: CurveDataModule, run: Run) -> dict[str, Any]:
    """The figures, curves.json (how the fitted curves grow), and summary.json, whose content it returns."""
    summary, growth = run.with_facts(record.summary(model, data)), record.growth(model, data)
    epochs, values = record.table(model)
    if len(epochs):
        reported = {row["epochs"] for row in summary["over_seeds"]}
        save_png(fits_figure(growth, reported, data.title), run.folder / "curves.png")
        rows = spread_over_seeds(model.lrs, epochs, values)
        errors = errors_figure(rows, data.noise_std**2, error_name(data.function))
        pixels = save_png(errors, run.folder / "errors.png")
        show_pictures([(model.epochs_done, pixels)], "val/errors", model.trainer.loggers)
    show_pictures(fit_cards(growth), "val/curve", model.trainer.loggers)
    write_json(run.folder / "curves.json", growth, indent=None)
    write_json(run.folder / "summary.json", summary)
    return summary


if __name__ == "__main__":
    main(fit)
