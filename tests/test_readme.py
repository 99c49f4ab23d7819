"""Every command of the README, run as it stands there but shortened."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    re.split(r"\s+# ", line)[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]
RUNS = [c.replace(".venv/bin/python", "python") for c in COMMANDS if "scripts/" in c]
SHORT = {
    "fit.py": "--max_epochs 20",
    "cifar.py": "--max_epochs 1 --limit_train_batches 2 --limit_val_batches 1 --limit_test_batches 1",
}


def test_the_readme_has_its_commands() -> None:
    assert len(RUNS) > 8
    assert "make demo" in COMMANDS and "make test" in COMMANDS
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert {c.split()[1] for c in COMMANDS if c.startswith("make")} <= set(targets)


@pytest.mark.parametrize("line", list(dict.fromkeys(RUNS)))
def test_command(line: str, tmp_path: Path, cifar10_root: Path) -> None:
    _, script, *flags = shlex.split(line)
    if "--data_root" in flags:
        flags[flags.index("--data_root") + 1] = str(cifar10_root)
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *flags, *SHORT[Path(script).name].split()],
        cwd=tmp_path,
        env=os.environ | {"CIFAR10_ROOT": str(cifar10_root)},
        capture_output=True,
        text=True,
    )
    if "gpu" in flags and not torch.cuda.is_available():
        assert done.returncode == 2 and "no GPU" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    (summary,) = (tmp_path / "runs").glob("*/*/summary.json")
    assert summary.parent.joinpath("config.yaml").is_file()


def test_pictures_are_there() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
