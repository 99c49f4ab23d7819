"""A run that is killed again and again, at any moment, ends as the run that was left alone; KILLS says how often."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KILLS", "2"))
EPOCHS = 4 + KILLS
CHECKPOINTS = 11 * EPOCHS  # of a run, or about as many
CIFAR = (
    *("scripts/cifar.py", "--data", "synthetic", "--accelerator", "cpu", "--max_epochs", str(EPOCHS)),
    *("--milestones", "{2: 0.05}", "--batch_size", "16", "--limit_train_batches", "12", "--limit_val_batches", "20"),
    *("--limit_test_batches", "0", "--save_every_n_steps", "1"),
)
FIT = (
    *("scripts/fit.py", "--lr", "0.01", "0.1", "--num_seeds", "4", "--save_every_n_steps", "350", "--epochs", "300"),
    str(9_000 * KILLS),
)
pytestmark = pytest.mark.slow
RUNS = {
    "cifar": CIFAR,
    "cifar with momentum": (*CIFAR, "--recipe", "fast", "--val_size", "100", "--probe_train", "true"),
    "cifar in two processes": (*CIFAR, "--devices", "2", "--strategy", "ddp"),
    "fit": FIT,
    "fit of given points": (*FIT, "--csv", "points.csv"),
}


def start(folder: Path, *args: str) -> subprocess.Popen:
    script, *flags = args
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *flags, "--run_dir", "run"],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that a kill reaches all processes of a run
    )


def checkpoint(folder: Path) -> Path:
    return folder / "run" / "checkpoints" / "last.ckpt"


def age(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_at_some_moment(process: subprocess.Popen, folder: Path, dice: random.Random) -> bool:
    """Waits for some more checkpoints and up to a tenth of a second; False if the run ended before that."""
    for _ in range(dice.randint(1, CHECKPOINTS // (KILLS + 1))):
        before = age(checkpoint(folder))
        while age(checkpoint(folder)) == before:
            if process.poll() is not None:
                return False
            time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.1))
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return True


def content(run_dir: Path) -> dict:
    """What does not depend on the clock: weights, optimizer, loops' counts, records, logged values."""
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    for state in saved["callbacks"].values():
        for name in ("seconds_of_this_epoch", "total_seconds", "train_seconds"):
            state.pop(name, None)
        for row in state.get("epochs", []):
            row.pop("seconds"), row.pop("images_per_second")
    kept = {name: saved[name] for name in ("state_dict", "optimizer_states", "callbacks", "global_step", "epoch")}
    return {**kept, "metrics.csv": (run_dir / "metrics.csv").read_text()}


def assert_equal(mine: object, theirs: object, where: str = "") -> None:
    if isinstance(theirs, dict):
        assert isinstance(mine, dict) and mine.keys() == theirs.keys(), where
        for key in theirs:
            assert_equal(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert isinstance(mine, list | tuple) and len(mine) == len(theirs), where
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    elif isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True, msg=where)
    else:
        assert mine == theirs or (mine != mine and theirs != theirs), where


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_moment_and_resumed_it_is_the_same_run(name: str, tmp_path: Path) -> None:
    args = RUNS[name]
    left_alone, killed = tmp_path / "left alone", tmp_path / "killed, ängstlich"
    for folder in (left_alone, killed):
        folder.mkdir()
        (folder / "points.csv").write_text("".join(f"{i},{i % 7}\n" for i in range(250)))
    reference = start(left_alone, *args)
    output = reference.communicate()[0]
    assert reference.returncode == 0, output
    dice, kills = random.Random(name), 0
    while True:
        process = start(killed, *args, *(("--ckpt_path", "last") if checkpoint(killed).exists() else ()))
        if kills == KILLS or not kill_at_some_moment(process, killed, dice):
            break
        kills += 1
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert kills == KILLS, "the run ended before it was killed often enough"
    assert_equal(content(killed / "run"), content(left_alone / "run"))
    assert not list(killed.rglob("*.tmp"))
