"""The command line: a parser of jsonargparse's, the flags that both training scripts share, objects from settings."""

import inspect
import re
import sys
from argparse import Action
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import torch
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import NonNegativeInt, PositiveInt, register_type
from pytorch_lightning import Trainer

from cli.command import UsageError

T = TypeVar("T")
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")

register_type(torch.device)  # an argument of Lightning's callbacks that config.yaml could not hold otherwise


class Parser(ArgumentParser):
    """A parser whose errors are one line; its flags take counts such as 1e4, and values that begin with a minus."""

    def __init__(self, description: str | None = None, **options: Any) -> None:
        super().__init__(description=description, allow_abbrev=False, **options)  # jsonargparse's for a class in a flag

    def _parse_optional(self, arg_string: str) -> Any:
        # argparse would take -x**2 and -1e-3 for flags
        return None if re.match(r"-(?!-|h$)", arg_string) else super()._parse_optional(arg_string)

    def _get_values(self, action: Action, arg_strings: list[str]) -> Any:
        types = types_in(getattr(action, "_typehint", None))
        if Mapping in map(get_origin, types):
            arg_strings = [re.sub(r":(?=\S)", ": ", arg) for arg in arg_strings]  # {5:0.01} is no pair in YAML
        if types & {int, NonNegativeInt, PositiveInt}:
            arg_strings = [plain_count(arg) for arg in arg_strings]
        return super()._get_values(action, arg_strings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if flag := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            names = [name for name in self._option_string_actions if name[-1] != "+"]  # --callbacks+=...
            near = get_close_matches(flag[1], names, n=2, cutoff=0.7)
            message += f" (did you mean {' or '.join(sorted(near))}?)" if near else ""
        raise UsageError(message)


def types_in(hint: object) -> set[object]:
    """A type, and the types that it is a union or a list of."""
    return {hint}.union(*map(types_in, get_args(hint)))


def plain_count(text: str) -> str:
    """1e4 and 1.5e3 as Python writes a whole number; any other text as it is."""
    is_count = re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d{1,2}", text) and float(text).is_integer()
    return str(int(float(text))) if is_count else text


def training_parser(description: str | None) -> Parser:
    """A parser with ``--config``, ``--print_config`` and the flags that both training scripts have."""
    # A config file may name, and so import and run, Lightning, callbacks/, and packages that a flag names too.
    named = {name for arg in sys.argv[1:] for name in re.findall(r"[a-z_]\w*(?=\.[a-z_])", arg, re.IGNORECASE)}
    known = {"pytorch_lightning", "lightning_fabric", "callbacks", "builtins.len", "builtins.print"}
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*known | named - {"jsonargparse"}])
    parser = Parser(description)
    add = parser.add_argument
    add("--config", action="config", help="a YAML file of settings, such as a run's config.yaml")
    add("--seed", type=NonNegativeInt, default=0, help="makes the run reproducible")
    add("--run_dir", type=str | None, help="where everything of the run goes; default runs/.../<time>")
    add("--ckpt_path", type=str | None, help="checkpoint to resume; 'last': the latest valid one of --run_dir")
    text = "save a checkpoint every N steps inside an epoch too, default every 5 minutes; fit.py: every N epochs, but "
    add("--save_every_n_steps", type=PositiveInt | None, help=text + "1,000 times at most, default every minute")
    return parser


def add_trainer_flags(parser: Parser, **defaults: object) -> None:
    """Every argument of Lightning's Trainer under its own name, with ``defaults`` instead of Lightning's."""
    arguments = inspect.signature(Trainer).parameters
    parser.add_class_arguments(Trainer, skip={*LIMITS, "precision"})
    precision = Literal["auto"] | arguments["precision"].annotation
    text = "as Lightning's, default 32-true; auto: the faster of 32-true and bf16-mixed here, as measured (cifar.py)"
    parser.add_argument("--precision", type=precision, help=text)
    for name in LIMITS:
        # By Lightning's own Union[int, float], whose order Python may turn round, "1" would be 1.0, which is all.
        text = "only so many batches, or with a decimal point (0.5) that part of them"
        parser.add_argument(f"--{name}", type=int | float | None, default=arguments[name].default, help=text)
    parser.set_defaults(defaults)


def build(kind: Callable[..., T], cfg: Namespace, **given: object) -> T:
    """An object of this class from the settings that are its arguments, and from what is ``given``.

    Raises UsageError where the class refuses them, or a package that it needs is missing.
    """
    parameters = inspect.signature(kind).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):  # settings would be dropped in silence
        raise TypeError(f"{kind.__name__} takes **kwargs: its arguments must be written out")
    arguments = {name: cfg[name] for name in parameters if name in cfg}
    try:
        return kind(**arguments | given)
    except (ImportError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
