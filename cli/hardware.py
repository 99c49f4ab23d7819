"""What makes ResNet-20 faster on this machine: ``torch.compile`` where it works, bfloat16 where it is native."""

import importlib.util
import math
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from jsonargparse import Namespace

from cli.command import UsageError
from lit_models.onednn import cpu_has_bfloat16


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware.

    Measured on two cores with AVX512-BF16, a whole step in bf16-mixed is 1.6 times as fast as in float32 at 32 pixels.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_bfloat16()


def gains_by_compilation(device: torch.device) -> bool:
    """Whether a compiled step is faster here, and what compiles it is installed.

    Measured on two cores with AVX2: 9 % faster to 1 % slower at 32 pixels, 3 to 18 % faster at 20, the more the busier
    the memory; with AVX-512 6 to 12 % slower, in bfloat16 20 %. A GPU waits for Python between the small kernels of
    this network; compilation joins them (not measured).
    """
    if device.type == "cuda":
        gains = importlib.util.find_spec("triton") is not None
    else:
        gains = torch.backends.cpu.get_cpu_capability() == "AVX2"
    return gains and sys.platform == "linux" and has_compiler()


def compiles(cfg: Namespace, num_images: int) -> bool:
    """What ``--compile`` says, or for "auto" whether the run is long enough and the machine gains by it.

    Each size of the images is compiled for itself, in 25 to 50 s the first time on two CPU cores, in 5 s later.

    Raises:
        UsageError: nothing that compiles is installed.
    """
    if cfg.compile is True and sys.platform == "linux" and not has_compiler():
        raise UsageError("--compile true needs g++ and Python's headers: install them, or leave out --compile")
    if cfg.compile != "auto":
        return bool(cfg.compile)
    batches, limit = math.ceil(num_images / cfg.batch_size), cfg.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
    steps = math.inf if cfg.max_epochs in (None, -1) else cfg.max_epochs * batches
    steps = min(steps, cfg.max_steps) if cfg.max_steps > 0 else steps
    repays = steps / max(1, len(cfg.image_sizes or {})) >= 3_000 and gains_by_compilation(device_of(cfg.accelerator))
    if repays:
        torch._dynamo.config.suppress_errors = True  # a compiler that fails after all costs speed, not the run
    return repays


def device_of(accelerator: str | None) -> torch.device:
    """The kind of device that ``--accelerator`` names, "auto" like Lightning."""
    if accelerator == "cpu":
        return torch.device("cpu")
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return torch.device(next((kind for kind, there in kinds.items() if there), "cpu"))


def has_compiler() -> bool:
    """Whether torch.compile finds g++ and Python's headers."""
    return shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()
