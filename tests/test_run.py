"""The folder of a run, and how a run is resumed: by whom, from what, with which settings."""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from jsonargparse import Namespace
from launch import assert_refused, command, succeed
from short_runs import CIFAR, SLOW, assert_same_run, callback, checkpoint, files, summary

from cli.run import run_folder

LAST = ("--run_dir", "run", "--ckpt_path", "last")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole run, in ``run`` in a folder of its own."""
    return shutil.copytree(whole, tmp_path / "run")


# The folder


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITLAB_RUN_DIR", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    unnamed = Namespace(run_dir=None, ckpt_path=None)
    folders = [run_folder(unnamed, str(tmp_path)) for _ in range(3)]
    assert len(set(folders)) == 3 and all(folder.is_dir() for folder in folders)
    monkeypatch.setenv("LOCAL_RANK", "1")  # a process that Lightning has started for another device
    assert run_folder(unnamed, str(tmp_path)) == folders[-1]


@pytest.mark.parametrize("ending", ["os._exit(9)", SLOW("signal.raise_signal(15)")])
def test_a_rewound_run_forgets_what_came_after(ending: str, copy: Path, whole: Path, tmp_path: Path) -> None:
    rewind = (*CIFAR, "--run_dir", "run", "--ckpt_path", "run/checkpoints/end_of_epoch1.ckpt", "--max_epochs", "4")
    other = shutil.copytree(whole, tmp_path / "other" / "run").parent
    succeed(other, *rewind)
    stop = callback(tmp_path, "on_train_batch_start", f"if trainer.global_step == 13: {ending}")
    assert command(tmp_path, *rewind, stop).returncode in (9, 143)
    assert {path.stem for path in copy.glob("checkpoints/*.abandoned")} == {"end_of_epoch2", "last"}
    assert not (copy / "summary.json").exists()  # a resumed run has no results until it ends
    succeed(tmp_path, *CIFAR, "--max_epochs", "4", *LAST)
    assert_same_run(copy, other / "run")


@pytest.mark.parametrize("env", [{"TORCHELASTIC_RUN_ID": "none"}, {"SLURM_NTASKS": "2"}])
def test_processes_that_are_started_one_by_one_need_a_run_dir(env: dict[str, str], tmp_path: Path) -> None:
    assert_refused(command(tmp_path, "fit.py", "--epochs", "5", **env), "--run_dir")


def test_a_refused_run_leaves_no_folder_and_an_older_run_as_it_was(copy: Path) -> None:
    before, folder = files(copy.parent), copy.parent
    with FileLock(copy / ".lock"):
        assert_refused(command(folder, *CIFAR, *LAST), "run is in use")
    for flags, word in (
        (("--run_dir", "run"), "run holds a run already: choose another --run_dir, or resume it: python"),
        (("--run_dir", "run", "--num_seeds", "2"), "run holds a run already: resume"),
        ((*LAST, "--batch_size", "32"), "--batch_size 4, not 32"),
        ((*LAST, "--recipe", "paper", "--max_steps", "99"), "--recipe lab, not paper"),
        ((*LAST, "--milestones", "{1: 0.01}"), "--milestones"),
        ((*LAST, "--max_epochs", "4", "--callbacks+=BackboneFinetuning"), "backbone"),
        ((*LAST, "--max_epochs", "4", "--callbacks+=BatchSizeFinder", "--callbacks.max_trials", "1"), "at step 0"),
        (("--run_dir", "new/branch", "--ckpt_path", "run/checkpoints/last.ckpt", "--lr", "0.2"), "--lr 0.1, not 0.2"),
        (("--ckpt_path", "run/config.yaml"), "config.yaml is no valid checkpoint"),
    ):
        assert_refused(command(folder, *CIFAR, *flags), word)
    for dirpath in ("run/checkpoints", str(copy / "checkpoints"), "run/../run/checkpoints/"):
        own = ("--callbacks+=ModelCheckpoint", "--callbacks.dirpath", dirpath)
        assert_refused(command(folder, *CIFAR, *own, *LAST), "dirpath")  # a user's checkpoints among the run's own
    (copy / "config.yaml").write_text("a: [")
    assert_refused(command(folder, *CIFAR, *LAST), 'in "run/config.yaml", line 1')
    (copy / "config.yaml").write_bytes(before[copy / "config.yaml"])
    assert not (folder / "new").exists() and not (folder / "runs" / "cifar").exists()
    assert files(folder).items() >= before.items()  # and perhaps a new event file


# Resuming; what is killed at any moment is resumed in test_kill.py


def test_a_longer_run_is_the_run_that_was_left_alone(whole: Path, tmp_path: Path) -> None:
    """First by epochs, then by steps, which Lightning counts otherwise where an epoch ends."""
    succeed(tmp_path, *CIFAR, "--max_epochs", "1", "--run_dir", "run")
    succeed(tmp_path, *CIFAR, "--max_epochs", "-1", "--max_steps", "12", *LAST)
    succeed(tmp_path, *CIFAR, "--max_epochs", "-1", "--max_steps", "18", "--data_root", "moved", *LAST)
    assert_same_run(tmp_path / "run", whole)


def test_a_run_that_grows_depends_on_its_length(tmp_path: Path) -> None:
    grows = (*CIFAR, "--max_epochs", "1", "--grow_at", "0.5", "--run_dir", "run")
    succeed(tmp_path, *grows)
    assert_refused(command(tmp_path, *grows, "--max_epochs", "2", "--ckpt_path", "last"), "--max_epochs 1, not 2")


def test_a_damaged_checkpoint_is_skipped(copy: Path, whole: Path) -> None:
    last = copy / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # a bit somewhere in the weights
    last.write_bytes(content)
    (copy / "checkpoints" / "end_of_epoch2.ckpt").unlink()
    assert_refused(command(copy.parent, *CIFAR, "--run_dir", "run", "--ckpt_path", str(last)), "no valid checkpoint")
    done = succeed(copy.parent, *CIFAR, *LAST)
    assert "Skipped: run/checkpoints/last.ckpt is no valid checkpoint" in done.stderr
    assert_same_run(copy, whole)


def test_a_run_without_a_checkpoint_is_resumed_from_its_beginning(whole: Path, tmp_path: Path) -> None:
    """Here it began with another run's checkpoint; its config.yaml names it."""
    origin = whole / "checkpoints" / "end_of_epoch1.ckpt"
    config = (whole / "config.yaml").read_text().replace("ckpt_path: null", f"ckpt_path: {origin}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config)
    succeed(tmp_path, *CIFAR, *LAST)
    assert_same_run(tmp_path / "run", whole)
    assert (tmp_path / "run" / "config.yaml").read_text() == config


# What could be resumed from the wrong place


@pytest.mark.parametrize(
    "flags",
    [
        "save_last true --callbacks.save_weights_only true",
        *map(SLOW, ("every_n_train_steps 1", "save_on_exception true")),
    ],
)
def test_a_users_checkpoints_lie_elsewhere(flags: str, whole: Path, tmp_path: Path) -> None:
    own = ("--callbacks+=ModelCheckpoint", *f"--callbacks.{flags}".split())
    stop = callback(tmp_path, "on_train_batch_start", "if trainer.global_step == 8: signal.raise_signal(15)")
    assert command(tmp_path, *CIFAR, *own, stop, "--run_dir", "run").returncode == 143
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")] == ["last.ckpt"]
    assert list((tmp_path / "run").glob("lightning/checkpoints/*.ckpt"))
    renamed = (tmp_path / "run").rename(tmp_path / "renamed")  # a run may move
    succeed(tmp_path, *CIFAR, *own, "--run_dir", str(renamed), "--ckpt_path", "last")
    assert_same_run(renamed, whole)


@pytest.mark.parametrize(
    "stop",
    [
        "--callbacks+=EarlyStopping --callbacks.monitor val/loss --callbacks.min_delta 1e9 --callbacks.patience 1",
        SLOW("--callbacks+=EarlyStopping --callbacks.monitor train/loss --callbacks.stopping_threshold 1e9"),
        SLOW("own"),
    ],
)
def test_training_that_was_stopped_is_not_continued(stop: str, tmp_path: Path) -> None:
    """Killed in the test, and resumed by the same command; by one that asks for more it is."""
    code = "Path('tested').exists() or (Path('tested').touch(), os._exit(9))"
    if stop == "own":
        stop = callback(tmp_path, "on_train_epoch_end", "trainer.should_stop = True", "own")
    kill = callback(tmp_path, "on_test_start", code)
    flags = (*CIFAR, "--limit_test_batches", "2", kill, *stop.split(), "--run_dir", "run")
    assert command(tmp_path, *flags).returncode == 9
    steps = checkpoint(tmp_path / "run")["global_step"]
    assert steps < 18
    succeed(tmp_path, *flags, "--ckpt_path", "last")
    content = summary(tmp_path / "run")
    assert len(content["epochs"]) == steps / 6 and content["test_acc"] is not None
    succeed(tmp_path, *flags, "--max_epochs", "4", "--ckpt_path", "last")
    assert len(summary(tmp_path / "run")["epochs"]) == steps / 6 + 1


# metrics.csv that went through other hands


@pytest.mark.parametrize(
    ("edit", "is_data"),
    [
        (lambda text: text.encode("utf-8-sig"), True),
        (lambda text: text.replace(",", ";").encode(), False),
        SLOW(lambda text: text.encode("utf-16"), False),
        (lambda text: re.sub(r"(?<=,)(\d+)(?=\.\d*,|,)", r"\1,0", text).encode(), False),
        SLOW(lambda text: b"\x00\xff" * 40, False),
    ],
)
def test_a_foreign_metrics_csv_is_data_or_refused(edit: Any, is_data: bool, copy: Path) -> None:
    (copy / "metrics.csv").write_bytes(edit((copy / "metrics.csv").read_bytes().decode()))
    before = files(copy)
    done = command(copy.parent, *CIFAR, "--max_epochs", "4", *LAST)
    if not is_data:
        branch = ("--run_dir", "branch", "--ckpt_path", "run/checkpoints/end_of_epoch1.ckpt")
        for refused in (done, command(copy.parent, *CIFAR, *branch)):
            assert_refused(refused, "run/metrics.csv is not as the run wrote it")
        assert files(copy) == before and not (copy.parent / "branch").exists()
    else:
        rows = list(csv.DictReader((copy / "metrics.csv").open(newline="")))
        assert "epoch" in rows[0] and [row["epoch"] for row in rows][-1] == "3"
