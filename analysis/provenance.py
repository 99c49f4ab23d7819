"""Where results come from: the command, the versions, the machine."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("pytorch-lightning", "torch", "torchvision", "torchmetrics", "tensorboard")


def command_line() -> str:
    """The command of this process, to be typed again."""
    script, here = Path(sys.argv[0]), Path.cwd()
    name = script.relative_to(here) if script.is_relative_to(here) else script
    return shlex.join(["python", str(name), *sys.argv[1:]])


def quoted(path: Path) -> str:
    """A path as it is typed into a terminal."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def about() -> list[str]:
    """The versions and the machine of this process, a line each."""
    return [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in PACKAGES),
        f"{platform.system()} {platform.machine()}",
        f"{os.cpu_count()} CPU cores",
        f"PyTorch threads: {torch.get_num_threads()}, {torch.backends.cpu.get_cpu_capability()}",
    ]
