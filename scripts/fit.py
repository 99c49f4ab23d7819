"""Exercise 1: a small MLP learns a curve from noisy samples, for every learning rate, seed and epoch count."""

from typing import Any, Literal

from scripts import START

# isort: split
import torch

from callbacks.curve_record import CurveRecord
from callbacks.progress import TrajectoryBar
from callbacks.run_page import RunPage
from callbacks.save_last import SaveLast
from datamodules import CurveDataModule
from lit_models import FunctionRegressor
from scripts.cli import (
    UserError,
    add_trainer_flags,
    build_trainer,
    check_seed,
    main,
    make_parser,
)
from scripts.run_dir import Checkpoint, check_fits, resolve_run_dir, start_run

AUTO_HORIZON = 50_000  # epochs in which --epochs auto looks for the best
MOST_SAVES = 1_000  # by --save_every_n_steps: each costs more than some hundred epochs


def measured_epochs(asked: list[int], save_every: int | None) -> list[int]:
    """When to measure on the way: about ten times a decade, at least every 2,000 epochs, and where asked.

    And every ``save_every`` epochs, since only after a measurement can a checkpoint be saved.
    """
    last = max(asked)
    epochs = {round(10 ** (i / 10)) for i in range(100)} | set(range(2000, last, 2000)) | set(asked)
    if save_every:
        step = max(save_every, -(-last // MOST_SAVES))
        epochs |= set(range(step, last, step))
    return sorted(e for e in epochs if e <= last)


def check_same(checkpoint: Checkpoint, model: FunctionRegressor, data: CurveDataModule, precision: str) -> None:
    """Raises UserError where the checkpoint was trained with other settings than these.

    Its weights and the optimizer's state, learning rates and all, go on as they are: the results would be told of
    settings that were never used. More epochs make it no other run.
    """
    before = as_flags(checkpoint.settings, "64-true" if checkpoint.dtype == torch.float64 else "32-true")
    now = as_flags({**model.hparams, **data.hparams}, precision)
    if changed := [f"{flag} {before[flag]}, not {now[flag]}" for flag in before if before[flag] != now[flag]]:
        raise UserError(
            f"{checkpoint.path} was trained with {'; '.join(changed)}: resume it with its own settings, which are in "
            "config.yaml, or start anew in another --run_dir"
        )


def as_flags(settings: dict[str, Any], precision: str) -> dict[str, str]:
    """{flag: value} of all that decides what an epoch does, from the hyperparameters of the model and of the data."""
    seeds = settings["seeds"]
    values = {"lr": settings["lrs"], "seed": seeds[0], "num_seeds": len(seeds), "precision": precision}
    names = ("hidden", "function", "x_min", "x_max", "num_samples", "noise_std")
    values |= {name: settings[name] for name in names if name in settings}  # older checkpoints lack those of the data
    return {f"--{name}": " ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in values.items()}


def run() -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--function", default="x**2 + 2*sin(x) + cos(x-1) - 5", help="f(x), in Python syntax")
    add("--x_min", type=float, default=-5.0, help="x is drawn uniformly from x_min ...")
    add("--x_max", type=float, default=5.0, help="... to x_max")
    add("--num_samples", type=int, default=200, help="training points")
    add("--noise_std", type=float, default=3.0, help="standard deviation of the Gaussian noise on y")
    add(
        "--epochs",
        type=int | Literal["auto"],
        nargs="+",
        default=[1000],
        help="epoch counts, every one reported; auto: the one of least true error, up to the largest given, or 50,000",
    )
    add("--lr", type=float, nargs="+", default=[0.01], help="learning rates of Adam; every one is trained")
    add("--num_seeds", type=int, default=1, help="repetitions: seed, seed+1, ...")
    add("--hidden", type=int, nargs="+", default=[32, 32], help="widths of the hidden layers (ReLU)")
    # Networks this small train faster on a CPU than on any accelerator.
    add_trainer_flags(parser, accelerator="cpu", devices=1, num_sanity_val_steps=0)
    cfg = parser.parse_args()

    auto = "auto" in cfg.epochs
    epochs = [e for e in cfg.epochs if e != "auto"]
    horizon = [] if epochs else [AUTO_HORIZON]
    for limit in (cfg.max_epochs, cfg.max_steps):
        if limit is not None and limit > 0:  # one epoch is one step
            epochs, horizon = [e for e in epochs if e < limit] + [limit], []
    last = max(epochs + horizon)
    for name, values in (("--epochs", epochs + horizon), ("--hidden", cfg.hidden), ("--num_seeds", [cfg.num_seeds])):
        if min(values) < 1:
            raise UserError(f"{name} is {min(values)}; it must be at least 1")
    if not all(0 < lr < float("inf") for lr in cfg.lr):
        raise UserError(f"--lr is {cfg.lr}; a learning rate is above 0 and finite")
    precision = {"32": "32-true", "64": "64-true"}.get(str(cfg.precision or 32), str(cfg.precision))
    if precision not in ("32-true", "64-true"):
        raise UserError("fit.py trains in --precision 32-true or 64-true")
    if cfg.devices not in (1, "1", "auto") or cfg.num_nodes != 1:
        raise UserError("fit.py trains all settings together on one device: leave --devices and --num_nodes at 1")

    check_seed(cfg.seed)
    seeds = tuple(range(cfg.seed, cfg.seed + cfg.num_seeds))
    try:
        data = CurveDataModule(cfg.function, cfg.x_min, cfg.x_max, cfg.num_samples, cfg.noise_std, seeds)
    except ValueError as error:
        raise UserError(str(error)) from error
    lrs = list(dict.fromkeys(cfg.lr))
    measure_at = measured_epochs(epochs + horizon, cfg.save_every_n_steps)
    model = FunctionRegressor(lrs, seeds, measure_at, hidden=cfg.hidden, **data.scale)
    if len(lrs) * len(seeds) < 8:
        torch.set_num_threads(1)  # measured: so small a batch gains nothing from a second thread, and may wait for it
    run_dir, checkpoint = resolve_run_dir(cfg, "runs/fit")
    check_fits(checkpoint, model)
    if checkpoint:
        check_same(checkpoint, model, data, precision)
    is_trained = False
    if checkpoint and (done := checkpoint.next_step - 1) >= last:
        # A run that was stopped after its last epoch, before its results were whole, has only these left to do.
        is_own = run_dir.resolve() in checkpoint.path.resolve().parents
        is_trained = done == last and is_own and not (run_dir / "summary.json").exists()
        if not is_trained:
            raise UserError(f"{checkpoint.path} has {done:,} epochs already: ask for more with --epochs")
    record = CurveRecord(run_dir, epochs, auto, START)
    flags = cfg.clone()
    flags.max_epochs, flags.max_steps, flags.devices = -1, -1, 1  # the model ends the training
    flags.min_epochs, flags.min_steps = None, None  # and Lightning would go on after its end
    if is_trained:
        flags.limit_train_batches = 0  # Lightning loads the checkpoint, and returns
    settings = {"function": cfg.function, "lr": lrs, "epochs": cfg.epochs, "hidden": cfg.hidden, "seed": cfg.seed}
    settings |= {"num_samples": cfg.num_samples, "noise_std": cfg.noise_std, "num_seeds": cfg.num_seeds}
    page = RunPage({"median error": ["train/loss", "val/loss"]}, settings)
    save_last = SaveLast(run_dir / "checkpoints", cfg.save_every_n_steps, interval=60.0, each_epoch=False)
    trainer = build_trainer(parser, flags, run_dir, [record, page], TrajectoryBar(), save_last)
    start_run(parser, cfg, run_dir)
    (run_dir / "summary.json").unlink(missing_ok=True)  # a run that goes on has no results until it ends again
    todo = "Writing the results of" if is_trained else "Fitting"
    print(f"{todo} {cfg.function} for {last:,} epochs, learning rates {lrs}, seeds {list(seeds)}")
    trainer.fit(model, data, ckpt_path=checkpoint.path if checkpoint else None, weights_only=True)
    if trainer.checkpoint_callbacks and not is_trained:
        trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    record.finish(trainer, model, data)
    print(f"Pictures, metrics.csv and summary.json are in {run_dir}; all runs: tensorboard --logdir runs")


if __name__ == "__main__":
    main(run)
