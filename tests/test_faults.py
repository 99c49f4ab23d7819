"""What goes wrong around a run: signals, a full disk, hostile files, a non-finite loss."""

import errno
import os
import pickle
import shlex
import signal
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import assert_refused, command, run_anew, succeed
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from short_runs import CIFAR, SLOW, assert_same_run, callback, checkpoint, files, summary

from callbacks.saving import AtomicCheckpointIO
from cli.command import is_users

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither these signals nor these limits")
FIT = ("fit.py", "--epochs", "50", "--run_dir", "run")
LAST = ("--run_dir", "run", "--ckpt_path", "last")
SCHEDULER = "GradientAccumulationScheduler --callbacks.scheduling '{1: 2}'"
AVERAGING = "StochasticWeightAveraging --callbacks.swa_lrs 0.05 --milestones {}"  # it has its own rate too
KILL = "signal.raise_signal(signal.{})"
AT_STEP_9 = "if trainer.global_step == 8: "  # the ninth is about to be trained, in the second epoch of three


# Signals


@pytest.mark.parametrize(
    ("signum", "hook", "after", "steps"),
    [("SIGINT", "on_train_batch_start", 8, 9), ("SIGTERM", "on_validation_start", 12, 12)],
)
def test_a_signal_saves(signum: str, hook: str, after: int, steps: int, whole: Path, tmp_path: Path) -> None:
    """Once the batch or the validation has ended; and the resumed run is the same."""
    kill = callback(tmp_path, hook, f"if trainer.global_step == {after}: {KILL.format(signum)}")
    done = command(tmp_path, *CIFAR, kill, "--run_dir", "my run")
    assert done.returncode == 128 + getattr(signal, signum), done.stderr
    python, script, *flags = shlex.split(done.stdout.rpartition("\nInterrupted. To resume: ")[2])
    assert python == "python" and flags[-4:] == ["--run_dir", "my run", "--ckpt_path", "last"]
    run = tmp_path / "my run"
    assert checkpoint(run)["global_step"] == steps and not (run / "summary.json").exists()
    callback(tmp_path, hook, "pass")
    done = succeed(tmp_path, Path(script).name, *flags)
    assert done.stdout.endswith("are in my run; TensorBoard: tensorboard --logdir 'my run'\n")
    assert_same_run(run, whole)


def test_ctrl_c_in_the_validation_after_an_early_end_leaves_at_once(tmp_path: Path) -> None:
    """And the resumed run makes up for that validation."""
    flags = (*CIFAR, "--max_epochs", "-1", "--max_steps", "3")
    code = f"Path(f'batch{{args[1]}}').touch(); {KILL.format('SIGINT')}"
    done = command(tmp_path, *flags, callback(tmp_path, "on_validation_batch_start", code), "--run_dir", "run")
    assert done.returncode == 130 and "Interrupted" in done.stdout, done.stderr
    assert (tmp_path / "batch0").exists() and not (tmp_path / "batch1").exists()
    succeed(tmp_path, *flags, *LAST)
    assert summary(tmp_path / "run")["epochs"][0]["val_acc"] is not None


def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    twice = callback(tmp_path, "on_train_batch_start", f"{AT_STEP_9}[{KILL.format('SIGTERM')} for _ in range(2)]")
    done = command(tmp_path, *CIFAR, twice, "--run_dir", "run")
    assert done.returncode == 143 and "Interrupted" not in done.stdout
    assert checkpoint(tmp_path / "run")["global_step"] == 6  # the end of the first epoch


def test_a_signal_where_nothing_is_saved(tmp_path: Path) -> None:
    for flags, hook, signum, code in (
        (CIFAR, "setup", "SIGINT", 130),
        (FIT, "setup", "SIGHUP", 129),
        ((*FIT, "--enable_checkpointing", "false"), "on_train_start", "SIGTERM", 143),
    ):
        done = command(tmp_path, *flags, callback(tmp_path, hook, KILL.format(signum)), "--run_dir", signum)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.rglob("*.ckpt")) + list(tmp_path.rglob("summary.json"))
    (tmp_path / "safetensors.py").write_text("import signal; signal.raise_signal(2)")  # while packages are imported
    done = command(tmp_path, *FIT)
    assert done.returncode == -signal.SIGINT and not done.stderr


def test_slurm_gets_the_job_back_and_starts_it_again(whole: Path, tmp_path: Path) -> None:
    scontrol = tmp_path / "tools" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/requeued"\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    flags = (*CIFAR, callback(tmp_path, "on_train_batch_start", AT_STEP_9 + KILL.format("SIGUSR1")))
    # without --run_dir the same command would not find its run
    assert command(tmp_path, *flags, **job).returncode == 128 + signal.SIGUSR1
    assert not (tmp_path / "requeued").exists()
    done = command(tmp_path, *flags, "--run_dir", "run", **job)
    assert done.returncode == 0 and (tmp_path / "requeued").read_text() == "requeue 4711\n", done.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    succeed(tmp_path, *flags, "--run_dir", "run", **job, SLURM_RESTART_COUNT="1")
    assert_same_run(tmp_path / "run", whole)
    scontrol.write_text("#!/bin/sh\nexit 1\n")
    for path in (f"{scontrol.parent}:{os.environ['PATH']}", os.environ["PATH"]):  # it fails; it is absent
        done = command(tmp_path, *flags, "--run_dir", f"no{len(path)}", **{**job, "PATH": path})
        assert_refused(done, "scontrol")
        assert checkpoint(tmp_path / f"no{len(path)}")["global_step"] == 9


@pytest.mark.parametrize(
    ("flags", "is_at_ends"),
    [
        (f"--callbacks+={SCHEDULER}", True),
        SLOW(f"--callbacks+={AVERAGING}", True),
        SLOW("--accumulate_grad_batches 4", False),
        SLOW("--val_check_interval 3", True),
        SLOW("--val_check_interval 9 --check_val_every_n_epoch null", True),
    ],
)
def test_a_run_is_cut_only_where_it_can_be_resumed(flags: str, is_at_ends: bool, tmp_path: Path) -> None:
    """Neither inside a step of several batches, nor before what Lightning repeats as an epoch starts."""
    settings = (*CIFAR, *shlex.split(f"--save_every_n_steps 1 {flags}"))
    output = succeed(tmp_path, *settings, "--run_dir", "whole").stdout
    assert output.count("Saved at epochs' ends only") == is_at_ends
    at = "if trainer.fit_loop.total_batch_idx + 1 == 8: "
    cut = callback(tmp_path, "on_train_batch_start", at + KILL.format("SIGTERM"))
    assert command(tmp_path, *settings, cut, "--run_dir", "run").returncode == 143
    succeed(tmp_path, *settings, *LAST)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_what_could_not_be_read_again_is_refused_before_training(tmp_path: Path) -> None:
    for value in (np.float64(1), lambda: 1, np.zeros(3), Fraction(1)):
        with pytest.raises(MisconfigurationException, match="no plain value"):
            AtomicCheckpointIO().save_checkpoint({"mine": value}, tmp_path / "a.ckpt")
    state = callback(tmp_path, "on_save_checkpoint", "args[0]['mine'] = Path('x')")
    assert_refused(command(tmp_path, *FIT, state), "error: ", "plain value")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


# Errors of the disk and of others


def test_an_error_of_the_disk_is_one_line_and_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    disk = callback(tmp_path, "on_train_batch_end", "raise OSError(errno.ENOSPC, 'No space left on device')")
    assert_refused(command(tmp_path, *FIT, disk), "error: ")
    bug = callback(tmp_path, "on_train_batch_end", "raise ValueError('a bug')")
    done = command(tmp_path, *FIT[:-1], "other", bug)
    assert done.returncode == 1 and "Traceback" in done.stderr and "a bug" in done.stderr.splitlines()[-1]
    assert is_users(PermissionError(errno.EACCES, "Permission denied", "a file")) and not is_users(OSError("a bug"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root makes a small disk")
def test_a_full_disk(tmp_path: Path) -> None:
    """A checkpoint is 1.2 MB: the one that replaces the first finds no room, and leaves it as it was."""
    disk = tmp_path / "run"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        assert_refused(command(tmp_path, *CIFAR, "--run_dir", "run"), "No space left")
        assert checkpoint(disk)["global_step"] == 6 and not list(disk.rglob("*.tmp"))
        assert not (disk / "summary.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_non_finite_loss_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    done = command(tmp_path, *CIFAR, "--milestones", "{1: 1e30}", "--save_every_n_steps", "1", "--run_dir", "run")
    assert_refused(done, "non-finite loss at step 7", "epoch 1", code=1)  # 6 steps, then the first with the rate
    assert not (tmp_path / "run" / "summary.json").exists()
    assert all(values.isfinite().all() for values in checkpoint(tmp_path / "run")["state_dict"].values())


@pytest.mark.slow
def test_a_terminal_that_lacks_the_letters(tmp_path: Path) -> None:
    flags = (*FIT[:-1], "試")
    assert "\\u8a66" in succeed(tmp_path, *flags, run=run_anew, PYTHONIOENCODING="ascii").stdout
    done = command(tmp_path, *flags, run=run_anew, PYTHONIOENCODING="ascii")
    assert_refused(done, "\\u8a66 holds a run already")


# Hostile files


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(whole: Path, tmp_path: Path) -> None:
    torch.save({**checkpoint(whole), "x": Bomb(tmp_path / "crater")}, tmp_path / "zip.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Bomb(tmp_path / "crater")))
    before = files(tmp_path)
    for name in ("zip.ckpt", "plain.ckpt"):
        done = command(tmp_path, *CIFAR, "--ckpt_path", name, "--run_dir", "new")
        assert_refused(done, f"{name} is no valid checkpoint")
    assert files(tmp_path) == before


def test_a_config_runs_no_code_that_the_command_line_does_not_name(tmp_path: Path) -> None:
    foreign = callback(tmp_path, "on_train_start", "pass")
    with open(tmp_path / "mine.py", "a") as file:
        file.write("\nPath('crater').touch()\n")
    own = (*FIT, "--config", "own.yaml")
    for content in (
        f"seed: !!python/object/apply:pathlib.Path.touch [!!python/name:x '{tmp_path / 'crater'}']",
        "callbacks: [{class_path: mine.Mine}]",
        "callbacks: [{class_path: LambdaCallback, init_args: {on_train_start: os.system}}]",
    ):
        (tmp_path / "own.yaml").write_text(content)
        assert_refused(command(tmp_path, *own), "error: ")
        assert not (tmp_path / "crater").exists() and not (tmp_path / "run").exists()
    (tmp_path / "own.yaml").write_text("callbacks: [{class_path: mine.Mine}]")
    succeed(tmp_path, *own, foreign)
    assert (tmp_path / "crater").exists()
