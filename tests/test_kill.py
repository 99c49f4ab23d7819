"""A run that is killed again and again, at any moment, ends as the run that was left alone; KILLS says how often."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import short_runs
import torch
from launch import ROOT
from PIL import Image
from torch.utils._pytree import tree_map_only

KILLS = int(os.environ.get("KILLS", "2"))
EPOCHS = 4 + KILLS
CHECKPOINTS = 11 * EPOCHS  # of a run, or about as many
CIFAR = (*short_runs.CIFAR, "--max_epochs", str(EPOCHS), "--batch_size", "4", "--save_every_n_steps", "1")
CIFAR += ("--limit_train_batches", "12", "--limit_val_batches", "8")
FIT = (*"fit.py --lr 0.01 0.1 --num_seeds 4 --save_every_n_steps 200 --epochs 300".split(), str(5_000 * KILLS))
pytestmark = pytest.mark.slow
RUNS = {
    "cifar": CIFAR,
    "cifar with momentum": (*CIFAR, "--recipe", "fast", "--val_size", "100", "--probe_train", "true"),
    "own pictures": (*CIFAR, "--data", "folder", "--data_root", "own", "--pretrained", "true"),
    "cifar in two processes": (*CIFAR, "--devices", "2", "--strategy", "ddp", "--grow_at", "0.5"),
    "fit": FIT,
    "fit of given points": (*FIT, "--csv", "points.csv", "--precision", "64-true"),
}


def start(folder: Path, script: str, *flags: str) -> subprocess.Popen:
    """In a session of its own, so that a kill reaches all processes of a run."""
    args = [sys.executable, str(ROOT / "scripts" / script), *flags, "--run_dir", "run"]
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(args, cwd=folder, env=env, start_new_session=True, **how)


def age(folder: Path) -> int:
    """When the last checkpoint was saved; 0 if there is none."""
    path = folder / "run" / "checkpoints" / "last.ckpt"
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_at_some_moment(process: subprocess.Popen, folder: Path, dice: random.Random) -> bool:
    """Waits for some more checkpoints and up to a tenth of a second; False if the run ended before that."""
    for _ in range(dice.randint(1, CHECKPOINTS // (KILLS + 1))):
        before = age(folder)
        while age(folder) == before:
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
    """What depends on neither clock nor folder: weights, optimizer, loops' counts, records, logged values."""
    saved = short_runs.checkpoint(run_dir)
    for state in saved["callbacks"].values():
        for name in ("seconds_of_this_epoch", "total_seconds", "train_seconds"):
            state.pop(name, None)
        for row in state.get("epochs", []):
            row.pop("seconds"), row.pop("images_per_second")
    kept = {name: saved[name] for name in ("state_dict", "optimizer_states", "callbacks", "global_step", "epoch")}
    plain = tree_map_only(torch.Tensor, lambda tensor: (str(tensor.dtype), tensor.numpy()), kept)
    return {**plain, "metrics.csv": (run_dir / "metrics.csv").read_text()}


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_moment_and_resumed_it_is_the_same_run(name: str, tmp_path: Path) -> None:
    args = RUNS[name]
    left_alone, killed = tmp_path / "left alone", tmp_path / "killed, ängstlich"
    for folder in (left_alone, killed):
        folder.mkdir()
        (folder / "points.csv").write_text("".join(f"{i},{i % 7}\n" for i in range(250)))
        for i, pixels in enumerate(np.random.default_rng(0).integers(256, size=(224, 8, 8, 3), dtype=np.uint8)):
            place = folder / "own" / ("train" if i < 192 else "test") / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{i}.png")
    reference = start(left_alone, *args)
    output = reference.communicate()[0]
    assert reference.returncode == 0, output
    dice, kills = random.Random(name), 0
    while True:
        process = start(killed, *args, *(("--ckpt_path", "last") if age(killed) else ()))
        if kills == KILLS or not kill_at_some_moment(process, killed, dice):
            break
        kills += 1
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert kills == KILLS, "the run ended before it was killed often enough"
    np.testing.assert_equal(content(killed / "run"), content(left_alone / "run"))  # nan is equal to nan
    assert not list(killed.rglob("*.tmp"))
