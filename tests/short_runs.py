"""A short run of cifar.py: its flags, and what several test files ask of such a run."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

# Three epochs of six batches; the learning rate drops before the last one.
CIFAR = (
    *"cifar.py --data synthetic --accelerator cpu --batch_size 4 --max_epochs 3 --limit_train_batches 6".split(),
    *("--limit_val_batches", "2", "--limit_test_batches", "0", "--milestones", "{2: 0.01}"),
)
SLOW = partial(pytest.param, marks=pytest.mark.slow)
TIMED = ("seconds", "images_per_second")


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text(), parse_constant=pytest.fail)  # NaN is no standard JSON


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same_run(run_dir: Path, expected: Path) -> None:
    """The weights and all that was measured, bit for bit."""
    mine, theirs = (checkpoint(path)["state_dict"] for path in (run_dir, expected))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert (run_dir / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
    assert untimed(run_dir) == untimed(expected)


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in TIMED} for row in summary(run_dir)["epochs"]]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def callback(folder: Path, hook: str, code: str, module: str = "mine") -> str:
    """The flag for a callback that runs ``code`` in ``hook``; its other arguments are in ``args``."""
    (folder / f"{module}.py").write_text(
        "import errno, os, signal\nfrom pathlib import Path\nfrom pytorch_lightning import Callback\n\n"
        f"class Mine(Callback):\n    def {hook}(self, trainer, pl_module, *args, **kwargs):\n        {code}\n"
    )
    return f"--callbacks+={module}.Mine"
