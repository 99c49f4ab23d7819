"""Exercise 1: a small MLP learns a curve from noisy samples, for every learning rate, seed and epoch count."""

from scripts import START  # first of all: it starts the clock of the total time

# isort: split
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from analysis.curve_figures import curve_cards
from analysis.files import write_json
from callbacks.checkpointing import SaveLast
from callbacks.curve_record import CurveRecord
from callbacks.progress import TrajectoryBar
from callbacks.tensorboard_layout import TensorBoardLayout, publish_figure, show_pictures
from datamodules import CurveDataModule
from lit_models import FunctionRegressor
from scripts.commandline import Parser, add_trainer_flags, arguments, main, make_parser, usage_errors
from scripts.rendering import fit_text
from scripts.run_dir import Checkpoint, checkpoint_to_resume, plain_settings, run_directory, start_run, where_to_look
from scripts.trainer import build_trainer, check_callbacks, check_seeds, flag_errors

DEFAULT_EPOCHS = [1000]
AUTO_HORIZON = 50_000  # epochs in which --epochs auto looks for the best
MOST_SAVES = 1_000  # by --save_every_n_steps: each costs more than some hundred epochs
CHARTS = {"median error": ["train/loss", "val/loss"]}
# A checkpoint's weights, and the learning rates in its optimizer's state, are used as they are: with other settings the
# results would be reported of some that were never used. More epochs make it no other run.
DECIDES = ("lr", "hidden", "function", "x_min", "x_max", "num_samples", "noise_std", "seed", "num_seeds", "precision")
RESUME = "resume it with its own settings, which are in config.yaml, or start anew in another --run_dir"


def fit_parser() -> Parser:
    parser = make_parser(__doc__ or "")
    add = parser.add_argument
    text = "epoch counts, every one reported; auto: the one of lowest MSE against f, up to the largest given, or 50,000"
    add("--epochs", type=int | Literal["auto"], nargs="+", default=DEFAULT_EPOCHS, help=text)
    add("--lr", type=float, nargs="+", default=[0.01], help="learning rates of Adam; every one is trained")
    add("--num_seeds", type=int, default=1, help="repetitions: seed, seed+1, ...")
    add("--hidden", type=int, nargs="+", default=[32, 32], help="widths of the hidden layers (ReLU)")
    parser.add_class_arguments(CurveDataModule, skip={"seeds"})
    # Networks this small train faster on a CPU than on any accelerator.
    add_trainer_flags(parser, accelerator="cpu", devices=1, num_sanity_val_steps=0, precision="32-true")
    return parser


def run() -> None:
    parser = fit_parser()
    cfg = parser.parse_args()
    asked, last = epoch_counts(cfg)
    check(cfg, [*asked, last])
    lrs, seeds = list(dict.fromkeys(cfg.lr)), list(range(cfg.seed, cfg.seed + cfg.num_seeds))
    with usage_errors():
        data = CurveDataModule(seeds=seeds, **arguments(CurveDataModule, cfg))
    model = FunctionRegressor(
        lrs, seeds, measured_epochs(asked, last, cfg.save_every_n_steps), hidden=cfg.hidden, **data.scale
    )
    if len(lrs) * len(seeds) < 8:
        torch.set_num_threads(1)  # measured: so small a batch gains nothing from a second thread, and may wait for it
    with run_directory(cfg.run_dir, "runs/fit", cfg.ckpt_path) as run_dir:
        checkpoint = checkpoint_to_resume(run_dir, cfg.ckpt_path)
        settings = plain_settings(parser, cfg)
        if checkpoint:
            checkpoint.check_fits(model)
            checkpoint.check_same(settings, DECIDES, RESUME)
        is_trained = checkpoint is not None and has_only_results_left(checkpoint, run_dir, last)
        record = CurveRecord(
            asked, "auto" in cfg.epochs, settings, bool(checkpoint and not checkpoint.is_of(run_dir)), START
        )
        callbacks = [record, TensorBoardLayout(CHARTS, settings)]
        save_last = SaveLast(run_dir / "checkpoints", cfg.save_every_n_steps, interval=60.0, each_epoch=False)
        # The model ends the training run. Without batches Lightning loads the checkpoint, and trains nothing.
        instead = {"max_epochs": -1, "max_steps": -1, "min_epochs": None, "min_steps": None, "devices": 1}
        instead |= {"limit_train_batches": 0} if is_trained else {}
        trainer = build_trainer(
            parser, cfg, run_dir, callbacks, TrajectoryBar(), save_last, checkpoint, run_dir, **instead
        )
        check_callbacks(trainer, ["train/loss", *(["val/loss"] if trainer.limit_val_batches else [])])

        with flag_errors(trainer, checkpoint, run_dir):
            start_run(settings, run_dir, checkpoint)
            todo = "Writing the results of" if is_trained else "Fitting"
            print(f"{todo} {data.function} for {last:,} epochs, learning rates {lrs}, seeds {seeds}")
            trainer.fit(model, data, ckpt_path=checkpoint.path if checkpoint else None, weights_only=True)
        print(fit_text(write_results(record, model, data, trainer, run_dir)) + noise_hint(data))
        print(where_to_look(run_dir))


def write_results(
    record: CurveRecord, model: FunctionRegressor, data: CurveDataModule, trainer: Trainer, run_dir: Path
) -> dict[str, Any]:
    """The figures, curves.json (snapshots of the fitted curves), and summary.json, whose content it returns."""
    summary, growth = record.summary(model, data), record.growth(model, data)
    for name, figure in record.figures(model, data, summary).items():
        loggers = trainer.loggers if name == "errors" else ()  # curves.png has many panels, a card shows few
        publish_figure(figure, name, run_dir, loggers, f"val/{name}", model.epochs_done)
    show_pictures(curve_cards(growth, [row["epochs"] for row in summary["results"]]), "val/curve", trainer.loggers)
    write_json(run_dir / "curves.json", growth, indent=None)
    write_json(run_dir / "summary.json", summary)
    return summary


def noise_hint(data: CurveDataModule) -> str:
    """A line on noise that drowns f; empty where it does not, and of a constant f."""
    deviation = data.truth.std(correction=0).item()
    if not 1e-12 * data.truth.abs().max() < deviation < data.noise_std:  # 1e-12: the rounding of a constant
        return ""
    less = float(f"{0.4 * deviation:.1g}")  # as in the lab, where it is 3 beside a deviation of 7.6
    noise = f"The noise ({data.noise_std:g}) is larger than f's own standard deviation ({deviation:.2g})"
    return f"\n{noise}: the points hardly show f; try --noise_std {less:g}"


def epoch_counts(cfg: Namespace) -> tuple[list[int], int]:
    """The epoch counts to report, and the last one; an epoch is a step.

    ``--max_epochs`` and ``--max_steps`` cut what is asked for. The default of ``--epochs`` they may also exceed, even
    where it is written out.
    """
    asked = [e for e in cfg.epochs if e != "auto"]
    last = max(asked, default=AUTO_HORIZON)
    limits = [limit for limit in (cfg.max_epochs, cfg.max_steps) if limit not in (None, -1)]
    if limits and (min(limits) < last or cfg.epochs == DEFAULT_EPOCHS):
        last = min(limits)
        asked = [*(e for e in asked if e < last), last]
    return asked, last


def measured_epochs(asked: Sequence[int], last: int, save_every: int | None = None) -> list[int]:
    """When to measure on the way: about ten times a decade, at least every 2,000 epochs, and where asked.

    And every ``save_every`` epochs, since only after a measurement can a checkpoint be saved.
    """
    epochs = {round(10 ** (i / 10)) for i in range(100)} | set(range(2000, last, 2000)) | {*asked, last}
    if save_every:
        step = max(save_every, math.ceil(last / MOST_SAVES))
        epochs |= set(range(step, last, step))
    return sorted(e for e in epochs if e <= last)


def check(cfg: Namespace, epochs: Sequence[int]) -> None:
    """Raises UsageError for settings, with these epoch counts, that make no training run."""
    check_seeds(cfg)
    for name, values in (("epochs", epochs), ("hidden", cfg.hidden)):
        if min(values, default=0) < 1:
            raise UsageError(f"--{name} is {min(values, default=0)}; it must be at least 1")
    if max(epochs) > 10**9:
        raise UsageError(f"--epochs is {max(epochs):,}; it must be at most {10**9:,}")
    if not all(0 < lr < math.inf for lr in cfg.lr):
        raise UsageError(f"--lr is {cfg.lr}; a learning rate is above 0 and finite")
    if str(cfg.precision) not in ("32", "64", "32-true", "64-true"):
        raise UsageError("fit.py trains in --precision 32-true or 64-true")
    if cfg.devices not in (1, "1", "auto") or cfg.num_nodes != 1:
        raise UsageError("fit.py trains all settings together on one device: leave --devices and --num_nodes at 1")


def has_only_results_left(checkpoint: Checkpoint, run_dir: Path, last: int) -> bool:
    """Whether all epochs are trained, and summary.json is missing.

    Raises:
        UsageError: it has done all the epochs asked for, and has its results.
    """
    done = checkpoint.next_step - 1
    if done < last:
        return False
    if done == last and checkpoint.is_of(run_dir) and not (run_dir / "summary.json").exists():
        return True
    raise UsageError(f"{checkpoint.path} has {done:,} epochs already: ask for more with --epochs")


if __name__ == "__main__":
    main(run)
