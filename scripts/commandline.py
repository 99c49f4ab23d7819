"""What the command lines share: the parser, how a usage error ends, what keeps the output readable and the run fast."""

import ctypes
import gc
import inspect
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from argparse import Action
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from typing import Any, NoReturn, get_args, get_origin

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import register_type
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from callbacks.finite_loss import NonFiniteLoss

gc.enable()  # the imports are done

# Arguments of Lightning's callbacks that config.yaml could not hold otherwise.
register_type(torch.device)
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_str(str(value.value)))


class Parser(ArgumentParser):
    """A parser whose errors are one line; its flags take counts such as 1e4, and values that begin with a minus."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A flag cut short would mean another one where the longer one is missing, and escape recipe_defaults.
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def _parse_optional(self, arg_string: str) -> Any:
        # argparse would take -x**2 and -1e-3 for flags
        return None if re.match(r"-(?!-|h$)", arg_string) else super()._parse_optional(arg_string)

    def _get_values(self, action: Action, arg_strings: list[str]) -> Any:
        types = types_in(getattr(action, "_typehint", None))
        if Mapping in map(get_origin, types):
            arg_strings = [re.sub(r":(?=\S)", ": ", arg) for arg in arg_strings]  # {5:0.01} is no pair in YAML
        if int in types and str not in types:
            several = action.nargs == "+"
            arg_strings = [arg if float in types and "." in arg else plain_count(arg, several) for arg in arg_strings]
            for arg in arg_strings:
                if arg.isdecimal() and int(arg) >= 2**63:
                    raise UsageError(f"{action.option_strings[0]} is {arg[:40]}: give a smaller number")
                if arg[:1].isdigit() and not arg.replace("_", "").isdigit() and float not in types:
                    flag = action.option_strings[0]
                    raise UsageError(f"{flag} is {arg}: give {KINDS['int']}" + SEVERAL * several)
        return super()._get_values(action, arg_strings)

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError:
            raise UsageError("the file of --config is not in UTF-8: save it as UTF-8") from None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(what_is_wrong(message) + self._meant(message))

    def _meant(self, message: str) -> str:
        """The flags that an unknown one may stand for: spelled much alike, or its initials, as lr for learning rate."""
        unknown = re.search(r"unrecognized arguments:.*? --?([A-Za-z][\w-]*)|^Option '([\w-]+)' is not", message)
        name = (unknown[1] or unknown[2]).replace("-", "_").lower() if unknown else ""
        flags = [flag[2:] for flag in self._option_string_actions if flag[2:].isidentifier()]
        same = {name, "".join(word[:1] for word in name.split("_"))}.intersection(flags)
        near = sorted(same or get_close_matches(name, flags))
        return ": did you mean " + " or ".join(f"--{flag}" for flag in near) + "?" if near else ""


KINDS = {
    "int": "a whole number (such as 10000)",
    "float": "a number (such as 0.01)",
    "bool": "true or false",
    "str": "text (in a config file in quotes)",
    "Mapping": "pairs (such as --milestones '{5: 0.01}', --image_sizes '{0: 20, 0.5: 32}')",
    "NoneType": "null",
}
SEVERAL = "; several have blanks between them"


def types_in(hint: object) -> set[object]:
    """A type, and those that it is a union or a list of."""
    return {hint}.union(*map(types_in, get_args(hint)))


def plain_count(text: str, several: bool = False) -> str:
    """1e4, 1.5e3 and 10,000 as Python writes a whole number; any other text as it is.

    Where ``several`` may be meant, 100,200 is not one number.
    """
    if re.fullmatch(r"\d{1,3}(,000)+" if several else r"\d{1,3}(,\d{3})+", text):
        return text.replace(",", "")
    value = Decimal(text) if re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d{1,2}", text) else None
    return str(int(value)) if value is not None and value == int(value) else text


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
    """One line. Of jsonargparse's report on a value of the wrong type: the flag, the value and what is wanted.

    Of its report on a value that may be of several types: the first of its errors that says more than "Expected a ...".
    """
    text = str(message)
    if denied := re.search(r"Importing '(.+?)' is not allowed", text):
        return f"{denied[1]} is not of Lightning or of callbacks/: a config may name it if the command line does too"
    if text.startswith("Key must be a string"):
        return "a config file has pairs under a name that is no flag of this script: is it another script's?"
    if re.search(r"object (is not iterable|does not support item assignment)$", text):
        return "a config file has one value where a list is wanted: write for example lr: [0.1]"
    errors = re.split(r"- Not a valid subclass|Given value type:", text.partition("Errors:")[2])[0]
    types_alone = r"\s*$|Expected a (<|typing|collections)|Import path"
    telling = [error for error in re.split(r"\n *- ", errors)[1:] if not re.match(types_alone, error)]
    flag = re.match(r'Parser key "([\w.]+)"( element \d+)?:', text)
    what = " ".join((telling[0] if telling else text[flag.end() :] if flag else text).split())
    if not flag:
        return what
    kinds = re.findall(r"Expected an? (?:<class '[\w.]*?(\w+)'>|typing\.Literal\[(.*?)\])", what)
    if not kinds:
        return f"--{flag[1]}: {what}"
    kinds = [("Mapping", "")] if "Mapping[float" in text else kinds  # whose values alone may be wrong
    wanted = [KINDS.get(kind, kind) if kind else choices.replace(", ", " or ") for kind, choices in kinds]
    value = re.split(r"(?:Got|Given) value:", what)[-1].strip()
    return f"--{flag[1]} is {value}: give {' or '.join(wanted)}" + SEVERAL * bool(flag[2])


def is_rank_zero() -> bool:
    """Whether this is the process that prints and writes; the others of a run are silent."""
    return getattr(rank_zero_only, "rank", 0) == 0


def default_data_root() -> str:
    """Where CIFAR-10 is, unless a flag says so."""
    return os.environ.get("CIFAR10_ROOT") or "data"


def limit_imports(args: Sequence[str]) -> None:
    """A config file may name classes of Lightning and this project, and of packages that the command line names too.

    Naming a class imports its module, which runs it.
    """
    named = {name for arg in args for name in re.findall(r"[a-z_]\w*(?=\.[a-z_])", arg, re.IGNORECASE)}
    known = {"pytorch_lightning", "lightning_fabric", "callbacks", "builtins.len", "builtins.print"}
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*known | named - {"jsonargparse"}])


def main(run: Callable[[], None], files: str = "--run_dir, --data_root") -> NoReturn:
    """Runs a script; a usage error becomes one line on stderr and exit code 2, a bug keeps its traceback.

    Ctrl-C ends it with 130, SIGTERM with 143 and SIGHUP with 129, wherever SaveOnInterrupt does not listen. ``files``:
    the script's flags that name files, for the error of one that cannot be read or written.
    """
    if sys.getfilesystemencoding().lower() != "utf-8":  # no name of a file could be given to TensorBoard
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # lines are live in a pipe or a file too, and a letter that the terminal lacks ends no run
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, lambda received, _: sys.exit(128 + received))
    # TensorBoard's thread reports a full disk to this one too, which ends the run by one line.
    threading.excepthook = lambda a: None if isinstance(a.exc_value, OSError) else threading.__excepthook__(a)
    gc.freeze()  # what is imported stays; looking through it when Python ends would take another second
    limit_imports(sys.argv[1:])
    quiet()
    keep_freed_memory()
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
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        what = f"{error.strerror or error}" + (f": {name}" if name else "")
        fail(f"{what} (check {files} and the space on the disk)")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        fail("there is not enough memory for this: choose smaller numbers")
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
        ".*GPU available but not used.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*sync_dist=True.*",
        ".*Total length of `list` across ranks is zero.*",  # nothing is validated
        ".*torch.jit.trace.* is deprecated.*",
        ".*strategy is deprecated.*",
        ".*all_gather is deprecated.*",
        ".*NaN values found in confusion matrix.*",
        ".*overridden `transfer_batch_to_device`.*",
    ):
        warnings.filterwarnings("ignore", message)
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "pytorch_lightning.trainer.connectors.checkpoint_connector",
        "lightning_fabric.utilities.seed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
