"""Exercise 2: ResNet-20 on CIFAR-10, and what happens when the learning rate falls."""

from scripts import START

# isort: split
import ast
import math
import os
import sys
import time
from argparse import ArgumentTypeError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from pytorch_lightning import Callback, Trainer

from callbacks import LRStep
from callbacks.epoch_record import EpochRecord, finish_seeds
from callbacks.finite_loss import StopOnNonFiniteLoss
from callbacks.motion import Motion
from callbacks.one_cycle import OneCycle
from callbacks.progress import EpochBar
from callbacks.run_page import RunPage
from callbacks.save_last import SaveLast
from callbacks.tested_images import TestedImages
from datamodules import CIFAR10DataModule
from lit_models import ResNet20Classifier
from lit_models.compilation import gains_by_compilation, has_compiler
from scripts.cli import (
    Parser,
    UserError,
    add_trainer_flags,
    build_trainer,
    check_seed,
    is_rank_zero,
    main,
    make_parser,
)
from scripts.run_dir import Checkpoint, check_fits, resolve_run_dir, start_run


@dataclass(frozen=True)
class Recipe:
    """How to train. The learning rate steps at the milestones or, with ``warm_up``, goes through one cycle."""

    lr: float
    weight_decay: float
    max_epochs: int | None = None
    max_steps: int = -1
    batch_size: int = 128
    milestones: dict[int, float] = field(default_factory=dict)
    milestones_in: Literal["epoch", "step"] = "epoch"
    warm_up: float | None = None  # the part of the training in which the rate rises to ``lr``, to fall to 0 in the rest
    momentum: float = 0.0
    nesterov: bool = False
    he_init: bool = False
    image_sizes: dict[float, int] = field(default_factory=dict)  # {from this part of the training on: pixels a side}
    max_shift: int = 4  # pixels
    alternate_flips: bool = False  # each image in every second epoch, instead of at random
    test_once: bool = False  # at the end, instead of after each epoch


RECIPES = {
    # the lab's exercise: plain SGD, 0.1 for five epochs, then 0.01 for five
    "lab": Recipe(lr=0.1, weight_decay=5e-4, max_epochs=10, milestones={5: 0.01}),
    # He et al. 2015, section 4.2: 8.75 % test error after 64,000 iterations, about 164 epochs
    "paper": Recipe(
        lr=0.1,
        weight_decay=1e-4,
        max_steps=64_000,
        milestones={32_000: 0.01, 48_000: 0.001},
        milestones_in="step",
        momentum=0.9,
        he_init=True,
    ),
    # ours: the least time to a given accuracy; what each part is worth is in docs/fast.md
    "fast": Recipe(
        lr=0.2,
        weight_decay=5e-4,
        max_epochs=54,
        warm_up=0.2,
        momentum=0.9,
        nesterov=True,
        image_sizes={0.0: 20, 0.55: 24, 0.75: 32},
        test_once=True,
    ),
}
# fast, when an image is seen fewer times than this: it needs less augmentation then, and more decay
FEW_EPOCHS = 20
FAST_IN_FEW_EPOCHS = replace(
    RECIPES["fast"],
    weight_decay=1e-3,
    image_sizes={0.0: 20, 0.65: 24, 0.85: 32},
    max_shift=2,
    alternate_flips=True,
)


CHARTS = {
    "accuracy": ["train/acc", "val/acc", "probe/acc", "test/acc"],
    "loss": ["train/loss", "val/loss", "probe/loss", "test/loss"],
    "learning rate": ["lr"],
    "images per second": ["images_per_second"],
}


class LRSteps:
    """Parses ``{epoch: lr}``, as text or from a config file; YAML's blank after the colon may be left out."""

    def __call__(self, value: Any) -> dict[int, float]:
        try:
            steps = ast.literal_eval(value) if isinstance(value, str) else value
            return {int(epoch): float(lr) for epoch, lr in steps.items()}
        except (ValueError, SyntaxError, TypeError, AttributeError, OverflowError):
            raise ArgumentTypeError(
                f"{value} is no {{epoch: lr}}: write for example '{{5: 0.01}}', or '{{}}'"
            ) from None

    def __str__(self) -> str:  # in --help
        return "{epoch: lr}"


def run() -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--recipe", type=Literal["lab", "paper", "fast"], default="lab", help="how to train")
    add("--data", type=Literal["cifar10", "synthetic"], default="cifar10", help="the dataset")
    root = os.environ.get("CIFAR10_ROOT", "data")
    add(
        "--data_root",
        type=str,
        default=root,
        help="where CIFAR-10 is, or is put; default $CIFAR10_ROOT, else data",
    )
    add("--download", type=bool, default=True, help="may CIFAR-10 be fetched when absent")
    add("--val_size", type=int, default=0, help="measure each epoch on the last N training images, held out")
    add(
        "--batch_size",
        type=int | None,
        help="global batch size, whatever the number of devices; default the recipe's",
    )
    add(
        "--compile",
        type=Literal["auto"] | bool,
        default="auto",
        help="torch.compile the network; auto: where a long run repays it",
    )
    add("--milestones", type=LRSteps(), help="LR steps, as in '{5: 0.01}'; default the recipe's")
    add("--num_seeds", type=int, default=1, help="whole runs, with seed, seed+1, ..., in sub-folders")
    add("--probe_train", type=bool, default=False, help="each epoch also measures 5,000 fixed training images")
    add_trainer_flags(parser, num_sanity_val_steps=0)
    cfg = parser.parse_args()
    if cfg.benchmark is None:
        cfg.benchmark = not cfg.deterministic  # cuDNN's fastest convolutions: the shapes stay the same

    recipe = RECIPES[cfg.recipe]
    if cfg.max_epochs is None and cfg.max_steps == -1 and cfg.max_time is None:
        cfg.max_epochs, cfg.max_steps = recipe.max_epochs, recipe.max_steps
    if cfg.num_seeds < 1:
        raise UserError(f"--num_seeds is {cfg.num_seeds}; it must be at least 1")
    for seed in (cfg.seed, cfg.seed + cfg.num_seeds - 1):
        check_seed(seed)
    if cfg.num_seeds > 1 and cfg.ckpt_path not in (None, "last"):
        raise UserError("--ckpt_path PATH resumes one run: leave out --num_seeds; with it, 'last' goes on with all")
    run_dir, checkpoint = resolve_run_dir(cfg, "runs/cifar")
    if cfg.num_seeds == 1 and any(run_dir.glob("seed*/config.yaml")):
        raise UserError(f"{run_dir} holds runs of several seeds: go on with them by the same --num_seeds")
    records: dict[int, EpochRecord] = {}
    for seed in range(cfg.seed, cfg.seed + cfg.num_seeds):
        own, own_dir = cfg.clone(), run_dir
        own.seed, own.num_seeds = seed, 1
        if cfg.num_seeds > 1:
            own_dir = run_dir / f"seed{seed}"
            if (own_dir / "summary.json").exists():
                records[seed] = EpochRecord.read(own_dir)
                if has_come_far_enough(parser.parse_path(own_dir / "config.yaml", defaults=True), cfg):
                    continue
            begun = any((own_dir / "checkpoints").glob("*.ckpt"))
            checkpoint = Checkpoint.newest(own_dir / "checkpoints") if begun else None
        start = time.perf_counter() if records else START
        data, trainer, model, records[seed] = build(parser, own, recipe, own_dir, checkpoint, start)
        check_fits(checkpoint, model)
        if own_dir != run_dir:
            start_run(parser, cfg, run_dir)
        start_run(parser, own, own_dir)
        trainer.fit(model, data, ckpt_path=checkpoint.path if checkpoint else None, weights_only=True)
        if not cfg.fast_dev_run:
            if records[seed].ended_unmeasured(trainer):
                trainer.validate(model, data, verbose=False)
            trainer.test(model, data, verbose=False)
        records[seed].finish(trainer, model)
    if not is_rank_zero():
        return
    if len(records) > 1:
        finish_seeds(run_dir, records, START)
    for seed, record in records.items():
        if record.test:
            print(f"Seed {seed}: test accuracy {record.test['acc']:.2%}, test loss {record.test['loss']:.4f}")
    print(f"The picture, metrics.csv and summary.json are in {run_dir}; all runs: tensorboard --logdir runs")


def build(
    parser: Parser, cfg: Namespace, recipe: Recipe, run_dir: Path, checkpoint: Checkpoint | None, start: float
) -> tuple[CIFAR10DataModule, Trainer, ResNet20Classifier, EpochRecord]:
    """Data, Trainer, model and record of one run; the data are found and checked, nothing is written yet."""
    batch_size = recipe.batch_size if cfg.batch_size is None else cfg.batch_size
    try:
        data = CIFAR10DataModule(
            cfg.data_root,
            batch_size,
            cfg.val_size,
            cfg.seed,
            cfg.download,
            cfg.data,
            cfg.probe_train,
        )
        schedule: Callback
        if cfg.milestones is not None:
            schedule = LRStep(cfg.milestones)
        elif recipe.warm_up is not None:
            schedule = OneCycle(recipe.lr, recipe.warm_up)
        else:
            schedule = LRStep(recipe.milestones, recipe.milestones_in)
    except ValueError as error:
        raise UserError(str(error)) from error
    measured_on = "held-out" if cfg.val_size else "test"
    facts = {"recipe": cfg.recipe, "data": cfg.data, "batch_size": batch_size}
    record = EpochRecord(run_dir, facts, start, measured_on)
    if recipe.warm_up is not None and cfg.max_epochs in (None, -1) and cfg.max_steps == -1:
        raise UserError(f"--recipe {cfg.recipe} must know its end beforehand: give --max_epochs or --max_steps")
    if recipe.test_once and not cfg.val_size and not cfg.probe_train and cfg.limit_val_batches is None:
        cfg = cfg.clone()
        cfg.limit_val_batches = 0
    if cfg.compile is True and sys.platform == "linux" and not has_compiler():
        raise UserError("--compile true needs g++ and Python's headers: install them, or leave out --compile")
    branches = schedule.milestones if isinstance(schedule, LRStep) and schedule.unit == "epoch" else ()
    save_last = SaveLast(run_dir / "checkpoints", cfg.save_every_n_steps, branches=branches)
    settings = {"recipe": cfg.recipe, "seed": cfg.seed, "batch_size": batch_size, "lr": recipe.lr}
    settings |= {"max_epochs": cfg.max_epochs, "max_steps": cfg.max_steps, "milestones": cfg.milestones}
    settings |= {"val_size": cfg.val_size, "precision": cfg.precision or "32-true", "data": cfg.data}
    page = RunPage(CHARTS, settings)
    callbacks: list[Callback] = [schedule, *([Motion()] if cfg.probe_train else []), record, StopOnNonFiniteLoss()]
    callbacks += [page, TestedImages(run_dir)]
    trainer = build_trainer(parser, cfg, run_dir, callbacks, EpochBar(), save_last)
    check_parts(data, trainer)
    data.check_processes(trainer.world_size)
    data.prepare_data()
    epochs = num_batches(data, trainer) / data.num_batches["train"]  # whole ones, whatever --limit_train_batches leaves
    if cfg.recipe == "fast" and epochs < FEW_EPOCHS:
        recipe = FAST_IN_FEW_EPOCHS
    data.image_sizes, data.max_shift = recipe.image_sizes, recipe.max_shift
    data.alternate_flips = recipe.alternate_flips
    model = ResNet20Classifier(
        recipe.lr,
        recipe.momentum,
        recipe.nesterov,
        recipe.weight_decay,
        recipe.he_init,
        compile=repays_compilation(cfg, data, trainer),
    )
    return data, trainer, model, record


def has_come_far_enough(done: Namespace, asked: Namespace) -> bool:
    """Whether a finished run of one of several seeds, with the settings ``done``, need not go on."""

    def limits(cfg: Namespace) -> list[float]:
        return [math.inf if limit in (None, -1) else limit for limit in (cfg.max_epochs, cfg.max_steps)]

    return asked.max_time == done.max_time and all(a <= d for a, d in zip(limits(asked), limits(done), strict=True))


def check_parts(data: CIFAR10DataModule, trainer: Trainer) -> None:
    """Raises UserError where Lightning would, perhaps hours later, for a part of the batches that is none."""
    for stage, of_all in data.num_batches.items():
        limit = getattr(trainer, f"limit_{stage}_batches")
        if isinstance(limit, float) and 0 < limit * of_all < 1:
            raise UserError(f"--limit_{stage}_batches {limit:g} of {of_all} batches is less than one: give more")
    interval = getattr(trainer, "val_check_interval", None)  # missing where it is a time
    batches = batches_per_epoch(data, trainer)
    if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
        raise UserError(f"--val_check_interval is {interval}, but an epoch has {batches} batches: give at most that")


def batches_per_epoch(data: CIFAR10DataModule, trainer: Trainer) -> int:
    """Training batches of an epoch, as far as ``--limit_train_batches`` leaves them."""
    of_all, limit = data.num_batches["train"], trainer.limit_train_batches
    return min(of_all, limit) if isinstance(limit, int) else int(of_all * limit)


def num_batches(data: CIFAR10DataModule, trainer: Trainer) -> float:
    """Batches of the whole training; infinite where only ``--max_time`` ends it."""
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    batches_of_all_steps = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps > 0 else math.inf
    return min(epochs * batches_per_epoch(data, trainer), batches_of_all_steps)


def repays_compilation(cfg: Namespace, data: CIFAR10DataModule, trainer: Trainer) -> bool:
    """What ``--compile`` says, or for "auto" whether the run is long enough and the machine gains by it.

    Each size of the images is compiled for itself, in 25 to 50 s the first time on two CPU cores, in 5 s later.
    """
    if cfg.compile != "auto":
        return bool(cfg.compile)
    torch._dynamo.config.suppress_errors = True  # a compiler that fails after all costs speed, not the run
    batches = num_batches(data, trainer) / max(1, len(data.image_sizes))
    return batches >= 3_000 and gains_by_compilation(trainer.strategy.root_device)


if __name__ == "__main__":
    main(run)
