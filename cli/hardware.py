"""What makes ResNet-20 faster on this machine, as measured: bfloat16 and ``torch.compile``."""

import math
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import Namespace

from callbacks.classifier_record import now
from cli.command import print_once
from lit_models.onednn import cpu_has_bfloat16, faster
from lit_models.resnet20 import ResNet20

PRECISIONS = ("32-true", "bf16-mixed")
SHORT = 100  # steps: a training run so short gains less than the measurement takes
GAIN = 0.95  # of float32's time at most, for bfloat16 to be worth its rounding
SECONDS = 1.0  # of measuring, after a first step of each kind


def device_of(accelerator: str | None) -> str:
    """The kind of device that ``--accelerator`` names, "auto" like Lightning: cpu, cuda or mps."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return next((kind for kind, is_there in kinds.items() if is_there and accelerator != "cpu"), "cpu")


def has_native_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and cpu_has_bfloat16()


def choose_precision(cfg: Namespace, steps: float) -> tuple[str, str]:
    """What takes the place of ``--precision auto`` for a training run of so many steps, and why."""
    device = device_of(cfg.accelerator)
    if not has_native_bfloat16(device):
        return "32-true", f"this {device} does not compute in bfloat16"
    started = max(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    devices = cfg.devices if cfg.devices != "auto" else torch.cuda.device_count() if device == "cuda" else 1
    if (started, cfg.num_nodes, str(devices)) != (1, 1, "1"):
        return "bf16-mixed", "several processes, which have to agree, do not measure"
    if steps < SHORT:
        return "32-true", "the training run is too short to measure"
    num = cfg.batch_size if device != "cpu" else math.ceil(cfg.batch_size / 2)  # as telling, in half the time
    seconds = seconds_per_step({0.0: 32} | (cfg.image_sizes or {}), num, device)
    ratio = seconds["bf16-mixed"] / seconds["32-true"]
    return PRECISIONS[ratio < GAIN], f"as measured, a step in bfloat16 takes {ratio:.2f} of its time in float32"


def seconds_per_step(image_sizes: Mapping[float, int], batch_size: int, device: str) -> dict[str, float]:
    """Seconds of ResNet-20's forward and backward pass in each precision, on average over a training run.

    ``image_sizes`` are {start, as a fraction of the training run: height and width}. The least of several measurements
    counts, and the precisions take turns, so that a machine that is busy for a moment does not decide.
    """
    net = ResNet20().to(device).train()
    forwards = {precision: faster(net, precision, device) or net for precision in PRECISIONS}

    def measure(size: int, precision: str) -> float:
        images = torch.randn(batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
        labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        start = now(images.device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            F.cross_entropy(forwards[precision](images), labels).backward()
        return now(images.device) - start

    kinds = list(product(image_sizes.values(), PRECISIONS))
    for kind in kinds:
        measure(*kind)  # the first allocates memory, and chooses kernels
    seconds = dict.fromkeys(kinds, math.inf)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for kind in kinds:
            seconds[kind] = min(seconds[kind], measure(*kind))
    shares = np.diff([*image_sizes, 1.0])
    return {p: float(shares @ [seconds[size, p] for size in image_sizes.values()]) for p in PRECISIONS}


def should_compile(cfg: Namespace, steps: float) -> bool:
    """Whether ``torch.compile`` makes training so many steps faster, the compilation included.

    Measured on two cores with AVX2: 9 % faster to 1 % slower at 32 pixels, 3 to 18 % faster at 20, the more the busier
    the memory; with AVX-512 6 to 12 % slower, in bfloat16 20 %. Each size of the images is compiled for itself, in 25
    to 50 s the first time on two CPU cores, in 5 s later: too long to be tried out.
    """
    has_compiler = shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()
    gains = device_of(cfg.accelerator) == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return steps / max(1, len(cfg.image_sizes or ())) >= 3_000 and gains and has_compiler and sys.platform == "linux"


def fastest(cfg: Namespace, num_images: int, saved: Mapping[str, Any]) -> Namespace:
    """The settings with a choice for each "auto": the one of the ``saved`` settings, or else what is fastest here."""
    batches = math.ceil(num_images / max(1, cfg.batch_size))
    limits = (cfg.max_steps, (cfg.max_epochs or -1) * batches, math.inf)
    is_whole = batches > 0 and cfg.limit_train_batches is None  # else short, or of own pictures
    steps = min(limit for limit in limits if limit > 0) if is_whole else 0
    choices = {name: saved.get(name, "auto") for name in ("precision", "compile") if cfg[name] == "auto"}
    if choices.get("precision") == "auto":
        choices["precision"], reason = choose_precision(cfg, steps)
        print_once(f"Precision {choices['precision']}: {reason}")
    if choices.get("compile") == "auto":
        choices["compile"] = should_compile(cfg, steps)
        if choices["compile"]:
            print_once("Compiled, for a training run this long: the first step takes up to a minute, the others less")
    return Namespace({**cfg, **choices})
