"""What makes ResNet-20 faster on this machine: bfloat16 where it is native, ``torch.compile`` where it gains."""

import math
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from jsonargparse import Namespace

from lit_models.onednn import cpu_has_bfloat16


def device_of(accelerator: str | None) -> str:
    """The kind of device that ``--accelerator`` names, "auto" like Lightning: cpu, cuda or mps."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return next((kind for kind, is_there in kinds.items() if is_there and accelerator != "cpu"), "cpu")


def has_native_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and cpu_has_bfloat16()


def should_compile(cfg: Namespace, num_images: int) -> bool:
    """What ``--compile`` says, or for "auto" whether this is a CPU that gains, and the run long enough.

    Measured on two cores with AVX2: 9 % faster to 1 % slower at 32 pixels, 3 to 18 % faster at 20, the more the busier
    the memory; with AVX-512 6 to 12 % slower, in bfloat16 20 %. Each size of the images is compiled for itself, in 25
    to 50 s the first time on two CPU cores, in 5 s later.
    """
    if cfg.compile != "auto":
        return bool(cfg.compile)
    batches = math.ceil(num_images / cfg.batch_size)
    steps = min(limit for limit in (cfg.max_steps, (cfg.max_epochs or -1) * batches, math.inf) if limit > 0)
    is_long = cfg.limit_train_batches is None and steps / max(1, len(cfg.image_sizes or ())) >= 3_000
    has_compiler = shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()
    gains = device_of(cfg.accelerator) == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return is_long and gains and has_compiler and sys.platform == "linux"
