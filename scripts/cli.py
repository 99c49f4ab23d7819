"""What the command lines share: the Trainer's flags and the Trainer, how a user's mistake is told."""

import ctypes
import inspect
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from callbacks.atomic import AtomicCheckpointIO
from callbacks.finite_loss import NonFiniteLoss
from callbacks.interrupt import SaveOnInterrupt
from callbacks.save_last import SaveLast
from datamodules.download import DataError
from datamodules.expression import ExpressionError


class UserError(Exception):
    """A mistake of the user's; the message is one line that says what is wrong and what to do."""


class Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(" ".join(str(message).split()))


def make_parser(description: str) -> Parser:
    """A parser with ``--config``, ``--print_config`` and the flags that both scripts have."""
    parser = Parser(description=description)
    parser.add_argument("--config", action="config", help="a YAML file of settings, such as a run's config.yaml")
    parser.add_argument("--seed", type=int, default=0, help="makes the run reproducible")
    parser.add_argument("--run_dir", type=str | None, help="where everything of the run goes; default runs/.../<time>")
    parser.add_argument(
        "--ckpt_path", type=str | None, help="checkpoint to resume; 'last': the newest whole one of --run_dir"
    )
    parser.add_argument(
        "--save_every_n_steps",
        type=int | None,
        help="save a checkpoint every N steps inside an epoch too, default every 5 minutes; "
        "fit.py: every N epochs, but 1,000 times at most, default every minute",
    )
    return parser


_PARTS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")


def add_trainer_flags(parser: Parser, **defaults: Any) -> None:
    """Every argument of Lightning's Trainer under its own name, with ``defaults`` instead of Lightning's."""
    parser.add_class_arguments(Trainer, skip=set(_PARTS))
    for name in _PARTS:
        # By Lightning's own Union[int, float], whose order Python may turn round, "1" would be 1.0, which is all.
        default = inspect.signature(Trainer).parameters[name].default
        text = "only so many batches, or with a decimal point (0.5) that part of them"
        parser.add_argument(f"--{name}", type=int | float | None, default=default, help=text)
    parser.set_defaults({"enable_autolog_hparams": False, **defaults})  # RunPage logs them, beside the results


def main(run: Callable[[], None], files: str = "--run_dir, --data_root") -> NoReturn:
    """Runs a script; a user's mistake becomes one line on stderr and exit code 2, a bug keeps its traceback.

    Ctrl-C ends it with 130 and SIGTERM with 143, wherever SaveOnInterrupt does not listen. ``files``: the script's
    flags that name files, for the error of one that cannot be read or written.
    """
    if sys.getfilesystemencoding().lower() != "utf-8":  # no name of a file could be told to TensorBoard
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # lines are live in a pipe or a file too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run()
    except (UserError, DataError, ExpressionError, MisconfigurationException) as error:
        _fail(error)
    except NonFiniteLoss as error:
        _fail(error, code=1)
    except BrokenPipeError:  # whoever read the output has gone, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would fail to flush
        sys.exit(1)
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        _fail(f"{what} (check {files} and the space on the disk)")
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as ended:
        # Lightning catches Ctrl-C, and exits with 1.
        sys.exit(130 if isinstance(ended.__context__, KeyboardInterrupt) else ended.code)
    sys.exit(0)


def is_rank_zero() -> bool:
    """Whether this is the process that speaks and writes; the others of a run are silent."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _fail(error: object, code: int = 2) -> NoReturn:
    if is_rank_zero():
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next step.

    By default it hands activations of some MB back to the system and asks for them again, tens of thousands of page
    faults a step; keeping them makes a step of ResNet-20 up to 15 % shorter and the peak no larger.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # other libcs lack it
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def quiet() -> None:
    """Silences advice of Lightning's that a user of these scripts cannot follow."""
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*sync_dist=True.*",
        ".*torch.jit.trace.* is deprecated.*",
        ".*overridden `on_before_batch_transfer`.*",
        ".*overridden `transfer_batch_to_device`.*",
    ):
        warnings.filterwarnings("ignore", message)
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "pytorch_lightning.trainer.connectors.checkpoint_connector",
        "lightning_fabric.utilities.seed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that not every random generator takes."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}; it must be from 0 to {2**32 - 1}")


def build_trainer(
    parser: Parser,
    cfg: Namespace,
    run_dir: Path,
    callbacks: list[Callback],
    bar: Callback,
    save_last: SaveLast,
) -> Trainer:
    """A Trainer from its flags, with the loggers, checkpoints and interrupt handling of a run added.

    Raises UserError for flags that do not go together, or name what is not installed.
    """
    mps = cfg.accelerator == "gpu" and torch.backends.mps.is_available()
    if cfg.accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or mps):
        raise UserError("there is no GPU that PyTorch can use on this machine: leave out --accelerator, or give cpu")
    check_seed(cfg.seed)
    if cfg.save_every_n_steps is not None and cfg.save_every_n_steps < 1:
        raise UserError(f"--save_every_n_steps is {cfg.save_every_n_steps}; it must be at least 1")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
        if isinstance(cfg[name], int | float) and cfg[name] <= 0:
            raise UserError(f"--{name} is {cfg[name]}; it must be above 0")
    quiet()
    keep_freed_memory()
    seed_everything(cfg.seed, workers=True)
    try:
        given = parser.instantiate(cfg)  # callbacks, loggers, ... that were named by their classes
    except (ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    arguments = {name: given[name] for name in inspect.signature(Trainer).parameters}
    if arguments["logger"] is not False:
        arguments["logger"] = [
            CSVLogger(run_dir, name="", version=""),
            TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False),
            *_listed(arguments["logger"] if arguments["logger"] is not True else None),
        ]
    checkpoints: list[Callback] = []
    if arguments["enable_checkpointing"] is not False:
        checkpoints = [save_last, SaveOnInterrupt(save_last.path, cfg.run_dir)]
    arguments["callbacks"] = [*callbacks, *_listed(arguments["callbacks"]), *checkpoints]
    if arguments["enable_progress_bar"] is not False and sys.stdout.isatty():
        arguments["callbacks"].append(bar)
    else:
        arguments["enable_progress_bar"] = False
    arguments["plugins"] = [*_listed(arguments["plugins"]), AtomicCheckpointIO()]
    arguments["default_root_dir"] = arguments["default_root_dir"] or str(run_dir)
    if arguments["enable_model_summary"] is None:
        arguments["enable_model_summary"] = False
    try:
        trainer = Trainer(**arguments)
    except (ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    # Trained up to a number of steps, Lightning 2.6 takes a checkpoint of an epoch's end for one inside the epoch, ends
    # it once more, and shuffles all later epochs otherwise. Only what a resume does depends on this.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return trainer


def _listed(value: Any) -> list[Any]:
    """What Lightning takes as one thing, several or none, as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
