"""scripts/cifar.py as its user meets it: the command line, its output, and the files that it leaves."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import launch
import pytest
import torch
from scripts.recipe import recipe_defaults

from callbacks import LRStep
from datamodules import CIFAR10DataModule

SCRIPTS = Path(__file__).parents[1] / "scripts"
BATCHES = ("--batch_size", "32", "--limit_train_batches", "12", "--limit_val_batches", "8", "--limit_test_batches", "0")
TESTED = ("--limit_test_batches", "8")  # which takes as long as all of these batches
SETTINGS = ("--data", "synthetic", "--max_epochs", "3", "--milestones", "{2:0.01}", "--accelerator", "cpu", *BATCHES)
TRAINER_FLAGS = "accelerator devices strategy precision max_epochs limit_train_batches".split()
COMMON_FLAGS = "config print_config seed run_dir ckpt_path save_every_n_steps".split()
FIT_FLAGS = "function x_min x_max num_samples noise_std epochs lr num_seeds hidden".split()
CIFAR_FLAGS = "recipe data data_root download val_size num_seeds probe_train batch_size compile milestones".split()
CIFAR_FLAGS += "lr momentum nesterov weight_decay he_init warmup_fraction image_sizes max_shift alternate_flips".split()


def command(*args, script="cifar.py"):
    return [sys.executable, str(SCRIPTS / script), *args]


def environment():
    """No GPU can be seen, and CIFAR-10 is only where a test says."""
    env = {name: value for name, value in os.environ.items() if name != "CIFAR10_ROOT"}
    return env | {"CUDA_VISIBLE_DEVICES": ""}


def cifar(folder, *args, script="cifar.py", run=launch.run):
    return run([str(SCRIPTS / script), *args], folder, environment())


def succeed(folder, *args, run=launch.run):
    done = cifar(folder, *args, run=run)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_run(run_dir, expected):
    mine, theirs = weights(run_dir), weights(expected)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    if summary(run_dir)["test_acc"] is not None:
        assert all(summary(run_dir)[name] == summary(expected)[name] for name in ("test_acc", "test_loss"))
    timed = ("seconds", "images_per_second")
    untimed = [
        [{name: value for name, value in row.items() if name not in timed} for row in summary(run)["epochs"]]
        for run in (run_dir, expected)
    ]
    assert untimed[0] == untimed[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cifar")


@pytest.fixture(scope="module")
def run(folder):
    """Three short epochs on the synthetic images: what it printed, and where it went."""
    return succeed(folder, *SETTINGS, *TESTED, "--run_dir", "whole", run=launch.run_anew), folder / "whole"


def test_summary_is_complete(run):
    content = summary(run[1])
    assert set(content) >= {
        *("recipe", "data", "device", "parameters", "train_batches", "val_batches", "epochs"),
        *("test_acc", "test_loss", "images_per_second", "seconds", "peak_memory_mb"),
    }
    assert (content["recipe"], content["data"], content["device"]) == ("lab", "synthetic", "cpu")
    assert content["parameters"] == 269_722
    assert (content["train_batches"], content["val_batches"]) == (12, 8)
    assert 0 <= content["test_acc"] <= 1 and content["test_loss"] > 0
    assert content["test_acc"] * 256 == pytest.approx(round(content["test_acc"] * 256), abs=1e-3)
    assert content["images_per_second"] > 0 and content["peak_memory_mb"] > 0
    assert content["seconds"]["total"] > content["seconds"]["train"] > 0


def test_summary_tells_every_epoch(run):
    epochs = summary(run[1])["epochs"]
    assert [row["epoch"] for row in epochs] == [0, 1, 2]
    assert [row["lr"] for row in epochs] == [0.1, 0.1, 0.01]
    for row in epochs:
        assert set(row) >= {
            *("epoch", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "seconds", "images_per_second")
        }
        assert row["train_loss"] > 0 and row["val_loss"] > 0
        assert 0 <= row["train_acc"] <= 1 and 0 <= row["val_acc"] <= 1
    assert epochs[-1]["val_acc"] > 0.2, "it has learnt nothing"


def test_metrics_csv_shows_what_design_names_and_the_lr_steps(run):
    with open(run[1] / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc")}
    assert names | {"lr"} <= set(rows[0])
    assert [float(row["lr"]) for row in rows if row["lr"]] == pytest.approx([0.1, 0.1, 0.01])
    for name in names:
        assert sum(bool(row[name]) for row in rows) == (1 if name.startswith("test") else 3)


def test_every_file_of_a_run_is_there(run):
    run_dir = run[1]
    for name in ("config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt"):
        assert (run_dir / name).stat().st_size > 0
    assert list(run_dir.glob("events.out.tfevents.*"))
    picture = (run_dir / "training.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 10_000
    assert not [path for path in run_dir.rglob("*") if "tmp" in path.name]


def test_last_lines_say_the_result_and_where_to_look(run):
    output, run_dir = run
    last = output.strip().splitlines()[-2:]
    assert f"{summary(run_dir)['test_acc']:.2%}" in last[0]
    assert last[1] == "Figures and summary.json are in whole; TensorBoard: tensorboard --logdir whole"


def test_config_repeats_the_run_bit_for_bit(folder, run):
    succeed(folder, "--config", "whole/config.yaml", "--run_dir", "again")
    assert (folder / "again" / "metrics.csv").read_bytes() == (run[1] / "metrics.csv").read_bytes()
    assert_same_run(folder / "again", run[1])


def interrupt(folder, name, signum, extra, ready):
    """Starts the run ``name``, sends the signal once ``ready(process)`` returns, and gives the exit code."""
    process = subprocess.Popen(
        command(*SETTINGS, *extra, "--run_dir", name), cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        ready(process)
        process.send_signal(signum)
        process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode


def test_ctrl_c_inside_an_epoch_saves_and_the_resumed_run_ends_the_same(folder, run):
    checkpoint = folder / "ctrl_c" / "checkpoints" / "last.ckpt"
    every = ("--save_every_n_steps", "4")

    def first_checkpoint(process):
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.005)

    assert interrupt(folder, "ctrl_c", signal.SIGINT, every, first_checkpoint) == 130
    assert 4 <= torch.load(checkpoint, weights_only=True)["global_step"] < 36
    assert not (folder / "ctrl_c" / "summary.json").exists()
    resumed = succeed(folder, *SETTINGS, *every, "--run_dir", "ctrl_c", "--ckpt_path", "last")
    assert resumed.count("train_loss") == 1  # the table's header
    assert_same_run(folder / "ctrl_c", run[1])


@pytest.mark.slow
def test_sigterm_after_an_epoch_saves_and_the_resumed_run_ends_the_same(folder, run):
    def first_epoch(process):
        for line in process.stdout:
            if line.split()[:2] == ["0", "0.1"]:
                return

    assert interrupt(folder, "sigterm", signal.SIGTERM, (), first_epoch) == 143
    checkpoint = torch.load(folder / "sigterm" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 12 <= checkpoint["global_step"] < 36
    succeed(folder, *SETTINGS, "--run_dir", "sigterm", "--ckpt_path", "last")
    assert_same_run(folder / "sigterm", run[1])


def test_sigterm_in_a_validation_inside_an_epoch_saves_at_the_next_step(folder):
    inside = ("--val_check_interval", "4", "--callbacks+=signals.TermAtValidation")
    (folder / "signals.py").write_text("""
import os, signal
from pytorch_lightning import Callback

class TermAtValidation(Callback):
    def on_validation_start(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGTERM)
""")
    flags = [str(SCRIPTS / "cifar.py"), *SETTINGS, *inside, "--run_dir", "term"]
    done = launch.run_anew(flags, folder, environment() | {"PYTHONPATH": str(folder)})
    assert done.returncode == 143, done.stderr
    assert torch.load(folder / "term" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


@pytest.mark.parametrize("flags", [("--accumulate_grad_batches", "5"), ("--val_check_interval", "4")])
@pytest.mark.slow
def test_a_resume_with_flags_of_lightnings_is_the_same_run(folder, flags):
    """A step of several batches is not cut in two; validations inside an epoch are told again."""
    name = flags[0].strip("-")
    succeed(folder, *SETTINGS, *flags, "--max_epochs", "2", "--run_dir", name)
    cut = f"{name}_in_two"
    succeed(folder, *SETTINGS, *flags, "--max_epochs", "1", "--run_dir", cut)
    succeed(folder, *SETTINGS, *flags, "--max_epochs", "2", "--run_dir", cut, "--ckpt_path", "last")
    assert_same_run(folder / cut, folder / name)
    assert (folder / cut / "metrics.csv").read_bytes() == (folder / name / "metrics.csv").read_bytes()
    assert all(row["images_per_second"] > 0 for row in summary(folder / name)["epochs"])


def test_ctrl_c_while_the_test_images_are_drawn_is_heard(folder):
    (folder / "late.py").write_text("""
import os, signal
from pytorch_lightning import Callback

class IntAtTestEnd(Callback):
    def on_test_end(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGINT)
""")
    short = ("--max_epochs", "1", "--limit_train_batches", "2", *TESTED, "--num_seeds", "2")
    flags = (*SETTINGS, *short, "--callbacks+=late.IntAtTestEnd", "--run_dir", "a b")
    done = launch.run_anew([str(SCRIPTS / "cifar.py"), *flags], folder, environment() | {"PYTHONPATH": str(folder)})
    assert done.returncode == 130, done.stderr
    assert "--run_dir 'a b'" in done.stdout or os.name == "nt"
    assert not (folder / "a b" / "seed1").exists()
    checkpoint = torch.load(folder / "a b" / "seed0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


@pytest.mark.parametrize(
    ("batch", "flags"),
    [
        (11, ("--val_check_interval", "5")),  # of 12: the epoch's values are those of the validation after batch 10
        (18, ("--val_check_interval", "9", "--check_val_every_n_epoch", "null")),  # that validation must not be lost
    ],
)
@pytest.mark.slow
def test_a_run_cut_around_a_validation_inside_an_epoch_is_resumed_as_the_same(folder, batch, flags):
    (folder / "cut.py").write_text("""
import os, signal
from pytorch_lightning import Callback

class TermAt(Callback):
    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)
""")
    settings, whole, name = (*SETTINGS, "--max_epochs", "2", *flags), f"whole_{batch}", f"cut_{batch}"
    succeed(folder, *settings, "--run_dir", whole)
    cut = ("--callbacks+=cut.TermAt", "--callbacks.batch", str(batch), "--run_dir", name)
    env = environment() | {"PYTHONPATH": str(folder)}
    done = launch.run_anew([str(SCRIPTS / "cifar.py"), *settings, *cut], folder, env)
    assert done.returncode == 143, done.stderr
    succeed(folder, *settings, "--run_dir", name, "--ckpt_path", "last")
    assert_same_run(folder / name, folder / whole)
    assert (folder / name / "metrics.csv").read_bytes() == (folder / whole / "metrics.csv").read_bytes()
    assert all(row["val_acc"] is not None for row in summary(folder / name)["epochs"])


@pytest.mark.slow
def test_a_run_from_another_runs_checkpoint_trains_by_its_own_recipe(folder, run):
    """Momentum, decay and rate are those that were asked for, not those that the checkpoint was trained with."""
    fast = (*SETTINGS[:2], *SETTINGS[6:], "--recipe", "fast", "--max_epochs", "4", "--ckpt_path")
    fast = (*fast, str(run[1] / "checkpoints" / "last.ckpt"), "--run_dir", "fast_from_lab")
    assert_is_mistake(cifar(folder, *fast), "--optimizer sgd")
    succeed(folder, *fast, "--optimizer", "sgd")
    checkpoint = torch.load(folder / "fast_from_lab" / "checkpoints" / "last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 1e-3)
    past = ("--max_epochs", "4", "--ckpt_path", str(run[1] / "checkpoints" / "last.ckpt"), "--milestones")
    succeed(folder, *SETTINGS, *past, "{3: 0.001}", "--run_dir", "past_the_step")
    assert [row["lr"] for row in summary(folder / "past_the_step")["epochs"]] == [0.1, 0.1, 0.01, 0.001]
    succeed(folder, *SETTINGS, *past, "{}", "--run_dir", "back_again")
    assert [row["lr"] for row in summary(folder / "back_again")["epochs"]] == [0.1, 0.1, 0.01, 0.1]
    other = (
        "--recipe",
        "fast",
        "--optimizer",
        "sgd",
        "--limit_train_batches",
        "3",
        "--max_epochs",
        "5",
        "--ckpt_path",
        past[3],
    )
    done = cifar(folder, *SETTINGS[:2], *SETTINGS[6:], *other, "--run_dir", "shorter_epochs")
    assert_is_mistake(done, "limits that it began with")


def test_resume_at_an_epochs_end_ends_the_same(folder, run):
    succeed(folder, *SETTINGS, "--max_epochs", "2", "--run_dir", "two")
    succeed(folder, *SETTINGS, "--run_dir", "two", "--ckpt_path", "last")
    assert_same_run(folder / "two", run[1])


def test_several_seeds_and_a_probe(folder):
    short = ("--max_epochs", "1", "--limit_train_batches", "3", *TESTED)
    succeed(folder, *SETTINGS, *short, "--num_seeds", "2", "--probe_train", "true", "--run_dir", "seeds")
    top, runs = summary(folder / "seeds"), [summary(folder / "seeds" / f"seed{seed}") for seed in (0, 1)]
    for name in ("test_acc", "test_loss"):
        values = [run[name] for run in runs]
        assert values[0] != values[1] and [run[name] for run in top["runs"]] == values
        assert top[f"{name}_mean"] == pytest.approx(sum(values) / 2)
        assert top[f"{name}_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)  # one degree of freedom
    shutil.copytree(folder / "seeds", folder / "half", ignore=shutil.ignore_patterns(".lock"))
    shutil.rmtree(folder / "half" / "seed1")  # as if killed before
    (folder / "half" / "summary.json").unlink()
    refused = cifar(folder, *SETTINGS, *short, "--num_seeds", "2", "--probe_train", "true", "--run_dir", "half")
    assert_is_mistake(refused, "holds a run already")
    flags = ("--num_seeds", "2", "--probe_train", "true", "--run_dir", "half", "--ckpt_path", "last")
    succeed(folder, *SETTINGS, *short, *flags, "--data_root", "moved")
    assert_same_run(folder / "half" / "seed1", folder / "seeds" / "seed1")
    resumed = summary(folder / "half")
    assert resumed["test_acc_mean"] == top["test_acc_mean"]
    both = [summary(folder / "half" / f"seed{seed}")["seconds"] for seed in (0, 1)]  # of two commands
    assert resumed["seconds"] == {name: sum(one[name] for one in both) for name in ("train", "total")}
    for run in runs:
        (epoch,) = run["epochs"]
        assert 0 <= epoch["probe_acc"] <= 1 and epoch["probe_loss"] > 0
        assert 0 < epoch["displacement"] <= epoch["path"] and 0 < epoch["mean_gradient"] <= epoch["gradient"]
    alone = cifar(folder, *SETTINGS, *short, "--run_dir", "half", "--ckpt_path", "last")
    assert_is_mistake(alone, "--num_seeds")
    # More epochs, for both seeds, and another seed; of the epochs only the second and third are measured.
    more = ("--limit_train_batches", "3", "--max_epochs", "3", "--check_val_every_n_epoch", "2", "--num_seeds", "3")
    succeed(folder, *SETTINGS, *more, "--probe_train", "true", "--run_dir", "half", "--ckpt_path", "last")
    assert [len(run["epochs"]) for run in summary(folder / "half")["runs"]] == [3, 3, 3]


def test_the_papers_recipe(folder):
    settings = ("--recipe", "paper", "--data", "synthetic", "--accelerator", "cpu", "--batch_size", "32")
    few = ("--limit_train_batches", "2", "--limit_val_batches", "2", "--limit_test_batches", "0", "--max_steps", "3")
    succeed(folder, *settings, *few, "--run_dir", "paper")
    checkpoint = torch.load(folder / "paper" / "checkpoints" / "last.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.9, 1e-4, False)
    assert checkpoint["hyper_parameters"]["he_init"] is True
    recipe = recipe_defaults(["--recipe", "paper"])
    assert (recipe.get("max_epochs"), recipe["max_steps"], recipe["batch_size"]) == (None, 64_000, 128)
    schedule = LRStep(recipe["milestones"], recipe["milestone_unit"])
    rates = {31_999: None, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001}  # 0.1 divided by 10, twice
    assert {step: schedule.lr_at(step) for step in rates} == rates


def test_the_fast_recipe(folder):
    settings = ("--recipe", "fast", "--data", "synthetic", "--accelerator", "cpu", "--limit_test_batches", "2")
    settings += ("--limit_train_batches", "4", "--max_epochs", "5", "--save_every_n_steps", "1")
    succeed(folder, *settings, "--run_dir", "fast")
    content = summary(folder / "fast")
    assert [row["val_acc"] for row in content["epochs"]] == [None] * 5, "the test split is looked at once"
    assert content["test_acc"] is not None
    rates = [row["lr"] for row in content["epochs"]]  # of an epoch's last step: 3.5, 7.5, ... of 20 steps
    peak, warm_up = 0.2, 0.2
    done = [(4 * epoch + 3.5) / 20 for epoch in range(5)]
    assert rates == pytest.approx([peak * min(d / warm_up, (1 - d) / (1 - warm_up)) for d in done])
    checkpoint = torch.load(folder / "fast" / "checkpoints" / "last.ckpt", weights_only=True)
    filters, others = checkpoint["optimizer_states"][0]["param_groups"]
    ratio = 0.48  # from 0.5 at 4 epochs to 0.15 at 200, over the logarithm: 0.5 - 0.35 * log(5 / 4) / log(200 / 4)
    assert (filters["orthogonal"], filters["lr_ratio"], filters["momentum"]) == (True, ratio, 0.6)
    assert (others["momentum"], others["nesterov"]) == (0.9, True)
    untested = ("--limit_test_batches", "0", "--run_dir", "fast_held_out")
    succeed(folder, *settings, "--val_size", "100", *untested)
    assert all(row["val_acc"] is not None for row in summary(folder / "fast_held_out")["epochs"])
    assert_is_mistake(cifar(folder, *settings[:4], "--max_epochs", "-1", "--run_dir", "endless"), "max_epochs")
    assert not (folder / "endless").exists()


SEEN = """
import json
import torch
from pytorch_lightning import Callback

class Seen(Callback):
    def on_train_start(self, trainer, pl_module):
        self.sizes = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.sizes.append(batch[0].shape[-1])

    def on_train_end(self, trainer, pl_module):
        shifts = torch.cat([shift for _ in range(50) for _, _, shift, _ in trainer.train_dataloader])
        seen = {"sizes": self.sizes, "shifts": [shifts.min().item(), shifts.max().item()]}
        print(json.dumps(seen | {"alternates": trainer.train_dataloader.alternate_flips}))
"""


@pytest.mark.parametrize(
    ("epochs", "sizes", "shifts", "decay"),
    [
        # of 4 steps those with step / 4 below 0.6 (0 to 2), below 0.8 (3); at the short end of the rules by length
        (4, [20] * 3 + [24], [2, 6], 1e-3),
        # of 15 steps those with step / 15 below 0.6 (0 to 8), below 0.8 (9 to 11), and the rest; half-way between 4 and
        # 54 epochs on a logarithmic axis: log(15 / 4) / log(54 / 4) = 0.508
        (15, [20] * 9 + [24] * 3 + [32] * 3, [1, 7], 7.46e-4),
    ],
)
def test_the_images_of_the_fast_recipe(folder, epochs, sizes, shifts, decay):
    """Small ones first; longer training runs have more augmentation and less decay."""
    (folder / "seen.py").write_text(SEEN)
    flags = ("--recipe", "fast", "--data", "synthetic", "--accelerator", "cpu", "--max_epochs", str(epochs))
    flags += ("--val_size", "9968", "--limit_val_batches", "0", "--limit_test_batches", "0")  # an epoch is one batch
    flags += ("--batch_size", "32", "--callbacks+=seen.Seen", "--run_dir", f"fast_{epochs}")
    env = environment() | {"PYTHONPATH": str(folder)}
    done = launch.run_anew([str(SCRIPTS / "cifar.py"), *flags], folder, env)
    assert done.returncode == 0, done.stderr
    (seen,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert seen == {"sizes": sizes, "shifts": shifts, "alternates": True}
    checkpoint = torch.load(folder / f"fast_{epochs}" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["weight_decay"] == decay


def test_what_would_have_happened_without_the_step(folder, run):
    """The run branched off before its step has been the run up to there, and without the step the rate stays."""
    branch = ("--ckpt_path", str(run[1] / "checkpoints" / "end_of_epoch1.ckpt"))
    succeed(folder, *SETTINGS, *branch, "--milestones", "{}", "--run_dir", "branched_without")
    with_it, without = summary(run[1])["epochs"], summary(folder / "branched_without")["epochs"]
    assert [row["lr"] for row in without] == [0.1, 0.1, 0.1]
    assert without[:2] == with_it[:2] and without[2]["val_loss"] != with_it[2]["val_loss"]


def test_a_users_own_callback_and_logger(folder):
    own = ("--callbacks+=LearningRateMonitor", "--callbacks.logging_interval", "step", "--log_every_n_steps", "1")
    own += ("--logger", "CSVLogger", "--logger.save_dir", "theirs", "--logger.version", "0")
    own += ("--limit_test_batches", "0")
    succeed(folder, *SETTINGS, *own, "--max_epochs", "1", "--run_dir", "owned")
    for path in (folder / "owned", folder / "theirs" / "lightning_logs" / "version_0"):
        with open(path / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["lr-SGD"]) for row in rows if row["lr-SGD"]] == [0.1] * 12
        assert sum(bool(row["val/acc"]) for row in rows) == 1
    succeed(folder, "--config", "owned/config.yaml", "--max_epochs", "2", "--run_dir", "owned", "--ckpt_path", "last")
    absent = cifar(folder, *SETTINGS, "--logger", "WandbLogger", "--run_dir", "absent")
    assert_is_mistake(absent, "wandb")


def test_batches_to_overfit_are_the_same_in_every_epoch(folder):
    (folder / "labels.py").write_text("""
from pytorch_lightning import Callback

class Labels(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        print("labels", *batch[1].tolist())
""")
    flags = ("--overfit_batches", "2", "--callbacks+=labels.Labels", "--max_epochs", "2", "--run_dir", "overfit")
    env = environment() | {"PYTHONPATH": str(folder)}
    done = launch.run_anew([str(SCRIPTS / "cifar.py"), *SETTINGS, *flags], folder, env)
    assert done.returncode == 0, done.stderr
    batches = [line for line in done.stdout.splitlines() if line.startswith("labels")]
    assert len(batches) == 4 and batches[:2] == batches[2:] and batches[0] != batches[1]


def test_one_batch_is_one_batch_and_a_fraction_is_a_part(folder):
    few = ("--limit_train_batches", "1", "--limit_val_batches", "0.1", "--limit_test_batches", "1")
    succeed(folder, *SETTINGS, *few, "--batch_size", "64", "--max_epochs", "1", "--run_dir", "parts")
    content = summary(folder / "parts")
    assert (content["train_batches"], content["val_batches"]) == (1, 3)  # of 32
    assert content["test_acc"] * 64 == pytest.approx(round(content["test_acc"] * 64), abs=1e-3)


def test_the_end_of_a_training_is_measured_where_it_is_inside_an_epoch_too(folder):
    """The third step ends training inside the second epoch; and of two epochs only the second is to be measured."""
    settings = ("--data", "synthetic", "--accelerator", "cpu", "--limit_val_batches", "2", "--limit_test_batches", "2")
    settings += ("--batch_size", "32")
    succeed(folder, *settings, "--limit_train_batches", "2", "--max_steps", "3", "--run_dir", "partial")
    first, second = summary(folder / "partial")["epochs"]
    assert all(row[name] is not None for row in (first, second) for name in ("train_acc", "val_acc", "val_loss"))
    assert first["val_loss"] != second["val_loss"]
    seldom = ("--limit_train_batches", "2", "--max_epochs", "2", "--check_val_every_n_epoch", "2")
    succeed(folder, *settings, *seldom, "--run_dir", "seldom")
    first, second = summary(folder / "seldom")["epochs"]
    assert first["val_acc"] is first["val_loss"] is None and second["val_acc"] is not None


@pytest.mark.slow
def test_a_run_of_so_many_steps_goes_on_from_an_epochs_end_as_the_same_run(folder):
    """12 of the 313 batches an epoch: what begins anew are the epoch's order and the place in it."""
    steps = ("--recipe", "paper", "--data", "synthetic", "--accelerator", "cpu", *BATCHES)
    succeed(folder, *steps, "--max_steps", "36", "--run_dir", "steps")
    succeed(folder, *steps, "--max_steps", "12", "--run_dir", "steps_in_two")
    succeed(folder, *steps, "--max_steps", "36", "--run_dir", "steps_in_two", "--ckpt_path", "last")
    assert_same_run(folder / "steps_in_two", folder / "steps")


@pytest.mark.slow
def test_lightnings_precisions_and_clipping(folder):
    few = ("--max_epochs", "1", "--limit_train_batches", "2", "--limit_val_batches", "1", "--limit_test_batches", "1")
    for name, flags in {
        "bf16-true": ("--precision", "bf16-true"),
        "64-true": ("--precision", "64-true"),
        "clipped": ("--precision", "bf16-mixed", "--gradient_clip_val", "0.001", "--probe_train", "true"),
    }.items():
        succeed(folder, *SETTINGS, *few, *flags, "--run_dir", name)
        assert 0 < summary(folder / name)["epochs"][0]["train_loss"] < 10
    # Two steps at rate 0.1 of gradients of length 0.001, and decay, 5e-4 of weights of length 30: 0.0032; else about 1.
    assert 0 < summary(folder / "clipped")["epochs"][0]["path"] < 0.01
    assert {value.dtype for value in weights(folder / "64-true").values() if value.is_floating_point()} >= {
        torch.float64
    }
    succeed(folder, *SETTINGS, "--fast_dev_run", "true", "--run_dir", "dev")
    assert_is_mistake(cifar(folder, *SETTINGS, "--val_check_interval", "500", "--run_dir", "late"), "12 batches")
    assert not (folder / "late").exists()


def test_a_branch_that_was_killed_before_its_first_checkpoint_goes_on_from_where_it_began(folder, run):
    origin = run[1] / "checkpoints" / "end_of_epoch1.ckpt"
    (folder / "killed_branch").mkdir()
    config = (run[1] / "config.yaml").read_text() + f"ckpt_path: {origin}\n"
    (folder / "killed_branch" / "config.yaml").write_text(config)
    for flags in (("--ckpt_path", "last"), ("--config", "killed_branch/config.yaml")):
        run_dir = "killed_branch" if "last" in flags else "branch_by_config"
        succeed(folder, *SETTINGS, *flags, "--run_dir", run_dir)
        assert_same_run(folder / run_dir, run[1])
        assert f"ckpt_path: {origin}" in (folder / run_dir / "config.yaml").read_text()


@pytest.mark.slow
def test_a_compiled_run_goes_on_as_the_same_run(folder):
    """From the checkpoint that the run leaves before its step, in another folder."""
    short = ("--limit_train_batches", "4", "--milestones", "{1:0.01}", "--max_epochs")
    compiled = ("2", "--compile", "true", "--run_dir")
    succeed(folder, *SETTINGS, *short, *compiled, "compiled", run=launch.run_anew)
    half = ("--ckpt_path", "compiled/checkpoints/end_of_epoch0.ckpt")
    succeed(folder, *SETTINGS, *short, *compiled, "second_half", *half, run=launch.run_anew)
    assert_same_run(folder / "second_half", folder / "compiled")
    succeed(folder, *SETTINGS, *short, "1", "--limit_test_batches", "0", "--run_dir", "eager")
    losses = [summary(folder / name)["epochs"][0]["train_loss"] for name in ("compiled", "eager")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)  # other roundings, which early training makes larger


@pytest.mark.slow
def test_without_a_compiler(folder, run):
    """It is not needed, and who asks for it is told that it is missing."""
    env = environment() | {"PATH": "/nowhere"}
    for flags, code in ((("--compile", "true"), 2), ((), 0)):
        few = ("--max_epochs", "1", "--limit_train_batches", "1", "--limit_test_batches", "0")
        args = (*SETTINGS, *few, *flags, "--run_dir", f"no_compiler_{code}")
        done = subprocess.run(command(*args), cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert ("g++" in done.stderr) == (code == 2)


def test_two_processes_make_one_run_and_count_each_image_once(folder):
    batches = ("--max_epochs", "1", "--limit_train_batches", "3", "--batch_size", "128", "--val_size", "1001")
    processes = ("--accelerator", "cpu", "--devices", "2", "--strategy", "ddp")
    succeed(folder, "--data", "synthetic", *batches, *processes)
    (run_dir,) = (folder / "runs" / "cifar").iterdir()
    assert len(list(run_dir.rglob("summary.json"))) == len(list(run_dir.rglob("metrics.csv"))) == 1
    content = summary(run_dir)
    (epoch,) = content["epochs"]
    for accuracy, images in ((content["test_acc"], 2000), (epoch["val_acc"], 1001), (epoch["train_acc"], 384)):
        assert accuracy * images == pytest.approx(round(accuracy * images), abs=1e-3)


@pytest.mark.slow
def test_the_losses_of_two_processes_follow_those_of_one(folder):
    settings = ("--data", "synthetic", "--max_epochs", "3", "--limit_val_batches", "0", "--limit_test_batches", "0")
    settings += ("--limit_train_batches", "20", "--batch_size", "64", "--accelerator", "cpu", "--seed", "5")
    succeed(folder, *settings, "--run_dir", "alone")
    succeed(folder, *settings, "--run_dir", "in-two", "--devices", "2", "--strategy", "ddp")
    one, two = ([epoch["train_loss"] for epoch in summary(folder / name)["epochs"]] for name in ("alone", "in-two"))
    # Not equal: each process normalises by the mean and deviation of its own half of a batch.
    assert two == pytest.approx(one, rel=0.1)
    assert one[-1] < 0.9 * one[0]


@pytest.mark.slow
def test_two_machines_under_torchrun(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    torchrun += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    flags = ("--data", "synthetic", "--accelerator", "cpu", "--num_nodes", "2", "--devices", "1", "--strategy", "ddp")
    flags += ("--max_epochs", "1", "--limit_train_batches", "3", "--limit_val_batches", "1")
    flags += ("--limit_test_batches", "1", "--run_dir", "machines")
    machines = [
        subprocess.Popen(
            [*torchrun, "--node_rank", str(rank), str(SCRIPTS / "cifar.py"), *flags],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert ["test accuracy" in output for output in outputs] == [True, False]
    content = summary(folder / "machines")
    for accuracy, images in ((content["test_acc"], 128), (content["epochs"][0]["train_acc"], 384)):
        assert accuracy * images == pytest.approx(round(accuracy * images), abs=1e-3)


INDICES = """
import sys, torch
from pytorch_lightning import LightningModule, Trainer
from callbacks import LRStep
from datamodules import CIFAR10DataModule
from scripts.recipe import recipe_defaults

class Data(CIFAR10DataModule):
    def setup(self, stage):
        super().setup(stage)
        self.train = (self.train[0], torch.arange(10_000))  # an image's label is its index

class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []
    def training_step(self, batch, batch_idx):
        self.seen.append(batch[1].clone())
        return self.weight.sum()
    def on_train_end(self):
        torch.save(self.seen, f"seen{self.global_rank}.pt")
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, limit_val_batches=0,
                  enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Recorder(), Data(dataset="synthetic", batch_size=100))
"""


@pytest.mark.slow
def test_two_processes_see_every_image_once_an_epoch_and_the_batches_of_one_process(folder):
    (folder / "indices.py").write_text(INDICES)
    run = [sys.executable, "indices.py"]
    env = environment() | {"PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(folder / f"seen{rank}.pt") for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 2 * 100
    data = CIFAR10DataModule(dataset="synthetic", batch_size=100)
    data.setup("fit")
    data.train = (data.train[0], torch.arange(10_000))
    loader = data.train_dataloader()
    for epoch in (0, 1):
        batches = slice(epoch * 100, (epoch + 1) * 100)
        seen = torch.cat([*ranks[0][batches], *ranks[1][batches]])
        assert torch.equal(seen.sort().values, torch.arange(10_000))
        loader.set_epoch(epoch)
        for mine, theirs, batch in zip(ranks[0][batches], ranks[1][batches], loader, strict=True):
            assert set(mine.tolist()) | set(theirs.tolist()) == set(batch[1].tolist())


def test_real_images(folder, cifar10_root):
    data = ("--data_root", str(cifar10_root.resolve()), "--download", "false")
    succeed(folder, *data, *BATCHES, "--max_epochs", "1", "--accelerator", "cpu", "--run_dir", "real")
    content = summary(folder / "real")
    assert content["data"] == "cifar10"
    assert (content["train_batches"], content["val_batches"]) == (12, 8)
    assert 0 < content["epochs"][0]["train_acc"] < 1


def test_corrupt_images(tmp_path, cifar10_root):
    real, copy = cifar10_root.resolve() / "cifar-10-batches-py", tmp_path / "cifar-10-batches-py"
    copy.mkdir()
    for path in real.iterdir():
        (copy / path.name).symlink_to(path)
    broken = copy / "data_batch_3"
    broken.unlink()
    shutil.copyfile(real / "data_batch_3", broken)
    with open(broken, "r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    done = cifar(tmp_path, "--data_root", str(tmp_path), "--download", "true", "--run_dir", "new")
    assert_is_mistake(done, "data_batch_3")
    assert not (tmp_path / "new").exists()


# a mistake: the arguments, and a word that its message must hold
MISTAKES = {
    "missing data": (["--data_root", "nowhere", "--download", "false"], "nowhere"),
    "empty batch": (["--data", "synthetic", "--batch_size", "0"], "batch_size"),
    "all held out": (["--data", "synthetic", "--val_size", "10000"], "val_size"),
    "bad milestones": (["--data", "synthetic", "--milestones", "{five: fast}"], "milestones"),
    "no milestones": (["--data", "synthetic", "--milestones", "5"], "{5: 0.01}"),
    "unknown recipe": (["--data", "synthetic", "--recipe", "nonsense"], "recipe"),
    "no GPU": (["--data", "synthetic", "--accelerator", "gpu"], "GPU"),
    "milestone between epochs": (["--data", "synthetic", "--milestones", "{2.5: 0.01}"], "{5: 0.01}"),
    "milestone too far": (["--data", "synthetic", "--milestones", "{1e999: 0.1}"], "milestones"),
    "no batch": (["--data", "synthetic", "--limit_test_batches", "0.001"], "limit_test_batches"),
    "no step": (["--data", "synthetic", "--accumulate_grad_batches", "0"], "accumulate_grad_batches"),
    "interval": (["--data", "synthetic", "--limit_train_batches", "3", "--val_check_interval", "5"], "3 batches"),
    "last seed": (["--data", "synthetic", "--seed", "4294967295", "--num_seeds", "2"], "4294967296"),
    "batch for two": (
        ["--data", "synthetic", "--batch_size", "1", "--devices", "2", "--strategy", "ddp"],
        "batch_size",
    ),
}


def assert_is_mistake(done, word):
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of each mistake, every one in its own folder."""
    base = tmp_path_factory.mktemp("mistakes")  # once: two threads may get the same number

    def outcome(name):
        folder = base / name.replace(" ", "_")
        folder.mkdir()
        return cifar(folder, *MISTAKES[name][0], "--run_dir", "new"), list(folder.iterdir())

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(MISTAKES, pool.map(outcome, MISTAKES), strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(outcomes, name):
    done, left_behind = outcomes[name]
    assert_is_mistake(done, MISTAKES[name][1])
    assert not left_behind


@pytest.fixture(scope="module")
def told(folder):
    """What both scripts say to --help and --print_config."""
    asked = [(script, flag) for script in ("fit.py", "cifar.py") for flag in ("--help", "--print_config")]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(asked, pool.map(lambda a: cifar(folder, a[1], script=a[0]), asked), strict=True))


@pytest.mark.parametrize(("script", "own"), [("fit.py", FIT_FLAGS), ("cifar.py", CIFAR_FLAGS)])
def test_help_and_print_config_name_every_flag(told, script, own):
    shown, config = told[script, "--help"], told[script, "--print_config"]
    assert shown.returncode == config.returncode == 0
    for flag in (*own, *COMMON_FLAGS, *TRAINER_FLAGS):
        assert f"--{flag}" in shown.stdout
    settings = {line.split(":")[0] for line in config.stdout.splitlines()}
    assert {*own, *COMMON_FLAGS, *TRAINER_FLAGS} - settings == {"config", "print_config"}
