"""What a person sees on a terminal while a script runs."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from launch import ROOT

SHORT = "--data synthetic --max_epochs 2 --limit_train_batches 4 --limit_val_batches 1 --limit_test_batches 0"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_bar_with_the_loss_and_a_line_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    drawn = list[bytes]()  # overdrawn lines too

    def read(terminal: int) -> bytes:
        drawn.append(os.read(terminal, 65536))
        return drawn[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    command = shlex.join([sys.executable, str(ROOT / "scripts" / "cifar.py"), *SHORT.split(), "--batch_size", "32"])
    assert pty.spawn(["sh", "-c", f"stty rows 40 cols 120; {command}"], read) == 0
    text = b"".join(drawn).decode()
    assert not re.search(r"\x1b\[[\d;]*m", text), "NO_COLOR was asked for"
    lines = text.replace("\r", "\n").splitlines()
    assert any(line.startswith("Epoch 1:") and "train/loss_step=" in line for line in lines)
    rows = [line.split() for line in lines if line.split()[1:2] == ["0.1"]]
    assert [(row[0], len(row)) for row in rows] == [("0", 7), ("1", 7)]  # not run together with a bar
