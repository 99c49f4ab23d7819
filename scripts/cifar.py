"""Exercise 2: ResNet-20 on CIFAR-10, and what happens when the learning rate drops."""

from scripts import START  # first of all: it starts the clock of the total time

# isort: split
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from analysis.classifier_figures import training_figure
from analysis.files import write_json
from callbacks import LRStep, OneCycle
from callbacks.checkpointing import SaveLast
from callbacks.classifier_record import ClassifierRecord
from callbacks.epoch_averages import EpochAverages
from callbacks.finite_loss import StopOnNonFiniteLoss
from callbacks.progress import EpochBar
from callbacks.tensorboard_layout import TensorBoardLayout, publish_figure
from callbacks.test_pictures import TestPictures
from callbacks.weight_trajectory import WeightTrajectory
from datamodules import CIFAR10DataModule
from lit_models import ResNet20Classifier
from scripts.cifar_checks import check_resume, check_run, compiles
from scripts.commandline import (
    Parser,
    add_trainer_flags,
    arguments,
    default_data_root,
    is_rank_zero,
    main,
    make_parser,
    usage_errors,
)
from scripts.recipe import NAMES, recipe_defaults
from scripts.run_dir import Checkpoint, checkpoint_to_resume, plain_settings, run_directory, start_run, where_to_look
from scripts.seeds import finished_summary, seed_runs, write_summary_of_all
from scripts.trainer import build_trainer, check_seeds, flag_errors

CHARTS = {
    "accuracy": ["train/acc", "val/acc", "probe/acc", "test/acc"],
    "loss": ["train/loss", "val/loss", "probe/loss", "test/loss"],
    "learning rate": ["lr"],
    "images per second": ["train/images_per_second"],
}


def cifar_parser(recipe: Mapping[str, Any]) -> Parser:
    """All flags, with the recipe's values as their defaults."""
    parser = make_parser(__doc__ or "")
    add = parser.add_argument
    add("--recipe", type=Literal[NAMES], default="lab", help="defaults of the flags below: scripts/recipes/*.yaml")
    add("--data", type=Literal["cifar10", "synthetic"], default="cifar10", help="the dataset")
    add("--num_seeds", type=int, default=1, help="whole runs, with seed, seed+1, ..., in sub-folders")
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
    if cfg.recipe != recipe.get("recipe"):
        raise UsageError(f"--recipe {recipe.get('recipe')} is not the config file's {cfg.recipe}: give one recipe")
    check_seeds(cfg)
    if cfg.num_seeds > 1 and cfg.ckpt_path not in (None, "last"):
        raise UsageError("--ckpt_path PATH resumes one run: leave out --num_seeds; with it, 'last' resumes all")
    if cfg.warmup_fraction is not None and cfg.milestones is not None and recipe.get("warmup_fraction") is None:
        raise UsageError("--warmup_fraction is for one cycle instead of LR steps: add --milestones null")
    with run_directory(cfg.run_dir, "runs/cifar", cfg.ckpt_path) as top:
        checkpoint = checkpoint_to_resume(top, cfg.ckpt_path)
        if cfg.num_seeds == 1 and any(top.glob("seed*/config.yaml")):
            raise UsageError(f"{top} holds runs of several seeds: resume them by the same --num_seeds")
        if cfg.num_seeds > 1 and (checkpoint or (top / "metrics.csv").exists()):
            raise UsageError(f"{top} holds a single run: resume it without --num_seeds, or choose another --run_dir")
        summaries: list[dict[str, Any]] = []
        for seed_cfg, run_dir in seed_runs(cfg, top):
            done = None
            if cfg.num_seeds > 1:
                done = finished_summary(run_dir, plain_settings(parser, seed_cfg))
                has_begun = (run_dir / "config.yaml").exists()
                checkpoint = checkpoint_to_resume(run_dir, "last" if has_begun else None)
            start = time.perf_counter() if summaries else START
            summaries.append(done or train(parser, seed_cfg, cfg, run_dir, top, checkpoint, start))
        if is_rank_zero():
            if cfg.num_seeds > 1:
                write_summary_of_all(summaries, top)
            for summary in summaries:
                if summary["test_acc"] is not None:
                    result = f"test accuracy {summary['test_acc']:.2%}, test loss {summary['test_loss']:.4f}"
                    print(f"Seed {summary['seed']}: {result}")
            print(where_to_look(top))


def train(
    parser: Parser,
    cfg: Namespace,
    cfg_of_all: Namespace,
    run_dir: Path,
    top: Path,
    checkpoint: Checkpoint | None,
    start: float,
) -> dict[str, Any]:
    """One run: data, callbacks, Trainer, model, fit, test, summary; nothing is written before all of it is checked.

    ``cfg_of_all`` and ``top`` are the flags and the folder of all seeds, if there are several; else the run's own.
    """
    settings = plain_settings(parser, cfg)
    with usage_errors():
        data = CIFAR10DataModule(dataset=cfg.data, **arguments(CIFAR10DataModule, cfg))
        schedule = make_schedule(cfg)
    record = ClassifierRecord(settings, bool(checkpoint and not checkpoint.is_of(run_dir)), start)
    trajectory = [WeightTrajectory()] if cfg.probe_train else []
    shown = [TensorBoardLayout(CHARTS, settings), TestPictures(run_dir)]
    # The record reads what the callbacks before it have logged of an epoch.
    callbacks = [schedule, *trajectory, EpochAverages(), record, StopOnNonFiniteLoss(), *shown]
    save_last = SaveLast(run_dir / "checkpoints", cfg.save_every_n_steps, branches=branches(schedule))
    trainer = build_trainer(parser, cfg, run_dir, callbacks, EpochBar(), save_last, checkpoint, top)
    check_run(data, trainer, schedule, checkpoint)
    with usage_errors():
        model = ResNet20Classifier(**arguments(ResNet20Classifier, cfg) | {"compile": compiles(cfg, data, trainer)})
    if checkpoint:
        check_resume(checkpoint, model, settings, run_dir)
    data.prepare_data()  # after the checks: it may download
    with flag_errors(trainer, checkpoint, top, run_dir):
        if top != run_dir:
            start_run(plain_settings(parser, cfg_of_all), top, None)
        start_run(settings, run_dir, checkpoint)
        if is_rank_zero():
            where = f"{trainer.strategy.root_device.type} in {trainer.precision}"
            print(f"Training by recipe {cfg.recipe}, seed {cfg.seed}, on {where}")
        trainer.fit(model, data, ckpt_path=checkpoint.path if checkpoint else None, weights_only=True)
    if not cfg.fast_dev_run:
        if record.ended_unmeasured(trainer):
            trainer.validate(model, data, verbose=False)
        trainer.test(model, data, verbose=False)
    return write_results(record, model, trainer, run_dir)


def write_results(
    record: ClassifierRecord, model: ResNet20Classifier, trainer: Trainer, run_dir: Path
) -> dict[str, Any]:
    """The training figure, and summary.json, whose content it returns."""
    summary = record.summary(model, trainer.strategy.root_device)
    if trainer.is_global_zero:
        if record.epochs:
            figure = training_figure([record.epochs], [summary["test_acc"]], summary["measured_on"])
            publish_figure(figure, "training", run_dir, trainer.loggers, "val/training", trainer.global_step)
        write_json(run_dir / "summary.json", summary)
    return summary


def branches(schedule: LRStep | OneCycle) -> set[int]:
    """Epochs before which the weights are kept: those of the LR steps, and the next, for the report compares both."""
    epochs = schedule.milestones if isinstance(schedule, LRStep) and schedule.unit == "epoch" else ()
    return {epoch + i for epoch in epochs for i in (0, 1)}


def make_schedule(cfg: Namespace) -> LRStep | OneCycle:
    """LR steps where there are milestones, else one cycle where there is a warm-up fraction, else a constant rate."""
    if cfg.milestones is None and cfg.warmup_fraction is not None:
        return OneCycle(cfg.lr, cfg.warmup_fraction)
    return LRStep(cfg.milestones or {}, cfg.milestone_unit)


if __name__ == "__main__":
    main(run)
