"""What --precision auto and --compile auto choose, and the threads of a container with a share of the processors."""

import math
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from launch import assert_refused, command, run_anew, succeed
from short_runs import CIFAR, SLOW

from cli.command import cpu_quota
from cli.hardware import choose_precision, cpu_has_bfloat16, device_and_processes, fastest, time_of_a_step
from cli.recipe import recipe_defaults
from scripts.cifar import cifar_parser


def settings(*args: str) -> Namespace:
    return cifar_parser(recipe_defaults(args)).parse_args(["--accelerator", "cpu", *args])


def test_steps_are_timed_in_each_precision_but_not_for_a_short_run_or_without_native_bfloat16() -> None:
    before = torch.get_rng_state()
    assert 0 < time_of_a_step("bf16-mixed", {0.0: 8, 0.75: 16}, 2, "cpu", seconds=0.1) < 100
    assert torch.equal(torch.get_rng_state(), before)  # a run that is measured is the same run
    precision, reason = choose_precision(settings("--recipe", "fast"), 50)
    assert precision == "32-true" and ("short" if cpu_has_bfloat16() else "not compute in bfloat16") in reason


def test_what_is_no_auto_stays_and_a_resumed_run_keeps_its_choice() -> None:
    cfg = settings("--recipe", "fast", "--max_epochs", "3", "--compile", "true")
    assert fastest(cfg, 50_000, {"precision": "bf16-mixed", "compile": False}).precision == "bf16-mixed"
    assert fastest(cfg, 50_000, {"precision": "bf16-mixed"}).compile is True
    assert cfg.precision == "auto"  # what was parsed is not changed
    for flags, num_images in (("--max_steps", "100"), 50_000), (("--max_steps", "9999"), 0):
        lab = fastest(settings(*flags), num_images, {})
        assert (lab.precision, lab.compile) == (None, False)  # too short to compile, or own pictures
    for devices in (1, 2):
        assert device_and_processes(settings("--devices", str(devices))) == ("cpu", devices)


@pytest.mark.parametrize(
    "flags", ["--accelerator gpu", SLOW("--batch_size 0"), SLOW("--data cifar10 --data_root nowhere --download false")]
)
def test_a_mistake_is_refused_before_anything_is_measured(flags: str, tmp_path: Path) -> None:
    """On a processor for which a run of ten epochs would measure ``torch.compile``, up to a minute long."""
    line = ("cifar.py", "--data", "synthetic", "--max_steps", "9999", *flags.split())
    done = command(tmp_path, *line, run=run_anew, ATEN_CPU_CAPABILITY="avx2")
    assert_refused(done)
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_what_another_machine_chose_is_kept(tmp_path: Path) -> None:
    fast = (*CIFAR, "--recipe", "fast", "--milestones", "null", "--max_epochs", "1", "--run_dir", "run")
    succeed(tmp_path, *fast, "--precision", "bf16-mixed", ONEDNN_MAX_CPU_ISA="AVX2")  # which may not use it
    out = succeed(tmp_path, *fast, "--ckpt_path", "last").stdout
    assert "in bf16-mixed" in out and "Precision" not in out


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/job\n", {"job/cpu.max": "200000 100000\n", "cpu.max": "max 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("2:cpu:/docker/1\n0::/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_a_share_of_the_processors(groups: str, files: dict[str, str], quota: float, tmp_path: Path) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    assert cpu_quota(tmp_path / "groups", tmp_path / "tree") == quota
    assert cpu_quota(tmp_path / "absent") == math.inf  # no Linux
