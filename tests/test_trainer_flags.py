"""Flags of Lightning's Trainer make a whole run, or end with one line and exit code 2 before training."""

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import launch
import pytest
import pytorch_lightning.callbacks
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from scripts.trainer import check_callbacks, flag_errors

ROOT = Path(__file__).parents[1]
FIT = "--epochs 20 --num_samples 30".split()
CIFAR = "--data synthetic --batch_size 16 --max_epochs 2 --accelerator cpu --compile false".split()
CIFAR += "--limit_train_batches 3 --limit_val_batches 1 --limit_test_batches 1".split()


def run(script: str, folder: Path, flags: str, run_dir: str = "run") -> launch.Done:
    """A tiny run with these flags beside its own."""
    own = FIT if script == "fit.py" else CIFAR
    args = [str(ROOT / "scripts" / script), *own, "--run_dir", run_dir, *shlex.split(flags)]
    return launch.run(args, folder, os.environ | {"CUDA_VISIBLE_DEVICES": ""})


def monitoring(callback: str, metric: str) -> str:
    return f"--callbacks+={callback} --callbacks.monitor {metric}"


REFUSED = [  # flags, and a word of the line that both scripts, or the one named, end with
    ("--accelerator gpu", "GPU"),
    ("--strategy ddp_spawn", "ddp"),
    ("--strategy ddp_fork", "ddp"),
    ("--strategy nonsense", "nonsense"),
    ("--strategy deepspeed", "DeepSpeed"),
    ("--num_nodes 2", "--num_nodes"),
    ("--strategy single_xla", "device"),
    ("--max_time '{second: 10}'", "second"),
    ("--sync_batchnorm true", "sync_batchnorm"),
    ("--barebones true", "barebones"),
    ("--plugins pytorch_lightning.plugins.io.AsyncCheckpointIO", "CheckpointIO"),
    ("--profiler xla", "torch_xla"),
    (monitoring("EarlyStopping", "val_loss"), "val_loss"),
    (monitoring("ModelCheckpoint", "val_loss"), "val_loss"),
    ("--callbacks+=EarlyStopping", "monitor"),
    ("--callbacks+=BackboneFinetuning", "backbone"),
    ("--callbacks+=LearningRateMonitor --logger false", "logger"),
    ("--callbacks+=Timer --callbacks.duration nonsense", "duration"),
    ("--callbacks+=ProgressBar", "base class"),
    ("fit.py --max_epochs 0", "at least 1"),
    ("fit.py --devices 2", "--devices"),
    ("fit.py --val_check_interval 2", "val_check_interval"),
    ("fit.py --limit_val_batches 0.5", "limit_val_batches"),
    ("fit.py --gradient_clip_val 0.5", "gradient_clip_val"),
    ("fit.py --accumulate_grad_batches 2", "accumulate_grad_batches"),
    ("fit.py --callbacks+=LearningRateFinder", "lr"),
    ("fit.py --callbacks+=BatchSizeFinder", "batch_size"),
    ("cifar.py --max_epochs -2", "max_epochs"),
    (
        "cifar.py --recipe fast --callbacks+=GradientAccumulationScheduler --callbacks.scheduling '{0: 1, 1: 2}'",
        "accumulate_grad_batches",
    ),
    ("cifar.py --limit_train_batches 0.0001", "limit_train_batches"),
    ("cifar.py --val_check_interval 100", "val_check_interval"),
    ("cifar.py " + monitoring("EarlyStopping", "probe/acc"), "probe/acc"),
    ("cifar.py --limit_val_batches 0 " + monitoring("EarlyStopping", "val/acc"), "val/acc"),
    ("cifar.py --recipe fast " + monitoring("EarlyStopping", "val/acc"), "val/acc"),
    ("cifar.py --val_check_interval 2 " + monitoring("ModelCheckpoint", "train/acc"), "train/acc"),
    ("cifar.py " + monitoring("EarlyStopping", "lr") + " --callbacks.check_on_train_epoch_end false", "lr_step"),
    (
        "cifar.py --check_val_every_n_epoch 2 --callbacks+=EarlyStopping --callbacks.monitor val/acc "
        "--callbacks.check_on_train_epoch_end true",
        "train/acc",
    ),
    ("cifar.py --num_seeds 2 --callbacks+=BackboneFinetuning", "backbone"),
]
QUICK = {"--strategy ddp_spawn", monitoring("EarlyStopping", "val_loss"), "--callbacks+=BackboneFinetuning"}
RUNS = [
    "--strategy ddp",
    "--logger false",
    "--logger CSVLogger --logger.save_dir logs",
    "--max_time 00:00:01:00",
    "--enable_checkpointing false",
    "--num_sanity_val_steps 2",
    "--detect_anomaly true --deterministic true --inference_mode false",
    "--profiler simple",
    monitoring("EarlyStopping", "val/loss"),
    monitoring("ModelCheckpoint", "val/loss"),
    "--callbacks+=LearningRateMonitor --callbacks.log_momentum true --callbacks.log_weight_decay true",
    "--callbacks+=EMAWeightAveraging",
    "--callbacks+=SpikeDetection",
    "--callbacks+=TQDMProgressBar",
    "cifar.py --precision bf16-mixed --gradient_clip_val 0.5",
    "cifar.py --accumulate_grad_batches 2 --overfit_batches 2",
    "cifar.py --callbacks+=LearningRateFinder --callbacks.num_training_steps 5",
    "cifar.py --callbacks+=BatchSizeFinder --callbacks.max_trials 2",
    "cifar.py --callbacks+=GradientAccumulationScheduler --callbacks.scheduling '{1: 2}'",
]


def cases(lines: Sequence[tuple[str, ...]], quick: Sequence[str] = ()) -> list[pytest.param]:
    """(script, flags, ...) of each; all but the quick ones are slow together."""
    params = []
    for flags, *rest in lines:
        named = re.match(r"(\w+\.py) (.*)", flags)
        for script in [named[1]] if named else ["fit.py", "cifar.py"]:
            given = named[2] if named else flags
            marks = [] if given in quick else [pytest.mark.slow]
            params.append(pytest.param(script, given, *rest, marks=marks, id=f"{script} {given}"))
    return params


@pytest.mark.parametrize(("script", "flags", "word"), cases(REFUSED, list(QUICK)))
def test_one_line_before_training(script: str, flags: str, word: str, tmp_path: Path) -> None:
    done = run(script, tmp_path, flags)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: .*\n", done.stderr) and word in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("script", "flags"), cases([(flags,) for flags in RUNS]))
def test_a_whole_run(script: str, flags: str, tmp_path: Path) -> None:
    done = run(script, tmp_path, flags)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    if script == "fit.py":
        assert [result["epochs"] for result in summary["results"]] == [20] and not summary["not_measured"]
    else:
        assert len(summary["epochs"]) == 2 and summary["test_acc"] is not None


def test_a_fit_that_is_stopped_early_says_what_was_not_measured(tmp_path: Path) -> None:
    stop = monitoring("EarlyStopping", "val/loss") + " --callbacks.patience 3 --callbacks.min_delta 1e9"
    done = run("fit.py", tmp_path, f"--epochs 2 5000 --lr 0.1 {stop}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (end,) = {result["epochs"] for result in summary["results"]} - {2}
    assert end < 5000 and summary["not_measured"] == [5000]
    assert f"Measured last at {end} epochs; not measured: 5,000 epochs" in done.stdout
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_refused_flag_leaves_a_finished_run_as_it_was(tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        found = (path for path in (tmp_path / "run").rglob("*") if path.is_file() and "events" not in path.name)
        return {path.name: path.read_bytes() for path in found}

    assert run("fit.py", tmp_path, "").returncode == 0
    before = files()
    done = run("fit.py", tmp_path, "--ckpt_path last --epochs 40 --callbacks+=BackboneFinetuning")
    assert done.returncode == 2 and "backbone" in done.stderr
    assert files() == before and "summary.json" in before


def test_a_refused_flag_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run("fit.py", tmp_path, "--callbacks+=BackboneFinetuning").returncode == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "callback", ["StochasticWeightAveraging --callbacks.swa_lrs 0.1 --callbacks.swa_epoch_start 2", "Timer"]
)
def test_config_repeats_a_run_with_a_callback(callback: str, tmp_path: Path) -> None:
    """A device and an enumeration, which YAML does not know, are among the callbacks' arguments."""
    assert run("fit.py", tmp_path, f"--callbacks+={callback}").returncode == 0
    again = launch.run(
        [str(ROOT / "scripts" / "fit.py"), "--config", "run/config.yaml", "--run_dir", "again"], tmp_path, os.environ
    )
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / name / "summary.json").read_text())["results"] for name in ("run", "again"))
    assert first == second


def test_a_fit_with_averaged_weights_is_resumed_from_those_that_it_trains(tmp_path: Path) -> None:
    average = "--callbacks+=EMAWeightAveraging --callbacks.decay 0.5"
    assert run("fit.py", tmp_path, average, "whole").returncode == 0
    assert run("fit.py", tmp_path, f"{average} --epochs 10").returncode == 0
    assert run("fit.py", tmp_path, f"{average} --ckpt_path last").returncode == 0
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["net.theta"]
        for name in ("whole", "run")
    )
    assert torch.equal(whole, resumed)


class Own(Callback):
    """A user's, which may log what it likes."""


def test_a_users_own_callback_may_log_what_another_monitors() -> None:
    stop = pytorch_lightning.callbacks.EarlyStopping("own/metric")
    flags = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    check_callbacks(Trainer(callbacks=[stop, Own()], **flags), ["train/loss"])
    with pytest.raises(MisconfigurationException, match="own/metric.*train/loss"):
        check_callbacks(Trainer(callbacks=[stop], **flags), ["train/loss"])


def test_an_error_that_is_no_flags_keeps_its_traceback(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(KeyError), flag_errors(trainer, None, tmp_path):
        raise KeyError("a bug")
    with pytest.raises(MisconfigurationException, match="finetuning"), flag_errors(trainer, None, tmp_path):
        pytorch_lightning.callbacks.BaseFinetuning().freeze_before_training(LightningModule())
