"""Exercise 2: ResNet-20 on CIFAR-10 or on pictures of your own, and what happens when the learning rate drops."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before what PYTHONPATH holds
from cli import START  # before all others: it starts the clock of the total time
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from pytorch_lightning import Callback, seed_everything
from pytorch_lightning.callbacks import TQDMProgressBar

from analysis.figures import save_png, show_pictures, training_figure
from analysis.files import write_json
from callbacks import LRStep, OneCycle
from callbacks.classifier_record import ClassifierRecord
from callbacks.epoch_averages import EpochAverages
from callbacks.finite_loss import StopOnNonFiniteLoss
from callbacks.saving import SaveLast
from callbacks.test_pictures import TestPictures
from cli.command import UsageError, is_rank_zero, main, print_once
from cli.hardware import fastest
from cli.parser import Parser, add_trainer_flags, build, training_parser
from cli.recipe import NAMES, recipe_defaults
from cli.run import Run, run_folder, saved_settings, where_to_look
from cli.seeds import train_seeds
from cli.trainer import build_trainer
from datamodules import CIFAR10DataModule
from datamodules.pictures import counts
from lit_models import ResNet20Classifier


def cifar_parser(recipe: dict[str, Any]) -> Parser:
    """All flags, with the recipe's values as their defaults."""
    parser = training_parser(__doc__)
    add = parser.add_argument
    add("--recipe", type=Literal[NAMES], default="lab", help="defaults of the flags below: cli/recipes/*.yaml")
    add("--data", type=Literal["cifar10", "synthetic", "folder"], default="cifar10", help="folder: own pictures")
    add("--num_seeds", type=PositiveInt, default=1, help="whole runs, with seed, seed+1, ..., in sub-folders")
    steps = "LR steps, as in '{5: 0.01}'; '{}': none; they replace one cycle"
    add("--milestones", type=Mapping[float, float] | None, help=steps)
    add("--milestone_unit", type=Literal["epoch", "step"], default="epoch", help="what milestones are counted in")
    add("--warmup_fraction", type=float | None, help="one cycle of the LR that rises in this fraction of the steps")
    auto = "torch.compile the network; auto: where a long run repays it"
    add("--compile", type=Literal["auto"] | bool, default="auto", help=auto)
    parser.add_class_arguments(ResNet20Classifier, skip={"compile", "num_classes"})
    parser.add_class_arguments(CIFAR10DataModule, skip={"dataset", "seed"})
    add_trainer_flags(parser, num_sanity_val_steps=0)
    parser.set_defaults(recipe)
    return parser


def cifar() -> None:
    recipe = recipe_defaults(sys.argv[1:])
    parser = cifar_parser(recipe)
    cfg = parser.parse_args()
    if cfg.warmup_fraction is not None and cfg.milestones is not None and recipe.get("warmup_fraction") is None:
        raise UsageError("--warmup_fraction is for one cycle instead of LR steps: add --milestones null")
    num_images = 0  # pictures of your own are too few to measure for
    if cfg.data != "folder":  # what the flags have wrong is said before anything is measured
        build(ResNet20Classifier, cfg, compile=False)
        data = build(CIFAR10DataModule, cfg, dataset=cfg.data)
        num_images = data.num_train - data.val_size
        if not cfg.download and is_rank_zero():
            data.prepare_data()
    cfg = fastest(cfg, num_images, saved_settings(cfg))
    folder = run_folder(cfg, "runs/cifar")
    if cfg.num_seeds == 1:
        summaries = [train(parser, cfg, folder, folder, START)]
    else:
        summaries = train_seeds(parser, cfg, folder, partial(train, parser))
    for summary in summaries:
        if summary["test_acc"] is not None:
            each = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in summary["per_class_acc"].items())
            print_once(f"Seed {summary['seed']}: test accuracy of each class: {each}")
            print_once("Seed {seed}: test accuracy {test_acc:.2%}, test loss {test_loss:.4f}".format_map(summary))
    print_once(where_to_look(folder))


def train(parser: Parser, cfg: Namespace, folder: Path, top: Path, start: float) -> dict[str, Any]:
    """One run, in Lightning's order: data, model, callbacks, Trainer, fit, test; returns its summary.

    ``top`` is the folder of all seeds' runs; ``start`` is when this one began, for the seconds in all.
    """
    seed_everything(cfg.seed, workers=True)
    run = Run(parser, cfg, folder, top, start)
    if cfg.data == "folder" and cfg.data_root:
        print_once(f"Reading the pictures in {cfg.data_root}")
    data = build(CIFAR10DataModule, cfg, dataset=cfg.data)
    model = build(ResNet20Classifier, cfg, num_classes=len(data.classes))
    record, pictures = ClassifierRecord(start), TestPictures(folder)
    callbacks = make_callbacks(cfg, run, record, pictures)
    trainer = build_trainer(parser, cfg, run, callbacks)
    where = f"{trainer.strategy.root_device.type} in {trainer.precision}"
    print_once(f"Training by recipe {cfg.recipe}, seed {cfg.seed}, on {where}")
    if not (data.val_size or data.test_each_epoch or data.probe_train):
        print_once("val_acc is -: measured at the end only. For a curve: --test_each_epoch true or --val_size N")
    if data.pictures:
        print_once(counts(data.classes, data.pictures))
    trainer.fit(model, data, ckpt_path=run.ckpt_path, weights_only=True)
    if not cfg.fast_dev_run:
        if record.ended_unmeasured():
            trainer.validate(model, data, verbose=False)
        trainer.test(model, data, verbose=False)
    results = record.summary(run.settings, model, trainer.strategy.root_device)
    summary = run.with_facts(results | {"per_class_acc": pictures.per_class_acc})
    if trainer.is_global_zero:
        if summary["epochs"]:
            figure = training_figure([summary["epochs"]], [summary["test_acc"]], summary["measured_on"])
            pixels = save_png(figure, folder / "training.png")
            show_pictures([(trainer.global_step, pixels)], "val/training", trainer.loggers)
        write_json(folder / "summary.json", summary)
    return summary


def make_callbacks(cfg: Namespace, run: Run, record: ClassifierRecord, pictures: TestPictures) -> list[Callback]:
    """The callbacks of a run; the record reads what those before it have logged of an epoch."""
    milestones, unit = cfg.milestones or {}, cfg.milestone_unit  # without milestones a constant rate
    has_one_cycle = cfg.milestones is None and cfg.warmup_fraction is not None
    schedule = build(OneCycle, cfg) if has_one_cycle else build(LRStep, cfg, milestones=milestones, unit=unit)
    # The weights before each LR step are kept, and those one epoch later, for the report compares both.
    epochs = {epoch + i for epoch in milestones for i in (0, 1)} if unit == "epoch" else ()
    saving = SaveLast(**run.saving, keep_before=epochs)
    bar = TQDMProgressBar(refresh_rate=10)
    return [run, schedule, EpochAverages(), record, StopOnNonFiniteLoss(), pictures, saving, bar]


if __name__ == "__main__":
    main(cifar)
