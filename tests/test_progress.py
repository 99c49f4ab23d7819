"""What a person sees on a terminal while a script runs."""

import os
import re
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
SHORT = "--data synthetic --max_epochs 2 --limit_train_batches 4 --limit_val_batches 1 --limit_test_batches 0"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")


def screen(folder: Path, script: str, *args: str) -> list[str]:
    """Runs the script on a terminal 120 columns wide; every line that it drew, overdrawn ones too."""
    import fcntl
    import pty
    import struct
    import termios

    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.chdir(folder)
        command = [sys.executable, str(SCRIPTS / script), *args]
        os.execve(sys.executable, command, os.environ | {"NO_COLOR": "1"})
    drawn = b""
    try:
        while block := os.read(terminal, 65536):
            drawn += block
    except OSError:  # how Linux says that the program has closed its terminal
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not re.search(rb"\x1b\[[\d;]*m", drawn), "NO_COLOR was asked for"
    return drawn.decode().replace("\r", "\n").splitlines()


def test_training_shows_a_bar_with_the_loss_and_a_line_an_epoch(tmp_path: Path) -> None:
    lines = screen(tmp_path, "cifar.py", *SHORT.split(), "--batch_size", "32")
    assert any(line.startswith("Epoch 1:") and "train/loss_step=" in line for line in lines)
    rows = [line.split() for line in lines if line.split()[1:2] == ["0.1"]]
    assert [(row[0], len(row)) for row in rows] == [("0", 7), ("1", 7)]  # not run together with a bar
