"""What makes ResNet-20 faster on this machine: bfloat16 where it is native, ``torch.compile`` where it gains."""

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


def device_of(accelerator: str | None) -> str:
    """The kind of device that ``--accelerator`` names, "auto" like Lightning: cpu, cuda or mps."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return next((kind for kind, is_there in kinds.items() if is_there and accelerator != "cpu"), "cpu")


def has_native_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware.

    Measured on two cores with AVX512-BF16, a whole step in bf16-mixed is 1.6 times as fast as in float32 at 32 pixels.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and cpu_has_bfloat16()


def should_compile(cfg: Namespace, num_images: int) -> bool:
    """What ``--compile`` says, or for "auto" whether the run is long enough and the machine gains by it.

    Measured on two cores with AVX2: 9 % faster to 1 % slower at 32 pixels, 3 to 18 % faster at 20, the more the busier
    the memory; with AVX-512 6 to 12 % slower, in bfloat16 20 %. A GPU waits for Python between the small kernels of
    this network; compilation joins them (not measured). Each size of the images is compiled for itself, in 25 to 50 s
    the first time on two CPU cores, in 5 s later.

    Raises:
        UsageError: nothing that compiles is installed.
    """
    has_compiler = shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()
    if cfg.compile is True and sys.platform == "linux" and not has_compiler:
        raise UsageError("--compile true needs g++ and Python's headers: install them, or leave out --compile")
    if cfg.compile != "auto":
        return bool(cfg.compile)
    if device_of(cfg.accelerator) == "cuda":
        gains = importlib.util.find_spec("triton") is not None
    else:
        gains = torch.backends.cpu.get_cpu_capability() == "AVX2"
    batches = math.ceil(num_images / cfg.batch_size)
    if isinstance(cfg.limit_train_batches, int):
        batches = min(batches, cfg.limit_train_batches)
    steps = min(limit for limit in (cfg.max_steps, (cfg.max_epochs or -1) * batches, math.inf) if limit > 0)
    return gains and has_compiler and sys.platform == "linux" and steps / max(1, len(cfg.image_sizes or ())) >= 3_000
