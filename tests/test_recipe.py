"""Recipes: YAML files of defaults for the flags of cifar.py; the command line wins."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.recipe import FOLDER, NAMES, at_length, recipe_defaults
from scripts.cifar import cifar_parser


def settings(*args: str) -> dict[str, Any]:
    """The settings of cifar.py with this command line."""
    return cifar_parser(recipe_defaults(args)).parse_args(list(args)).as_dict()


def test_every_key_is_a_flag_lab_is_the_default_and_paper_is_he_et_al() -> None:
    flags = settings()
    assert set(NAMES) == {"lab", "paper", "fast", "own"}
    for name in NAMES:
        assert set(yaml.safe_load((FOLDER / f"{name}.yaml").read_text())) <= set(flags)
    assert flags == settings("--recipe", "lab")
    assert (flags["lr"], flags["milestones"], flags["max_epochs"]) == (0.1, {5: 0.01}, 10)
    assert (flags["momentum"], flags["weight_decay"], flags["batch_size"]) == (0.0, 5e-4, 128)
    assert (flags["warmup_fraction"], flags["precision"], flags["optimizer"]) == (None, None, "sgd")
    flags = settings("--recipe", "paper")  # He et al.
    assert (flags["max_epochs"], flags["max_steps"], flags["batch_size"]) == (None, 64_000, 128)
    assert (flags["lr"], flags["milestones"]) == (0.1, {32_000: 0.01, 48_000: 0.001})
    assert (flags["milestone_unit"], flags["momentum"], flags["weight_decay"]) == ("step", 0.9, 1e-4)
    assert flags["he_init"] and not flags["nesterov"]


def test_the_command_line_wins_over_the_recipe_wherever_it_stands(tmp_path: Path) -> None:
    for args in (("--recipe", "fast", "--lr", "0.3"), ("--lr=0.3", "--recipe=fast")):
        flags = settings(*args)
        assert (flags["lr"], flags["momentum"], flags["nesterov"], flags["max_epochs"]) == (0.3, 0.9, True, 54)
        assert flags["image_sizes"] == {0.0: 20, 0.6: 24, 0.8: 32}
    assert settings("--milestones", "{3:0.5,7:0.1}")["milestones"] == {3: 0.5, 7: 0.1}  # without YAML's blank
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("recipe: fast\nmax_shift: 1\n")
    second.write_text("max_shift: 2\nmax_epochs: 4\n")
    flags = settings("--config", str(first), "--weight_decay", "0.01")
    assert (flags["momentum"], flags["max_shift"], flags["weight_decay"]) == (0.9, 1, 0.01)
    flags = settings("--config", str(first), "--config", str(second))
    assert (flags["recipe"], flags["momentum"], flags["max_shift"], flags["weight_decay"]) == ("fast", 0.9, 2, 1e-3)


@pytest.mark.parametrize("flag", [("--max_steps", "7"), ("--max_time", "00:00:01:00"), ("--max_epochs", "3")])
def test_a_length_that_is_asked_for_replaces_the_recipes(flag: tuple[str, str]) -> None:
    defaults = recipe_defaults(flag)
    assert not {"max_epochs", "max_steps"} & defaults.keys() and defaults["lr"] == 0.1
    assert recipe_defaults([flag[0], "-1"])["max_epochs"] == 10  # Lightning's way to ask for none
    assert "max_steps" not in recipe_defaults(["--recipe", "paper", *flag])


def test_values_by_epochs_are_interpolated_over_their_logarithm() -> None:
    rule = {"by_epochs": {4: 1.0e-3, 64: 5.0e-4}}
    middle = round(math.sqrt(4 * 64))  # 16: half-way between log 4 and log 64
    assert [at_length(rule, epochs) for epochs in (1, 4, middle, 64, 1000)] == [1e-3, 1e-3, 7.5e-4, 5e-4, 5e-4]
    assert at_length({"by_epochs": {4: 2, 64: 4}}, middle) == 3  # whole numbers stay whole
    assert at_length(rule, None) == 5e-4  # no number of epochs
    # fast: from 1e-3 at 4 epochs to 5e-4 at 54: 1e-3 - 5e-4 * log(15 / 4) / log(54 / 4) = 7.46e-4; a shift of 2 to 4
    for epochs in ("15", "1.5e1"):
        flags = settings("--recipe", "fast", "--max_epochs", epochs)
        assert (flags["weight_decay"], flags["max_shift"]) == (7.46e-4, 3)
    assert [settings("--recipe", "fast", "--max_epochs", n)["grow_at"] for n in ("3", "30", "54")] == [0.8, 0, 0]
