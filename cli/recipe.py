"""Recipes: YAML files of defaults for the flags of cifar.py, one file each in ``cli/recipes/``."""

import argparse
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cli.command import UsageError
from cli.parser import plain_count

FOLDER = Path(__file__).parent / "recipes"
RECIPE_LENGTHS = ("max_epochs", "max_steps", "max_time")
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def recipe_defaults(args: Sequence[str]) -> dict[str, Any]:
    """The defaults of the recipe that a command line or its config files name, or else of ``lab``.

    A length that is asked for there takes the place of the recipe's. Raises UsageError where they name two recipes.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", nargs="?", action="append", default=[])
    for name in ("recipe", *RECIPE_LENGTHS):
        early.add_argument(f"--{name}", nargs="?")
    flags = vars(early.parse_known_args(args)[0])
    asked: dict[str, Any] = {}
    for config in flags.pop("config"):
        with suppress(OSError, yaml.YAMLError, TypeError, ValueError):  # the parser itself reports what is wrong
            asked |= yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    if flags["recipe"] and asked.get("recipe", flags["recipe"]) != flags["recipe"]:
        raise UsageError(f"--recipe {flags['recipe']} is not the config file's {asked['recipe']}: give one recipe")
    asked |= {name: value for name, value in flags.items() if value is not None}
    name = asked.get("recipe", "lab")
    if name not in NAMES:
        return {}  # which the parser refuses
    defaults = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    epochs = plain_count(str(asked.get("max_epochs") or defaults.get("max_epochs")))
    if any(asked.get(length) not in (None, -1, "-1", "null") for length in RECIPE_LENGTHS):
        defaults = {flag: value for flag, value in defaults.items() if flag not in RECIPE_LENGTHS}
    count = int(epochs) if epochs.isdecimal() else None  # None: as in recipe paper, or by --max_epochs -1
    return {"recipe": name, **{flag: at_length(value, count) for flag, value in defaults.items()}}


def at_length(value: Any, epochs: int | None) -> Any:
    """The value of {"by_epochs": {epochs: value, ...}} for so many epochs; any other is itself.

    It is interpolated over log(epochs), constant outside; without a number of epochs it is the last.
    """
    if not isinstance(value, dict) or "by_epochs" not in value:
        return value
    lengths, values = zip(*sorted(value["by_epochs"].items()), strict=True)
    y = float(np.interp(math.log(epochs or lengths[-1]), np.log(lengths), values))
    return round(y) if all(isinstance(v, int) for v in values) else float(f"{y:.3g}")
