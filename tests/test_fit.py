"""scripts/fit.py as its user meets it: the command line, its output, and the files that it leaves."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import launch
import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from datamodules import CurveDataModule
from scripts.cifar import cifar_parser
from scripts.fit import epoch_counts, fit_parser, measured_epochs, noise_hint

SCRIPT = Path(__file__).parents[1] / "scripts" / "fit.py"
SMALL = ("--lr", "0.1", "0.01", "--num_samples", "50")


def fit(folder, *args, run=launch.run):
    """Runs the script in ``folder``, where no GPU can be seen."""
    return run([str(SCRIPT), *args], folder, os.environ | {"CUDA_VISIBLE_DEVICES": ""})


def succeed(folder, *args, run=launch.run):
    done = fit(folder, *args, run=run)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    return done.stdout


def summary(run_dir):
    def no_nan(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads((run_dir / "summary.json").read_text(), parse_constant=no_nan)


def metrics(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_is_picture(path):
    data = path.read_bytes()
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert width >= 600 and height >= 300 and len(data) > 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def default(folder):
    """A run without any flag: what it printed, and where it went."""
    output = succeed(folder, run=launch.run_anew)
    (run_dir,) = (folder / "runs" / "fit").iterdir()
    return output, run_dir


@pytest.fixture(scope="module")
def grid(folder):
    """Two learning rates, three seeds and two epoch counts."""
    settings = ("--epochs", "100", "300", "--lr", "0.1", "0.01", "--num_seeds", "3", "--seed", "5")
    succeed(folder, *settings, "--run_dir", "grid", run=launch.run_anew)
    return folder / "grid"


@pytest.fixture(scope="module")
def whole(folder):
    """500 epochs in one go."""
    succeed(folder, *SMALL, "--epochs", "500", "--run_dir", "whole", run=launch.run_anew)
    return folder / "whole"


def test_default_run_learns_the_curve(default):
    _, run_dir = default
    content = summary(run_dir)
    assert {"function", "x_min", "x_max", "results", "seconds"} <= set(content)
    assert content["function"] == "x**2 + 2*sin(x) + cos(x-1) - 5"
    assert (content["x_min"], content["x_max"]) == (-5, 5)
    assert content["seconds"]["total"] > content["seconds"]["train"] > 0
    (result,) = content["results"]
    assert (result["lr"], result["seed"], result["epochs"]) == (0.01, 0, 1000)
    assert 6 < result["train_mse"] < 12  # the noise has variance 9
    assert 0 < result["true_mse"] < 2
    assert result["true_mse"] < result["true_max_abs_error"] ** 2
    assert result["r2"] > 0.95


def test_the_output_ends_with_the_result_and_where_to_look(default):
    output, run_dir = default
    (result,) = summary(run_dir)["results"]
    assert f"{result['true_mse']:.4g}" in output
    last = output.strip().splitlines()[-1]
    assert str(run_dir.relative_to(run_dir.parents[2])) in last and "tensorboard" in last


def test_every_file_of_a_run_is_there(grid):
    for name in ("config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt"):
        assert (grid / name).stat().st_size > 0
    assert list(grid.glob("events.out.tfevents.*"))
    assert_is_picture(grid / "curves.png")
    assert_is_picture(grid / "errors.png")
    left_aside = [path for path in grid.rglob("*") if "tmp" in path.name]
    assert not left_aside


def test_every_setting_of_the_grid_is_reported(grid):
    results = summary(grid)["results"]
    asked = {(lr, seed, epochs) for lr in (0.1, 0.01) for seed in (5, 6, 7) for epochs in (100, 300)}
    assert {(r["lr"], r["seed"], r["epochs"]) for r in results} == asked
    assert len(results) == len(asked)
    for r in results:
        assert set(r) == {"lr", "seed", "epochs", "train_mse", "true_mse", "true_max_abs_error", "r2"}
        assert 0 < r["true_mse"] <= r["true_max_abs_error"] ** 2
        assert r["train_mse"] > 0 and r["r2"] < 1
    assert len({r["true_mse"] for r in results}) == len(asked)  # own initialisation, own sample


def test_r2_and_true_mse_speak_of_the_same_truth(grid):
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    variance = (x**2 + 2 * x.sin() + (x - 1).cos() - 5).var(correction=0).item()
    for r in summary(grid)["results"]:
        assert r["r2"] == pytest.approx(1 - r["true_mse"] / variance)


def test_metrics_are_logged_over_epochs(whole):
    rows = metrics(whole)
    assert {"train/loss", "val/loss"} <= set(rows[0])
    steps = [int(row["step"]) for row in rows if row["val/loss"]]
    assert steps[-1] == 500 and sorted(set(steps)) == steps


def test_config_repeats_the_run_bit_for_bit(folder, grid):
    succeed(folder, "--config", "grid/config.yaml", "--run_dir", "grid-again")
    again = folder / "grid-again"
    assert summary(again)["results"] == summary(grid)["results"]
    assert (again / "metrics.csv").read_bytes() == (grid / "metrics.csv").read_bytes()


def test_the_seed_decides(folder, whole):
    for seed in ("0", "1"):
        succeed(folder, *SMALL, "--epochs", "500", "--seed", seed, "--run_dir", f"seed{seed}")
    expected = (whole / "metrics.csv").read_bytes()
    assert (folder / "seed0" / "metrics.csv").read_bytes() == expected
    assert (folder / "seed1" / "metrics.csv").read_bytes() != expected


def test_resume_equals_an_uninterrupted_run(folder, whole):
    succeed(folder, *SMALL, "--epochs", "200", "--run_dir", "resumed")
    succeed(folder, *SMALL, "--epochs", "500", "--run_dir", "resumed", "--ckpt_path", "last")
    resumed = folder / "resumed"
    assert summary(resumed)["results"] == summary(whole)["results"]
    assert metrics(resumed) == metrics(whole)  # no row twice, none missing
    weights, expected = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (resumed, whole)
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def stopped_before_its_results(run_dir, to):
    """A copy of a finished run, as if it had been killed when its last checkpoint was saved."""
    shutil.copytree(run_dir, to, ignore=shutil.ignore_patterns(".lock", "*.png", "summary.json"))


@pytest.mark.parametrize("path", ["last", "stopped/checkpoints/last.ckpt"])
def test_a_run_stopped_before_its_results_gets_them(whole, tmp_path, path):
    stopped_before_its_results(whole, tmp_path / "stopped")
    checkpoint = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    succeed(tmp_path, *SMALL, "--epochs", "500", "--run_dir", "stopped", "--ckpt_path", path)
    content, expected = summary(tmp_path / "stopped"), summary(whole)
    for name in ("results", "over_seeds", "more_training"):
        assert content[name] == expected[name]
    assert metrics(tmp_path / "stopped") == metrics(whole)
    for name in ("curves.png", "errors.png"):
        assert (tmp_path / "stopped" / name).read_bytes() == (whole / name).read_bytes()
    assert checkpoint.read_bytes() == before


def test_a_run_stopped_before_its_results_can_go_on(whole, tmp_path):
    stopped_before_its_results(whole, tmp_path / "stopped")
    elsewhere = fit(tmp_path, *SMALL, "--epochs", "500", "--ckpt_path", "stopped/checkpoints/last.ckpt")
    assert elsewhere.returncode == 2 and "500 epochs already" in elsewhere.stderr
    succeed(tmp_path, *SMALL, "--epochs", "600", "--run_dir", "stopped", "--ckpt_path", "last")
    assert {r["epochs"] for r in summary(tmp_path / "stopped")["results"]} == {600}


def test_a_longer_run_that_was_stopped_before_its_results_gets_them(whole, tmp_path):
    """The shorter run's summary.json is not taken for its own."""
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    longer = (*SMALL, "--epochs", "5000", "--run_dir", "run", "--ckpt_path", "last")
    (tmp_path / "run" / "errors.png").unlink()
    (tmp_path / "run" / "errors.png").mkdir()  # cannot be written
    assert fit(tmp_path, *longer).returncode == 2
    (tmp_path / "run" / "errors.png").rmdir()
    succeed(tmp_path, *longer)
    assert {r["epochs"] for r in summary(tmp_path / "run")["results"]} == {5000}


@pytest.mark.slow
def test_a_mistake_in_a_resume_harms_nothing(folder, whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    again = ("--run_dir", str(whole), "--ckpt_path", "last")
    for args, word in (
        ((*SMALL, "--epochs", "900", "--hidden", "5"), "another network"),
        ((*SMALL, "--epochs", "500"), "500 epochs already"),
        (("--lr", "0.01", "0.1", *SMALL[3:], "--epochs", "900"), "--lr 0.1 0.01, not 0.01 0.1"),
        ((*SMALL[:3], "--epochs", "900"), "--num_samples 50, not 200"),
        ((*SMALL, "--epochs", "900", "--function", "sin(x)", "--seed", "1"), "--seed 0, not 1"),
        ((*SMALL, "--epochs", "900", "--noise_std", "1"), "--noise_std 3.0, not 1.0"),
        ((*SMALL, "--epochs", "900", "--x_max", "4"), "--x_max 5.0, not 4.0"),
        ((*SMALL, "--epochs", "900", "--num_seeds", "2"), "another network"),
        (("--lr", "0.1", "--num_seeds", "2", *SMALL[3:], "--epochs", "900"), "--num_seeds 1, not 2"),
        ((*SMALL, "--epochs", "900", "--precision", "64"), "--precision 32-true, not 64"),
    ):
        done = fit(folder, *args, *again)
        assert done.returncode == 2 and word in done.stderr and len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_max_epochs_cuts_the_epochs_asked_for(folder):
    succeed(folder, *SMALL, "--epochs", "20", "1000", "--max_epochs", "50", "--run_dir", "cut")
    assert {r["epochs"] for r in summary(folder / "cut")["results"]} == {20, 50}


@pytest.mark.parametrize(
    ("flags", "asked", "last"),
    [
        ([], [1000], 1000),
        (["--max_epochs", "5000"], [1000, 5000], 5000),  # the default of --epochs does not end it
        (["--epochs", "20", "100", "--max_epochs", "5000"], [20, 100], 100),
        (["--epochs", "20", "100", "--max_epochs", "50", "--max_steps", "60"], [20, 50], 50),
        (["--epochs", "auto"], [], 50_000),
        (["--epochs", "auto", "10", "--max_steps", "5"], [5], 5),
    ],
)
def test_the_epochs_that_are_trained(flags, asked, last):
    assert epoch_counts(fit_parser().parse_args(flags)) == (asked, last)


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (["--epochs", "1e2", "10_000", "1,000,000", "1.5e3", "auto"], [100, 10_000, 1_000_000, 1500, "auto"]),
        (["--num_samples=1e2"], 100),
        (["--hidden", "1e2", "10"], [100, 10]),
        (["--seed", "1e3"], 1000),
        (["--max_epochs", "1e2"], 100),
        (["--max_epochs", "null"], None),
        (["--max_steps", "-1"], -1),
        (["--save_every_n_steps", "10,000"], 10_000),
        (["--limit_train_batches", "1e2"], 100),  # batches: without a decimal point
        (["--limit_train_batches", "1"], 1),
        (["--limit_train_batches", "1.0"], 1.0),  # a part
        (["--lr", "1e-2", "-1e-3"], [0.01, -0.001]),
        (["--x_min", "-5e0"], -5.0),
        (["--function", "-x**2"], "-x**2"),
        (["--function=-x**2"], "-x**2"),
        (["--function", "1e4"], "1e4"),
        (["--run_dir", "1e4"], "1e4"),
    ],
)
def test_numbers_as_people_write_them(flags, values):
    name = flags[0].partition("=")[0].removeprefix("--")
    read = fit_parser().parse_args(flags)[name]
    assert read == values and type(read) is type(values)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "1.5"], "--epochs is 1.5: give a whole number (such as 10000); several have blanks between them"),
        (["--epochs", "10.000"], "--epochs is 10.000: give a whole number"),
        (["--epochs", "100,1000"], "--epochs is 100,1000: give a whole number"),
        (["--epochs", "abc"], "--epochs is abc: give a whole number (such as 10000) or 'auto'"),
        (["--max_epochs", "1e-1"], "--max_epochs is 1e-1: give a whole number (such as 10000)"),
        (["--num_samples", "1e30"], "--num_samples is 1000000000000000000000000000000: give a smaller number"),
        (["--max_epochs", "many"], "--max_epochs is many: give a whole number (such as 10000) or null"),
        (["--hidden", "32,32"], "--hidden is 32,32: give a whole number"),
        (["--hidden", "64,128"], "--hidden is 64,128: give a whole number"),
        (["--epochs", "100,200"], "--epochs is 100,200: give a whole number"),
        (["--hidden", "[32, 32]"], "--hidden is [32, 32]: give a whole number"),
        (["--lr", "1e-2,1e-3"], "--lr is 1e-2,1e-3: give a number (such as 0.01); several have blanks between them"),
        (["--lr", "0,01"], "--lr is 0,01: give a number"),
        (["--x_min", "-0,5"], "--x_min is -0,5: give a number (such as 0.01)"),
        (["--inference_mode", "maybe"], "--inference_mode is maybe: give true or false"),
        (["--limit_train_batches", "x"], "give a whole number (such as 10000) or a number (such as 0.01) or null"),
    ],
)
def test_a_value_of_another_type_is_named_in_plain_words(flags, message):
    with pytest.raises(MisconfigurationException) as caught:
        fit_parser().parse_args(flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parser", "flag", "meant"),
    [
        (fit_parser, "--learning_rate", ": did you mean --lr?"),
        (fit_parser, "--learning-rate=0.1", ": did you mean --lr?"),
        (fit_parser, "-lr", ": did you mean --lr?"),
        (fit_parser, "--num_epochs", ": did you mean --epochs or --max_epochs or --min_epochs?"),
        (fit_parser, "--hidden-size", ": did you mean --hidden?"),
        (fit_parser, "--wd", ""),
        (fit_parser, "--epoch", ": did you mean --epochs or --max_epochs or --min_epochs?"),  # not cut short
        (fit_parser, "positional", ""),
        (lambda: cifar_parser({}), "--epochs", ": did you mean --max_epochs or --min_epochs?"),
        (lambda: cifar_parser({}), "--batch-size", ": did you mean --batch_size?"),
    ],
)
def test_an_unknown_flag_gets_those_that_it_may_stand_for(parser, flag, meant):
    with pytest.raises(MisconfigurationException) as caught:
        parser().parse_args([flag, "1"])
    assert str(caught.value) == f"unrecognized arguments: {flag} 1{meant}"


def test_an_unknown_name_in_a_config_gets_them_too(tmp_path):
    (tmp_path / "c.yaml").write_text("learning_rate: 0.1\n")
    with pytest.raises(MisconfigurationException, match="'learning_rate' is not accepted: did you mean --lr?"):
        fit_parser().parse_args(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: [0.1]".encode("utf-16"), "not in UTF-8"),  # what > writes in Windows PowerShell
        (b"run_dir: caf\xe9", "not in UTF-8"),
        (b"milestones: {5: 0.01}", "is it another script's?"),
    ],
)
def test_a_config_that_is_none_gets_one_line(tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(MisconfigurationException, match=message) as caught:
        fit_parser().parse_args(["--config", str(tmp_path / "c.yaml")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "noise_std", "instead"),
    [
        ("sin(x)", 3.0, "0.3"),  # 0.4 of the deviation 0.73: of the mean of sin(x)**2, 0.527, the root
        ("1000*sin(x)", 3000.0, "300"),
        ("sin(x)", 0.7, None),
        ("5", 3.0, None),
        ("sin(x)**2 + cos(x)**2", 3.0, None),
    ],
)
def test_noise_that_drowns_the_function_is_named(function, noise_std, instead):
    hint = noise_hint(CurveDataModule(function, noise_std=noise_std))
    assert hint.endswith(f"try --noise_std {instead}") if instead else hint == ""


def test_save_every_n_steps_counts_epochs(folder):
    checkpoint = folder / "saved" / "checkpoints" / "last.ckpt"
    args = (*SMALL, "--epochs", "1000000", "--save_every_n_steps", "1300", "--run_dir", "saved")
    with subprocess.Popen([sys.executable, str(SCRIPT), *args], cwd=folder) as process:
        try:
            while not checkpoint.exists():
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.kill()
    assert torch.load(checkpoint, weights_only=True)["epochs_done"] % 1300 == 0


def test_a_checkpoint_to_save_has_its_measurement_and_a_normal_run_no_more_of_them():
    normal = measured_epochs([100], 50_000)
    assert {1, 100, 2_000, 48_000, 50_000} <= set(normal) and len(normal) < 80
    assert set(measured_epochs([], 50_000, 300)) == set(normal) | set(range(300, 50_000, 300))
    assert len(measured_epochs([], 1_000_000, 1)) < 1_600


@pytest.mark.parametrize("flag", ["--min_epochs", "--min_steps"])
def test_the_training_ends_where_it_is_asked_to(folder, flag):
    run_dir = f"least{flag[5:]}"
    succeed(folder, *SMALL, "--epochs", "20", flag, "100", "--run_dir", run_dir)
    assert {r["epochs"] for r in summary(folder / run_dir)["results"]} == {20}


def test_divergence_is_a_result_not_a_crash(folder):
    args = ("--function", "exp(20*x)", "--lr", "1e30", "0.001", "--epochs", "200", "--run_dir", "diverged")
    args += ("--num_seeds", "2")
    output = succeed(folder, *args)
    assert "diverged" in output
    content = summary(folder / "diverged")
    bad, good = ([r for r in content["results"] if (r["lr"] == 1e30) == diverged] for diverged in (True, False))
    assert len(bad) == len(good) == 2
    for name in ("train_mse", "true_mse", "true_max_abs_error", "r2"):
        assert all(result[name] is None for result in bad)
        assert all(math.isfinite(result[name]) for result in good)
        assert content["over_seeds"][0][name] == {"median": None, "q25": None, "q75": None}
    assert_is_picture(folder / "diverged" / "curves.png")
    assert_is_picture(folder / "diverged" / "errors.png")


# a mistake: the arguments, and a word that its message must hold
MISTAKES = {
    "unknown flag": (["--no_such_flag", "1"], "no_such_flag"),
    "wrong type": (["--num_samples", "many"], "--num_samples is many: give a whole number"),
    "bad expression": (["--function", "x +* 2"], "x +* 2"),
    "two readings": (["--function", "1/2x"], "1/(2*x)"),
    "pole": (["--function", "1/x"], "x = 0"),
    "empty interval": (["--x_min", "2", "--x_max", "1"], "x_min"),
    "no epochs": (["--epochs", "0"], "epochs"),
    "seed too large": (["--seed", "9" * 20], "--seed"),
    "negative seed": (["--seed", "-1"], "--seed"),
    "no such checkpoint": (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
    "no run to go on with": (["--ckpt_path", "last"], "last.ckpt"),
    "garbage checkpoint": (["--ckpt_path", "garbage.ckpt"], "garbage.ckpt"),
    "no GPU": (["--accelerator", "gpu"], "GPU"),
    "finished run": (["--run_dir", "finished"], "finished"),
    "run_dir below a file": (["--run_dir", "plain_file/run"], "plain_file"),
    "no such config": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "the last of which run": (["--ckpt_path", "last"], "Name its folder: --run_dir"),
    "one value for a list": (["--config", "one.yaml"], "lr: [0.1]"),
    "a number for text": (["--config", "text.yaml"], "--function is 5: give text"),
    "more than the memory": (["--num_samples", "100000000000"], "not enough memory"),
    "more than a day": (["--epochs", "1e12"], "--epochs is 1,000,000,000,000"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of each mistake, every one in its own folder."""
    base = tmp_path_factory.mktemp("mistakes")

    def outcome(name):
        folder = base / name.replace(" ", "_")
        (folder / "finished").mkdir(parents=True)
        (folder / "finished" / "config.yaml").write_text("seed: 0\n")
        (folder / "plain_file").write_text("not a folder")
        (folder / "one.yaml").write_text("lr: 0.1\n")
        (folder / "text.yaml").write_text("function: 5\n")
        (folder / "garbage.ckpt").write_bytes(b"PK\x03\x04 no checkpoint")
        args = MISTAKES[name][0]
        before = sorted(folder.rglob("*"))
        done = fit(folder, *args, *([] if "--run_dir" in args or "which run" in name else ["--run_dir", "new"]))
        return done, before, sorted(folder.rglob("*"))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(MISTAKES, pool.map(outcome, MISTAKES), strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(outcomes, name):
    done, before, after = outcomes[name]
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert MISTAKES[name][1] in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert after == before, "it left something behind"
