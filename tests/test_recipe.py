"""Recipes: YAML files of defaults, overridden by the command line, shown by --print_config."""

import math
import sys
from pathlib import Path

import launch
import pytest
import torch
import yaml
from scripts.recipe import FOLDER, NAMES, at_length, on_device, recipe_defaults

from datamodules import CIFAR10DataModule
from lit_models import ResNet20Classifier

CIFAR = str(Path(__file__).parents[1] / "scripts" / "cifar.py")


def printed(folder: Path, *args: str) -> dict:
    done = launch.run([CIFAR, *args, "--print_config"], folder)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_every_recipe_is_a_file_whose_names_are_flags(tmp_path: Path) -> None:
    flags = printed(tmp_path)
    assert set(NAMES) >= {"lab", "paper", "fast"}
    for name in NAMES:
        assert set(yaml.safe_load((FOLDER / f"{name}.yaml").read_text())) <= set(flags)


def test_lab_is_what_cifar_does_without_flags(tmp_path: Path) -> None:
    flags = printed(tmp_path)
    assert flags == printed(tmp_path, "--recipe", "lab")
    assert (flags["lr"], flags["milestones"], flags["max_epochs"]) == (0.1, {5: 0.01}, 10)
    assert (flags["momentum"], flags["weight_decay"], flags["batch_size"]) == (0.0, 5e-4, 128)
    assert flags["warmup_fraction"] is None and flags["precision"] is None


def test_the_command_line_goes_before_the_recipe_wherever_it_stands(tmp_path: Path) -> None:
    for args in (("--recipe", "fast", "--lr", "0.3"), ("--lr=0.3", "--recipe=fast")):
        flags = printed(tmp_path, *args)
        assert (flags["lr"], flags["momentum"], flags["nesterov"], flags["max_epochs"]) == (0.3, 0.9, True, 54)
        assert flags["image_sizes"] == {0.0: 20, 0.6: 24, 0.8: 32}
    (tmp_path / "mine.yaml").write_text("recipe: fast\nmax_shift: 1\n")
    flags = printed(tmp_path, "--config", "mine.yaml", "--weight_decay", "0.01")
    assert (flags["momentum"], flags["max_shift"], flags["weight_decay"]) == (0.9, 1, 0.01)
    (tmp_path / "more.yaml").write_text("max_shift: 2\nmax_epochs: 4\n")
    flags = printed(tmp_path, "--config", "mine.yaml", "--config", "more.yaml")
    assert (flags["recipe"], flags["momentum"], flags["max_shift"], flags["weight_decay"]) == ("fast", 0.9, 2, 1e-3)


@pytest.mark.parametrize("flag", [("--max_steps", "7"), ("--max_time", "00:00:01:00"), ("--max_epochs", "3")])
def test_a_length_asked_for_takes_the_place_of_the_recipes(flag: tuple[str, str]) -> None:
    defaults = recipe_defaults(flag)
    assert not {"max_epochs", "max_steps"} & defaults.keys() and defaults["lr"] == 0.1
    assert recipe_defaults([flag[0], "-1"])["max_epochs"] == 10  # Lightning's way to say that nothing is asked for
    assert "max_steps" not in recipe_defaults(["--recipe", "paper", *flag])


def test_values_by_length_lie_on_a_line_over_the_logarithm_of_the_epochs() -> None:
    rule = {"by_epochs": {4: 1.0e-3, 64: 5.0e-4}}
    middle = round(math.sqrt(4 * 64))  # 16: half-way between log 4 and log 64
    assert [at_length(rule, epochs) for epochs in (1, 4, middle, 64, 1000)] == [1e-3, 1e-3, 7.5e-4, 5e-4, 5e-4]
    assert at_length({"by_epochs": {4: 2, 64: 4}}, "16") == 3  # whole numbers stay whole
    assert at_length(rule, None) == at_length(rule, "-1") == 5e-4  # ended by steps or time
    assert at_length({0: 20}, 4) == {0: 20}


def test_fast_trains_in_bfloat16_where_the_device_computes_in_it(tmp_path: Path) -> None:
    rule = {"by_bfloat16": {True: "bf16-mixed", False: "32-true"}}
    assert on_device(rule, torch.device("mps")) == "32-true"
    if sys.platform == "linux":
        flags = set(Path("/proc/cpuinfo").read_text().split())
        here = "bf16-mixed" if flags & {"avx512_bf16", "amx_bf16"} else "32-true"
        assert printed(tmp_path, "--recipe", "fast", "--accelerator", "cpu")["precision"] == here
    assert printed(tmp_path, "--recipe", "fast", "--precision", "32-true")["precision"] == "32-true"


def test_milestones_without_yamls_blank_and_none_of_them(tmp_path: Path) -> None:
    assert printed(tmp_path, "--milestones", "{3:0.5,7:0.1}")["milestones"] == {3: 0.5, 7: 0.1}
    flags = printed(tmp_path, "--milestones", "null", "--warmup_fraction", "0.2")
    assert (flags["milestones"], flags["warmup_fraction"]) == (None, 0.2)


def test_the_defaults_of_the_flags_are_those_of_the_constructors(tmp_path: Path) -> None:
    """What no recipe names is what a module or data module does when it is made from Python."""
    flags, recipe = printed(tmp_path), recipe_defaults([])
    given = {**CIFAR10DataModule().hparams, **ResNet20Classifier().hparams}
    shared = (flags.keys() & given.keys()) - recipe.keys() - {"data_root", "compile", "image_sizes"}
    assert len(shared) > 8 and all(flags[name] == given[name] for name in shared)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--recipe", "../lab"], ["recipe"]),
        (["--warmup_fraction", "0.2"], ["--milestones null"]),
        (["--recipe", "fast", "--warmup_fraction", "2"], ["warmup_fraction between 0 and 1"]),
        (["--recipe", "fast", "--max_steps", "-1", "--max_epochs", "-1"], ["--max_epochs"]),
        (["--recipe", "fast", "--config", "paper.yaml"], ["one recipe"]),
        (["--config", "paper.yaml", "--recipe", "fast"], ["one recipe"]),
        (["--max_shift", "5"], ["max_shift is 5", "0 to 4"]),
        (["--image_sizes", "{1.5: 20}"], ["image_sizes"]),
        (["--image_sizes", "32"], ["--image_sizes is 32: give pairs"]),
        (["--milestones", "5"], ["--milestones is 5", "{5: 0.01}"]),
        (["--config", "milestones.yaml"], ["--milestones is 5", "{5: 0.01}"]),
        (["--lr", "-0.1"], ["-0.1"]),
        (["--recipe", "fast", "--max_epoch", "4"], ["did you mean --max_epochs"]),
        (["--rec", "fast"], ["did you mean --recipe"]),
        (["--milestones", "{2.5: 0.01}"], ["2.5", "{5: 0.01}"]),
    ],
)
def test_settings_that_make_no_run_get_one_line(args: list[str], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "paper.yaml").write_text("recipe: paper\n")
    (tmp_path / "milestones.yaml").write_text("milestones: 5\n")
    done = launch.run([CIFAR, "--data", "synthetic", *args, "--run_dir", "new"], tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["milestones.yaml", "paper.yaml"]


@pytest.mark.parametrize("flag", ["--recipe", "--config", "--max_epochs", "--lr"])
def test_a_flag_without_its_value_gets_one_line(flag: str, tmp_path: Path) -> None:
    done = launch.run([CIFAR, flag], tmp_path)
    assert done.returncode == 2 and done.stderr == f"error: argument {flag}: expected one argument\n"
