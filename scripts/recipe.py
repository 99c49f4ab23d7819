"""Recipes: YAML files of defaults for the flags of cifar.py, one file each in ``scripts/recipes/``."""

import argparse
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError

from analysis.runs import LENGTH
from scripts.commandline import plain_count
from scripts.hardware import has_native_bfloat16

FOLDER = Path(__file__).parent / "recipes"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def recipe_defaults(args: Sequence[str]) -> dict[str, Any]:
    """The defaults of the recipe that a command line names, or the config files that it names, or else of ``lab``.

    A length that is asked for there takes the place of the recipe's. Values given ``by_epochs`` are those of the run's
    number of epochs, values given ``by_bfloat16`` those of the machine that trains.

    Raises:
        UsageError: the config file is of another recipe than the command line names.
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


def device_of(accelerator: str | None) -> torch.device:
    """The kind of device that ``--accelerator`` names, "auto" like Lightning."""
    if accelerator == "cpu":
        return torch.device("cpu")
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return torch.device(next((kind for kind, there in kinds.items() if there), "cpu"))


def on_device(value: Any, device: torch.device) -> Any:
    """The value, or of {"by_bfloat16": {true: value, false: value}} the one for this device."""
    by = value.get("by_bfloat16") if isinstance(value, dict) else None
    return by[has_native_bfloat16(device)] if by else value


def at_length(value: Any, epochs: Any) -> Any:
    """The value, or for {"by_epochs": {epochs: value, ...}} the one at so many epochs, on a line over log(epochs)."""
    if not (isinstance(value, dict) and "by_epochs" in value):
        return value
    lengths, values = zip(*sorted(value["by_epochs"].items()), strict=True)
    try:
        epochs = int(plain_count(str(epochs)))
    except ValueError:
        epochs = -1
    if epochs < 1:  # a training run that steps or time end
        epochs = lengths[-1]
    at = float(np.interp(math.log(epochs), np.log(lengths), values))
    return round(at) if all(isinstance(v, int) for v in values) else float(f"{at:.3g}")
