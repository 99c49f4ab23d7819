"""Flags of Lightning's Trainer reach it, or end the command with one line and exit code 2 before training."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from launch import Done, assert_refused, command, succeed
from short_runs import summary

from cli.parser import Namespace, build

OWN = {
    "fit.py": "--epochs 20 --num_samples 30",
    "cifar.py": "--data synthetic --batch_size 16 --max_epochs 2 --accelerator cpu --compile false "
    "--limit_train_batches 3 --limit_val_batches 1 --limit_test_batches 1",
}
STOP = "--callbacks+=EarlyStopping --callbacks.monitor"


def run(line: str, folder: Path, launch: Callable[..., Done] = succeed) -> Done:
    """A tiny run of the script with these flags beside its own."""
    script, *flags = shlex.split(line)
    return launch(folder, script, *OWN[script].split(), "--run_dir", "run", *flags)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("fit.py --accelerator gpu", "gpu"),
        ("fit.py --strategy ddp_spawn", "ddp"),
        ("fit.py --devices 2", "--devices"),
        ("fit.py --precision bf16-mixed", "--precision"),
        ("fit.py --gradient_clip_val 0.5", "gradient_clip_val"),
        ("fit.py --val_check_interval 2", "val_check_interval"),
        ("fit.py --max_time '{second: 10}'", "second"),
        (f"fit.py {STOP} val_loss", "val_loss"),
        ("fit.py --plugins pytorch_lightning.plugins.io.AsyncCheckpointIO", "CheckpointIO"),
        ("cifar.py --val_check_interval 100", "val_check_interval"),
        ("cifar.py --num_seeds 2 --callbacks+=BackboneFinetuning", "backbone"),
    ],
)
def test_what_lightning_refuses_is_one_line(line: str, word: str, tmp_path: Path) -> None:
    assert_refused(run(line, tmp_path, command), "error: ", word)
    # What a callback monitors, Lightning looks for when an epoch has ended.
    assert not (tmp_path / "run" / ("summary.json" if "EarlyStopping --callbacks.monitor" in line else "")).exists()


@pytest.mark.parametrize(
    "line",
    [
        "fit.py --logger CSVLogger --logger.save_dir logs --profiler simple --callbacks+=EMAWeightAveraging",
        "fit.py --logger false --enable_checkpointing false --max_time 00:00:01:00 --detect_anomaly true",
        f"cifar.py --gradient_clip_val 0.5 --accumulate_grad_batches 3 --deterministic true {STOP} val/loss",
        "cifar.py --precision bf16-mixed --overfit_batches 2 --logger false --num_sanity_val_steps 2 "
        "--callbacks+=ModelCheckpoint --callbacks.monitor val/loss",
    ],
)
def test_a_whole_run(line: str, tmp_path: Path) -> None:
    run(line, tmp_path)
    content = summary(tmp_path / "run")
    if line.startswith("fit.py"):
        assert [result["epochs"] for result in content["results"]] == [20] and not content["not_measured"]
    else:
        assert len(content["epochs"]) == 2 and content["test_acc"] is not None
        assert content["train_batches"] == (2 if "overfit" in line else 3)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() == ("checkpointing false" not in line)
    assert (tmp_path / "run" / "metrics.csv").exists() == ("--logger false" not in line)
    assert any(tmp_path.glob("logs/*/*/metrics.csv")) == ("CSVLogger" in line)
    assert any(tmp_path.glob("run/lightning/checkpoints/epoch*.ckpt")) == ("ModelCheckpoint" in line)


@pytest.mark.parametrize("script", OWN)
def test_a_fast_development_run(script: str, tmp_path: Path) -> None:
    run(f"{script} --fast_dev_run true", tmp_path)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_fit_that_is_stopped_early_says_what_was_not_measured_and_is_not_continued(tmp_path: Path) -> None:
    stopped = f"fit.py --epochs 2 5000 {STOP} val/loss --callbacks.patience 3 --callbacks.min_delta 1e9"
    output, content = run(stopped, tmp_path).stdout, summary(tmp_path / "run")
    (end,) = {result["epochs"] for result in content["results"]} - {2}
    assert end < 5000 and content["not_measured"] == [5000]
    assert f"at {end} epochs, the most that were measured" in output
    run(f"{stopped} --ckpt_path last", tmp_path)
    assert summary(tmp_path / "run")["results"] == content["results"]


def test_config_repeats_a_run_with_a_callback(tmp_path: Path) -> None:
    """A device, which YAML does not know, is among the callback's arguments."""
    averaging = "StochasticWeightAveraging --callbacks.swa_lrs 0.1 --callbacks.swa_epoch_start 2"
    run(f"fit.py --lr 0.1 0.01 --x_min -2e0 --callbacks+={averaging}", tmp_path)
    succeed(tmp_path, "fit.py", "--config", "run/config.yaml", "--run_dir", "again")
    assert summary(tmp_path / "run")["results"] == summary(tmp_path / "again")["results"]
    assert (tmp_path / "again" / "metrics.csv").read_bytes() == (tmp_path / "run" / "metrics.csv").read_bytes()


def test_a_constructor_that_hides_its_arguments_is_refused() -> None:
    with pytest.raises(TypeError, match="must be written out"):
        build(lambda **kwargs: kwargs, Namespace(lr=0.1))
