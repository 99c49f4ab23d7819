"""What the command lines share: the parser, how a usage error ends, what keeps the output readable and the run fast."""

import ctypes
import inspect
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from callbacks.finite_loss import NonFiniteLoss

# Arguments of Lightning's callbacks that config.yaml could not hold otherwise.
register_type(torch.device)
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_str(str(value.value)))


class Parser(ArgumentParser):
    """A parser whose errors are one line, and whose flags take values that begin with a minus."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Namespace:  # type: ignore[override]
        # argparse takes -x**2 and -1e-3 for flags, unless they hold a blank.
        given = list(sys.argv[1:] if args is None else args)
        values = {f"{arg} ": arg for arg in given if re.match(r"-(?!-|h$)", arg)}
        cfg = super().parse_args([f"{arg} " if f"{arg} " in values else arg for arg in given], *rest, **options)
        for name, value in cfg.items():
            if isinstance(value, str) and value in values:
                cfg[name] = values[value]
        return cfg

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(what_is_wrong(message))


def make_parser(description: str) -> Parser:
    """A parser with ``--config``, ``--print_config`` and the flags that both training scripts have."""
    parser = Parser(description=description)
    add = parser.add_argument
    add("--config", action="config", help="a YAML file of settings, such as a run's config.yaml")
    add("--seed", type=int, default=0, help="makes the run reproducible")
    add("--run_dir", type=str | None, help="where everything of the run goes; default runs/.../<time>")
    add("--ckpt_path", type=str | None, help="checkpoint to resume; 'last': the latest valid one of --run_dir")
    add(
        "--save_every_n_steps",
        type=int | None,
        help="save a checkpoint every N steps inside an epoch too, default every 5 minutes; "
        "fit.py: every N epochs, but 1,000 times at most, default every minute",
    )
    return parser


LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")


def add_trainer_flags(parser: Parser, **defaults: object) -> None:
    """Every argument of Lightning's Trainer under its own name, with ``defaults`` instead of Lightning's."""
    parser.add_class_arguments(Trainer, skip=set(LIMITS))
    for name in LIMITS:
        # By Lightning's own Union[int, float], whose order Python may turn round, "1" would be 1.0, which is all.
        default = inspect.signature(Trainer).parameters[name].default
        text = "only so many batches, or with a decimal point (0.5) that part of them"
        parser.add_argument(f"--{name}", type=int | float | None, default=default, help=text)
    parser.set_defaults(defaults)


def arguments(function: Callable[..., object], cfg: Namespace) -> dict[str, Any]:
    """Of the settings those that are arguments of this function or class."""
    return {name: cfg[name] for name in inspect.signature(function).parameters if name in cfg}


@contextmanager
def usage_errors() -> Iterator[None]:
    """Around what is made from a user's settings: its ValueError, or a missing package, is a usage error."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise UsageError(what_is_wrong(error)) from error


def what_is_wrong(message: object) -> str:
    """One line. Of jsonargparse's report on a value that may be of several types, the part that says what is wrong."""
    head, _, report = str(message).partition("Errors:")
    report, _, given = report.partition("Given value type:")
    errors = [" ".join(e.split()) for e in re.split(r"\n *- ", report.partition("- Not a valid subclass")[0])[1:]]
    if not errors:
        return " ".join(str(message).split())
    flag = re.match(r'Parser key "(\w+)"', head)
    telling = [e for e in errors if e and not re.match(r"Expected a (<|typing|collections)|Import path", e)]
    text = telling[0] if telling else "; ".join(errors) + ", not" + given.partition("Given value:")[2]
    return f"--{flag[1]}: {text}" if flag else text


def is_rank_zero() -> bool:
    """Whether this is the process that prints and writes; the others of a run are silent."""
    return getattr(rank_zero_only, "rank", 0) == 0


def main(run: Callable[[], None], files: str = "--run_dir, --data_root") -> NoReturn:
    """Runs a script; a usage error becomes one line on stderr and exit code 2, a bug keeps its traceback.

    Ctrl-C ends it with 130, SIGTERM with 143 and SIGHUP with 129, wherever SaveOnInterrupt does not listen. ``files``:
    the script's flags that name files, for the error of one that cannot be read or written.
    """
    if sys.getfilesystemencoding().lower() != "utf-8":  # no name of a file could be given to TensorBoard
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # lines are live in a pipe or a file too
    for name in ("SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, lambda received, _: sys.exit(128 + received))
    try:
        run()
    except UsageError as error:
        fail(error)
    except NonFiniteLoss as error:
        fail(error, code=1)
    except BrokenPipeError:  # whoever read the output has gone, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would fail to flush
        sys.exit(1)
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        fail(f"{what} (check {files} and the space on the disk)")
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as ended:
        # Lightning catches Ctrl-C, and exits with 1.
        sys.exit(130 if isinstance(ended.__context__, KeyboardInterrupt) else ended.code)
    sys.exit(0)


def fail(error: object, code: int = 2) -> NoReturn:
    """One line on stderr, from the first process alone."""
    if is_rank_zero():
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.unraisablehook = lambda _: None  # what a library's half-made object says when it is deleted
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
        ".*Total length of `list` across ranks is zero.*",  # nothing is validated
        ".*torch.jit.trace.* is deprecated.*",
        ".*strategy is deprecated.*",
        ".*all_gather is deprecated.*",
        ".*NaN values found in confusion matrix.*",
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
