"""What makes ResNet-20 faster on this machine, as measured: bfloat16 and ``torch.compile``."""

import math
import time
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import Namespace
from pytorch_lightning import Trainer

from callbacks.classifier_record import now
from cli.command import print_once
from lit_models.onednn import cpu_has_bfloat16, faster
from lit_models.resnet20 import ResNet20

SHORT = 100  # steps: a training run so short gains less by bfloat16 than the measurement takes
LONG = 3_000  # steps at each size of the images: one so long repays a compilation, of up to 50 s on two cores
GAIN = 0.95  # of the time of float32 at most: within 5 % that is kept


def device_and_processes(cfg: Namespace) -> tuple[str, int]:
    """The kind of device that Lightning takes, and how many processes. Raises what Lightning does where it has none."""
    trainer = Trainer(accelerator=cfg.accelerator, devices=cfg.devices, num_nodes=cfg.num_nodes, barebones=True)
    return trainer.strategy.root_device.type, trainer.world_size


def choose_precision(cfg: Namespace, steps: float) -> tuple[str, str]:
    """What takes the place of ``--precision auto`` for a training run of so many steps, and why."""
    device, processes = device_and_processes(cfg)
    gpu_has_bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if not (gpu_has_bfloat16 or (device == "cpu" and cpu_has_bfloat16())):
        return "32-true", f"this {device} does not compute in bfloat16"
    if processes > 1:
        return "bf16-mixed", "several processes, which have to agree, do not measure"
    if steps < SHORT:
        return "32-true", "not measured where training is short, limited, or of your own pictures"
    num = cfg.batch_size if device != "cpu" else math.ceil(cfg.batch_size / 2)  # as telling, in half the time
    ratio = time_of_a_step("bf16-mixed", {0.0: 32} | (cfg.image_sizes or {}), num, device, seconds=0.6)
    name = "bf16-mixed" if ratio < GAIN else "32-true"
    return name, f"as measured, a step in bfloat16 takes {ratio:.2f} of its time in float32"


@torch.random.fork_rng(devices=[])  # the run's random numbers are those of its seed, measured or not
def time_of_a_step(kind: str, image_sizes: Mapping[float, int], batch_size: int, device: str, seconds: float) -> float:
    """The time of ResNet-20's forward and backward pass, of a ``kind`` "bf16-mixed" or "compiled", relative to float32.

    ``image_sizes`` are {start, as a fraction of the training run: height and width}. For so many ``seconds`` both take
    turns, and the least time of each counts, so that a machine that is busy for a moment does not decide.
    """
    net = ResNet20().to(device).train()
    other = torch.compile(net.forward, dynamic=False) if kind == "compiled" else faster(net, kind, device)
    forwards = {"32-true": faster(net, "32-true", device), kind: other}

    def measure(size: int, kind: str) -> float:
        images = torch.randn(batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
        labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        start = now(images.device)
        with torch.autocast(device, torch.bfloat16, enabled=kind == "bf16-mixed"):
            F.cross_entropy(forwards[kind](images), labels).backward()
        return now(images.device) - start

    cases = list(product(image_sizes.values(), forwards))
    for case in cases:
        measure(*case)  # the first allocates memory, and chooses kernels
    least = dict.fromkeys(cases, math.inf)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for case in cases:
            least[case] = min(least[case], measure(*case))
    shares = np.diff([*image_sizes, 1.0])
    base, time_of_kind = (shares @ [least[size, each] for size in image_sizes.values()] for each in forwards)
    return float(time_of_kind / base)


def choose_compile(cfg: Namespace, steps: float) -> tuple[bool, str]:
    """What takes the place of ``--compile auto`` for a training run of so many steps, and why.

    With AVX-512 compiled steps were slower on every machine, in bfloat16 too: it is measured with AVX2 alone, where on
    two processors they took 0.91 and 1.14 of the time.
    """
    is_long = steps >= LONG * max(1, len(cfg.image_sizes or ()))
    may_gain = is_long and torch.backends.cpu.get_cpu_capability() == "AVX2"
    if not may_gain or device_and_processes(cfg) != ("cpu", 1):
        return False, ""
    print_once("Measuring whether torch.compile gains on this processor: up to a minute")
    try:
        ratio = time_of_a_step("compiled", {0.0: 32}, cfg.batch_size, "cpu", seconds=4.0)
    except Exception as error:  # there is no compiler, or not for this system
        return False, f"it does not work here ({type(error).__name__})"
    return ratio < GAIN, f"as measured, a compiled step takes {ratio:.2f} of the time"


def fastest(cfg: Namespace, num_images: int, saved: Mapping[str, Any]) -> Namespace:
    """The settings with a choice for each "auto": the one of the ``saved`` settings, or else what is fastest here."""
    batches = math.ceil(num_images / max(1, cfg.batch_size))
    limits = (cfg.max_steps, (cfg.max_epochs or -1) * batches, math.inf)
    is_cut = cfg.fast_dev_run or cfg.overfit_batches or cfg.limit_train_batches is not None
    is_whole = batches > 0 and not is_cut  # else short, or of own pictures
    steps = min(limit for limit in limits if limit > 0) if is_whole else 0
    choices = {}
    for name, choose in {"precision": choose_precision, "compile": choose_compile}.items():
        if cfg[name] == "auto":
            choices[name], reason = (saved[name], "") if name in saved else choose(cfg, steps)
            if reason:
                print_once(f"{name.capitalize()} {str(choices[name]).lower()}: {reason}")
    return Namespace({**cfg, **choices})
