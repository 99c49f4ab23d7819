"""Recipes: YAML files of defaults for the flags of cifar.py, one file each in ``cli/recipes/``."""

import argparse
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from analysis.runs import LENGTH
from cli.command import UsageError
from cli.hardware import device_of, has_native_bfloat16
from cli.parser import plain_count

FOLDER = Path(__file__).parent / "recipes"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def recipe_defaults(args: Sequence[str]) -> dict[str, Any]:
    """The defaults of the recipe that a command line names, or its config files, or else of ``lab``.

    A length that is asked for there takes the place of the recipe's. Values given ``by_epochs`` are interpolated at the
    run's number of epochs, values given ``by_bfloat16`` chosen for the machine that trains.

    Raises:
        UsageError: the config file has another recipe than the command line.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", nargs="?", action="append", default=[])
    for name in ("recipe", "accelerator", *LENGTH):
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
        return {}
    defaults = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    epochs = asked.get("max_epochs") or defaults.get("max_epochs")
    if any(asked.get(length) not in (None, -1, "-1", "null") for length in LENGTH):
        defaults = {flag: value for flag, value in defaults.items() if flag not in LENGTH}
    device = device_of(asked.get("accelerator"))
    return {"recipe": name} | {flag: at_length(on_device(value, device), epochs) for flag, value in defaults.items()}


def on_device(value: Any, device: torch.device) -> Any:
    """The value, or of {"by_bfloat16": {true: value, false: value}} the one for this device."""
    by = value.get("by_bfloat16") if isinstance(value, dict) else None
    return by[has_native_bfloat16(device)] if by else value


def at_length(value: Any, epochs: Any) -> Any:
    """The value, or for {"by_epochs": {epochs: value, ...}} the one at so many epochs, on a line over log(epochs)."""
    if not (isinstance(value, dict) and "by_epochs" in value):
        return value
    lengths, values = zip(*sorted(value["by_epochs"].items()), strict=True)
    count = plain_count(str(epochs))
    at = int(count) if count.isdecimal() and int(count) > 0 else lengths[-1]  # a run that steps or time end
    y = float(np.interp(math.log(at), np.log(lengths), values))
    return round(y) if all(isinstance(v, int) for v in values) else float(f"{y:.3g}")
