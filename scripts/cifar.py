"""Exercise 2: ResNet-20 on CIFAR-10, and what happens when the learning rate falls."""

from scripts.cli import START, UserError, build_trainer, main, make_parser, prepare_run_dir  # isort: skip

import os
from dataclasses import dataclass
from typing import Literal

from callbacks import LRStep
from callbacks.epoch_record import EpochRecord
from callbacks.progress import EpochBar
from datamodules import CIFAR10DataModule
from lit_models import ResNet20Classifier


@dataclass(frozen=True)
class Recipe:
    max_epochs: int
    batch_size: int
    lr: float
    milestones: dict[int, float]
    momentum: float
    weight_decay: float
    he_init: bool


RECIPES = {
    # the lab's exercise: SGD, 0.1 for five epochs, then 0.01 for five
    "lab": Recipe(10, 128, 0.1, {5: 0.01}, momentum=0.0, weight_decay=5e-4, he_init=False),
}


def run() -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--recipe", type=Literal["lab"], default="lab", help="how to train")
    add("--data", type=Literal["cifar10", "synthetic"], default="cifar10", help="the dataset")
    root = os.environ.get("CIFAR10_ROOT", "data")
    add("--data_root", type=str, default=root, help="where CIFAR-10 is, or is put; default $CIFAR10_ROOT, else data")
    add("--download", type=bool, default=True, help="may CIFAR-10 be fetched when absent")
    add("--val_size", type=int, default=0, help="measure each epoch on the last N training images, held out")
    add("--batch_size", type=int | None, help="global batch size, whatever the number of devices; default the recipe's")
    add("--compile", type=Literal["auto"] | bool, default="auto", help="torch.compile the network")
    add("--milestones", type=dict[int, float] | None, help="LR steps {epoch: lr}; default the recipe's")
    parser.set_defaults(num_sanity_val_steps=0)
    cfg = parser.parse_args()

    recipe = RECIPES[cfg.recipe]
    if cfg.max_epochs is None and cfg.max_steps == -1 and cfg.max_time is None:
        cfg.max_epochs = recipe.max_epochs
    batch_size = recipe.batch_size if cfg.batch_size is None else cfg.batch_size
    try:
        data = CIFAR10DataModule(cfg.data_root, batch_size, cfg.val_size, cfg.seed, cfg.download, cfg.data)
        lr_step = LRStep(recipe.milestones if cfg.milestones is None else cfg.milestones)
    except ValueError as error:
        raise UserError(str(error)) from error
    run_dir, ckpt_path = prepare_run_dir(parser, cfg, "runs/cifar")
    record = EpochRecord(run_dir, {"recipe": cfg.recipe, "data": cfg.data}, START)
    trainer = build_trainer(cfg, run_dir, ckpt_path, [lr_step, record], EpochBar())
    model = ResNet20Classifier(
        recipe.lr, recipe.momentum, recipe.weight_decay, recipe.he_init, compile=cfg.compile is True
    )
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    if not trainer.fast_dev_run:
        trainer.test(model, data, verbose=False)
    record.finish(trainer, model)
    if record.test:
        print(f"Test accuracy {record.test['acc']:.2%}, test loss {record.test['loss']:.4f}")
    print(f"The picture, metrics.csv and summary.json are in {run_dir}; all runs: tensorboard --logdir runs")


if __name__ == "__main__":
    main(run)
