"""Exercise 2: ResNet-20 on CIFAR-10, and what happens when the learning rate drops."""

from cli import START  # first of all: it starts the clock of the total time

# isort: split
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from pytorch_lightning import Callback, seed_everything
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_only

from analysis.figures import pixels_of, save_png, training_figure
from analysis.files import read_json, write_json
from callbacks import LRStep, OneCycle
from callbacks.classifier_record import ClassifierRecord
from callbacks.epoch_averages import EpochAverages
from callbacks.finite_loss import StopOnNonFiniteLoss
from callbacks.saving import SaveLast
from callbacks.tensorboard_layout import TensorBoardLayout, show_pictures
from callbacks.test_pictures import TestPictures
from callbacks.weight_trajectory import WeightTrajectory
from cli.command import UsageError, main, print_once
from cli.hardware import compiles
from cli.parser import Parser, add_trainer_flags, build, default_data_root, training_parser
from cli.recipe import NAMES, recipe_defaults
from cli.run import Run, plain_settings, run_folder, where_to_look, write_settings
from cli.trainer import build_trainer
from datamodules import CIFAR10DataModule
from lit_models import ResNet20Classifier

CHARTS = {
    "accuracy": ["train/acc", "val/acc", "probe/acc", "test/acc"],
    "loss": ["train/loss", "val/loss", "probe/loss", "test/loss"],
    "learning rate": ["lr"],
    "images per second": ["train/images_per_second"],
}


def cifar_parser(recipe: Mapping[str, Any]) -> Parser:
    """All flags, with the recipe's values as their defaults."""
    parser = training_parser(__doc__)
    add = parser.add_argument
    add("--recipe", type=Literal[NAMES], default="lab", help="defaults of the flags below: cli/recipes/*.yaml")
    add("--data", type=Literal["cifar10", "synthetic"], default="cifar10", help="the dataset")
    add("--num_seeds", type=PositiveInt, default=1, help="whole runs, with seed, seed+1, ..., in sub-folders")
    steps = "LR steps, as in '{5: 0.01}'; '{}': none; they replace one cycle"
    add("--milestones", type=Mapping[float, float] | None, help=steps)
    add("--milestone_unit", type=Literal["epoch", "step"], default="epoch", help="what milestones are counted in")
    add("--warmup_fraction", type=float | None, help="one cycle of the LR that rises in this fraction of the steps")
    auto = "torch.compile the network; auto: where a long run repays it"
    add("--compile", type=Literal["auto"] | bool, default="auto", help=auto)
    parser.add_class_arguments(ResNet20Classifier, skip={"compile"})
    parser.add_class_arguments(CIFAR10DataModule, skip={"dataset", "seed"})
    add_trainer_flags(parser, num_sanity_val_steps=0)
    parser.set_defaults({"data_root": default_data_root(), **recipe})
    return parser


def run() -> None:
    recipe = recipe_defaults(sys.argv[1:])
    parser = cifar_parser(recipe)
    cfg = parser.parse_args()
    if cfg.warmup_fraction is not None and cfg.milestones is not None and recipe.get("warmup_fraction") is None:
        raise UsageError("--warmup_fraction is for one cycle instead of LR steps: add --milestones null")
    folder = run_folder(cfg, "runs/cifar")
    summaries = [train(parser, cfg, folder, START)] if cfg.num_seeds == 1 else train_seeds(parser, cfg, folder)
    for summary in summaries:
        if summary["test_acc"] is not None:
            result = f"test accuracy {summary['test_acc']:.2%}, test loss {summary['test_loss']:.4f}"
            print_once(f"Seed {summary['seed']}: {result}", sys.stdout)
    print_once(where_to_look(folder), sys.stdout)


def train(parser: Parser, cfg: Namespace, folder: Path, start: float) -> dict[str, Any]:
    """One run, as Lightning has it: data, model, callbacks, Trainer, fit, test; returns its summary."""
    seed_everything(cfg.seed, workers=True)
    with Run(parser, cfg, folder) as this:
        data = build(CIFAR10DataModule, cfg, dataset=cfg.data)
        model = build(ResNet20Classifier, cfg, compile=compiles(cfg, data.num_train - data.val_size))
        schedule = make_schedule(cfg)
        record = ClassifierRecord(this.settings, this.is_branch, start)
        saving = SaveLast(
            folder / "checkpoints",
            cfg.save_every_n_steps,
            branches=branches(schedule),
            advice=this.how_to_resume(),
            requeues=cfg.run_dir is not None,
        )
        # The record reads what the callbacks before it have logged of an epoch.
        callbacks: list[Callback] = [schedule, *([WeightTrajectory()] if cfg.probe_train else []), EpochAverages()]
        callbacks += [record, StopOnNonFiniteLoss(), TensorBoardLayout(CHARTS, this.settings), TestPictures(folder)]
        trainer = build_trainer(parser, cfg, this, [*callbacks, saving], TQDMProgressBar(refresh_rate=10))
        where = f"{trainer.strategy.root_device.type} in {trainer.precision}"
        print_once(f"Training by recipe {cfg.recipe}, seed {cfg.seed}, on {where}", sys.stdout)
        trainer.fit(model, data, ckpt_path=this.ckpt_path, weights_only=True)
        if not cfg.fast_dev_run:
            if record.ended_unmeasured(trainer):
                trainer.validate(model, data, verbose=False)
            trainer.test(model, data, verbose=False)
        summary = record.summary(model, trainer.strategy.root_device)
        if trainer.is_global_zero:
            if record.epochs:
                show_pictures(
                    [(trainer.global_step, draw_training([summary], folder))], "val/training", trainer.loggers
                )
            write_json(folder / "summary.json", summary)
    return summary


def make_schedule(cfg: Namespace) -> LRStep | OneCycle:
    """LR steps where there are milestones, else one cycle where there is a warm-up fraction, else a constant rate."""
    if cfg.milestones is None and cfg.warmup_fraction is not None:
        return build(OneCycle, cfg)
    return build(LRStep, cfg, milestones=cfg.milestones or {}, unit=cfg.milestone_unit)


def branches(schedule: LRStep | OneCycle) -> set[int]:
    """Epochs before which the weights are kept: those of the LR steps, and the next, for the report compares both."""
    epochs = schedule.milestones if isinstance(schedule, LRStep) and schedule.unit == "epoch" else ()
    return {epoch + i for epoch in epochs for i in (0, 1)}


def train_seeds(parser: Parser, cfg: Namespace, top: Path) -> list[dict[str, Any]]:
    """A run for each seed in a sub-folder; in ``top`` the settings and the summary of them all."""
    if cfg.ckpt_path not in (None, "last"):
        raise UsageError("--ckpt_path PATH resumes one run: leave out --num_seeds; with it, 'last' resumes all")
    if (top / "metrics.csv").exists():
        raise UsageError(f"{top} holds a single run: resume it without --num_seeds, or choose another --run_dir")
    runs = []
    for seed in range(cfg.seed, cfg.seed + cfg.num_seeds):
        folder = top / f"seed{seed}"
        ckpt_path = "last" if cfg.ckpt_path and (folder / "config.yaml").exists() else None
        runs.append((Namespace({**cfg, "seed": seed, "num_seeds": 1, "ckpt_path": ckpt_path}), folder))
    finished = [finished_summary(parser, *run) for run in runs]  # before any process has run one of them
    summaries: list[dict[str, Any]] = []
    for (seed_cfg, folder), summary in zip(runs, finished, strict=True):
        summaries.append(summary or train(parser, seed_cfg, folder, time.perf_counter() if summaries else START))
    write_summary_of_all(summaries, top, plain_settings(parser, cfg))
    return summaries


def finished_summary(parser: Parser, cfg: Namespace, folder: Path) -> dict[str, Any] | None:
    """The summary of a seed's run that has ended already and was asked for with the same settings; None without."""
    path = folder / "summary.json"
    summary: dict[str, Any] | None = read_json(path) if cfg.ckpt_path and path.exists() else None
    return summary if summary and summary["settings"] == plain_settings(parser, cfg) else None


@rank_zero_only
def write_summary_of_all(summaries: Sequence[dict[str, Any]], top: Path, settings: Mapping[str, Any]) -> None:
    """The settings, the figure, and summary.json: each seed's results, their means and standard deviations."""
    write_settings(top, settings)
    if all(summary["epochs"] for summary in summaries):
        draw_training(summaries, top)
    spread: dict[str, float | None] = {}
    for name in ("test_acc", "test_loss"):
        values = [summary[name] for summary in summaries if summary[name] is not None]
        if values:
            spread[f"{name}_mean"] = statistics.mean(values)
            spread[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    content = {
        **{name: summaries[0][name] for name in ("recipe", "data")},
        **spread,
        "runs": [{name: s[name] for name in ("seed", "test_acc", "test_loss", "epochs")} for s in summaries],
        "seconds": {name: sum(summary["seconds"][name] for summary in summaries) for name in ("train", "total")},
    }
    write_json(top / "summary.json", content)


def draw_training(summaries: Sequence[dict[str, Any]], folder: Path) -> np.ndarray:
    """Writes training.png; returns its pixels."""
    epochs, tested = ([summary[name] for summary in summaries] for name in ("epochs", "test_acc"))
    pixels = pixels_of(training_figure(epochs, tested, summaries[0]["measured_on"]))
    save_png(pixels, folder / "training.png")
    return pixels


if __name__ == "__main__":
    main(run)
