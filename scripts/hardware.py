"""What makes ResNet-20 faster on this machine: ``torch.compile`` where it works, bfloat16 where it is native."""

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from lit_models.resnet20 import cpu_has_bfloat16


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


def has_compiler() -> bool:
    """Whether torch.compile finds g++ and Python's headers."""
    return shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()
