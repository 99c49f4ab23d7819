"""scripts/fit.py as its user meets it: the command line, its output, and the run's files."""

import math
import shutil
from pathlib import Path
from typing import Any

import launch
import pytest
import torch
from launch import assert_refused, command
from PIL import Image
from short_runs import summary

from analysis.files import read_json
from analysis.report import make_sections, render
from analysis.runs import FinishedRun
from cli.command import UsageError
from scripts.fit import epoch_counts, fit_parser, measured_epochs

GRID = ("--function", "-x^2 + 2sin x", "--lr", "0.1", "0.01", "--num_seeds", "3", "--seed", "5", "--x_min", "-2e0")
GRID += ("--run_dir", "run", "--epochs")


def succeed(folder: Path, *flags: str, **options: Any) -> str:
    """What fit.py printed."""
    done = launch.succeed(folder, "fit.py", *flags, **options)
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Two learning rates, three seeds, two epoch counts, and a function in another spelling."""
    folder = tmp_path_factory.mktemp("grid")
    return succeed(folder, *GRID, "100", "300", run=launch.run_anew), folder / "run"


# Results


def test_a_default_run_learns_the_curve(tmp_path: Path) -> None:
    output = succeed(tmp_path)
    (run_dir,) = (tmp_path / "runs" / "fit").iterdir()
    content = summary(run_dir)
    assert (content["function"], content["x_min"], content["x_max"]) == ("x**2 + 2*sin(x) + cos(x-1) - 5", -5, 5)
    assert content["seconds"]["total"] > content["seconds"]["train"] > 0
    (result,) = content["results"]
    assert (result["lr"], result["seed"], result["epochs"]) == (0.01, 0, 1000)
    assert 6 < result["train_mse"] < 12  # the noise has variance 9
    assert 0 < result["true_mse"] < 2 and result["r2"] > 0.95
    assert f"{result['true_mse']:.4g}" in output
    last = output.strip().splitlines()[-1]
    assert str(run_dir.relative_to(tmp_path)) in last and "tensorboard" in last


def test_every_setting_of_a_grid_is_reported(grid: tuple[str, Path]) -> None:
    output, run_dir = grid
    assert "-x**2 + 2*sin(x) (read from '-x^2 + 2sin x')" in output
    x = torch.linspace(-2, 5, 1001, dtype=torch.float64)
    variance = (-(x**2) + 2 * x.sin()).var(correction=0).item()
    results = summary(run_dir)["results"]
    asked = [(lr, seed, epochs) for lr in (0.1, 0.01) for seed in (5, 6, 7) for epochs in (100, 300)]
    assert [(r["lr"], r["seed"], r["epochs"]) for r in results] == asked
    for r in results:
        assert set(r) == {"lr", "seed", "epochs", "train_mse", "true_mse", "true_max_abs_error", "r2", "val_mse"}
        assert r["train_mse"] > 0 and 0 < r["true_mse"] <= r["true_max_abs_error"] ** 2
        assert r["r2"] == pytest.approx(1 - r["true_mse"] / variance)
    assert len({r["true_mse"] for r in results}) == len(asked)  # own initialization, own sample
    for name in ("curves.png", "errors.png"):
        assert Image.open(run_dir / name).width >= 600


def test_auto_finds_the_epochs_of_the_lowest_error(tmp_path: Path) -> None:
    flags = "--lr 0.1 0.01 --num_samples 50 --epochs auto 20 3000 --run_dir run".split()
    output = succeed(tmp_path, *flags)
    content = summary(tmp_path / "run")
    for choice in content["auto"]:
        errors = {r["epochs"]: r["true_mse"] for r in content["results"] if r["lr"] == choice["lr"]}
        assert {20, 3000, choice["best_epochs"]} <= errors.keys()
        assert min(errors, key=lambda epochs: errors[epochs]) == choice["best_epochs"] < 3000
        assert f"{choice['best_epochs']:,}" in output


def test_divergence_is_a_result_not_a_crash(tmp_path: Path) -> None:
    flags = "--function exp(20*x) --lr 1e30 0.001 --epochs 200 --num_seeds 2 --run_dir diverged".split()
    assert "diverged" in succeed(tmp_path, *flags)
    content = summary(tmp_path / "diverged")
    bad, good = ([r for r in content["results"] if (r["lr"] == 1e30) == diverged] for diverged in (True, False))
    assert len(bad) == len(good) == 2
    for name in ("train_mse", "true_mse", "true_max_abs_error", "r2"):
        assert all(result[name] is None for result in bad) and all(math.isfinite(result[name]) for result in good)
        assert content["over_seeds"][0][name] == {"median": None, "q25": None, "q75": None}
    assert (tmp_path / "diverged" / "curves.png").exists()


def test_points_of_a_file_are_fitted_and_judged_by_those_held_out(tmp_path: Path) -> None:
    x = torch.linspace(2000, 2020, 60, dtype=torch.float64)
    text = "".join(f"{year},{(year - 2010) ** 2 + 900}\n" for year in x.tolist())
    (tmp_path / "points.csv").write_text(f"year,a $ and $\n{text}")
    run = ("--csv", "points.csv", "--run_dir", "run", "--lr", "0.1", "0.01", "--num_seeds", "2")
    output = succeed(tmp_path, *run, "--epochs", "auto", "20", "500")
    assert "Fitting a $ and $ over year, 60 points of points.csv for 500 epochs" in output
    content, growth = summary(tmp_path / "run"), read_json(tmp_path / "run" / "curves.json")
    assert content["function"] is None and (content["x_min"], content["x_max"]) == (2000, 2020)
    assert len({*growth["points"]["x"]}) == 48 and len(growth["held_out"]["x"]) == 12 and growth["truth"] == []
    for result in content["results"]:
        assert result["true_mse"] is result["true_max_abs_error"] is result["r2"] is None
    at_end = [r["val_mse"] for r in content["results"] if r["epochs"] == 500]
    assert max(at_end) < 100  # the variance of y is 950
    assert f"{min(choice['best_val_mse'] for choice in content['auto']):.3g}" in output
    sections = make_sections([FinishedRun(tmp_path / "run", content)], "")
    page = render(sections=sections, runs=(), about=[], quick=False, vega="", picture=lambda chart: "")
    assert "MSE on held-out points is lowest at" in page and "noise-free" not in page
    succeed(tmp_path, *run, "--epochs", "20", "500", "auto", "600", "--ckpt_path", "last")
    (tmp_path / "points.csv").write_text(f"year,a $ and $\n{text}2021,1021\n")
    done = command(tmp_path, "fit.py", *run, "--epochs", "700", "--ckpt_path", "last")
    assert_refused(done, "the points are not those of the checkpoint")


# Resuming


def test_a_fit_is_resumed_with_more_epochs_alone(grid: tuple[str, Path], tmp_path: Path) -> None:
    _, whole = grid
    last = ("--ckpt_path", "last")
    succeed(tmp_path, *GRID, "100")
    for flags, words in (
        (("50",), ["100 epochs already"]),
        (("300", "--noise_std", "1", "--seed", "1"), ["--seed 5, not 1", "--noise_std 3.0, not 1.0"]),
        (("300", "--hidden", "5"), ["--hidden [32, 32], not [5]"]),
    ):
        assert_refused(command(tmp_path, "fit.py", *GRID, *flags, *last), *words)
    succeed(tmp_path, *GRID, "100", "300", *last)
    assert summary(tmp_path / "run")["results"] == summary(whole)["results"]
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_run_stopped_before_its_results_gets_them(grid: tuple[str, Path], tmp_path: Path) -> None:
    """As if it had been killed when its last checkpoint was saved."""
    _, whole = grid
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", "*.png", "summary.json"))
    succeed(tmp_path, *GRID, "100", "300", "--ckpt_path", "last")
    assert summary(tmp_path / "run")["results"] == summary(whole)["results"]
    for name in ("curves.png", "errors.png", "metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


# Flags


@pytest.mark.parametrize(
    ("flags", "asked", "last"),
    [
        ("", [1000], 1000),
        ("--max_epochs 5000", [5000], 5000),
        ("--epochs 20 100 --max_epochs 5000", [20, 100], 100),
        ("--epochs 20 100 --max_epochs 50 --max_steps 60", [20, 50], 50),
        ("--epochs auto", [], 50_000),
        ("--epochs auto 10 --max_steps 5", [5], 5),
    ],
)
def test_the_epochs_that_are_trained(flags: str, asked: list[int], last: int) -> None:
    assert epoch_counts(fit_parser().parse_args(flags.split())) == (asked, last)


def test_a_checkpoint_to_save_has_its_measurement_and_a_normal_run_no_more_of_them() -> None:
    normal = measured_epochs([100], 50_000)
    assert {1, 100, 2_000, 48_000, 50_000} <= set(normal) and len(normal) < 80
    assert set(measured_epochs([], 50_000, 300)) == set(normal) | set(range(300, 50_000, 300))
    assert len(measured_epochs([], 1_000_000, 1)) < 1_600


def test_numbers_as_people_write_them() -> None:
    for line, value in (
        ("--epochs 1e2 10_000 1.5e3 auto", [100, 10_000, 1500, "auto"]),
        ("--max_epochs null", None),
        ("--max_steps -1", -1),
        ("--limit_train_batches 1", 1),
        ("--limit_train_batches 1.0", 1.0),  # a part
        ("--lr 1e-2 1", [0.01, 1.0]),
        ("--x_min -5e0", -5.0),
        ("--function -x**2", "-x**2"),
        ("--function 1e4", "1e4"),
    ):
        flags = line.split()
        read = fit_parser().parse_args(flags)[flags[0].removeprefix("--")]
        assert read == value and type(read) is type(value)


@pytest.mark.parametrize("flags", ["--epochs 1.5", "--epochs 0", "--epochs 100,200", "--lr 0,01", "--lr -1", "--wd 1"])
def test_a_value_of_another_type_names_its_flag(flags: str) -> None:
    with pytest.raises(UsageError, match=flags.split()[0].removeprefix("--")):
        fit_parser().parse_args(flags.split())


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--function x+*2", "x+*2"),
        ("--function 1/x", "x = 0"),
        ("--x_min 2 --x_max 1", "x_min"),
        ("--epochs 1e12", "1,000,000,000,000"),
        ("--ckpt_path garbage.ckpt", "garbage.ckpt"),
        ("--num_samples 100000000000", "memory"),
        ("--csv garbage.ckpt", "garbage.ckpt"),
    ],
)
def test_a_usage_error_is_one_line_and_leaves_nothing(flags: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "garbage.ckpt").write_bytes(b"PK\x03\x04 no checkpoint")
    assert_refused(command(tmp_path, "fit.py", *flags.split(), "--run_dir", "new"), "error: ", word)
    assert [path.name for path in tmp_path.iterdir()] == ["garbage.ckpt"]
