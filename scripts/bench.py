"""Times an exercise against a plain PyTorch script, taken in turn; prints one JSON object.

    python scripts/bench.py fit --plain PATH/plain_fit.py
    python scripts/bench.py cifar --plain PATH/plain_cifar.py [--accelerator gpu]

The plain scripts print a JSON line: plain_fit.py --epochs N with "seconds", its training time; plain_cifar.py
--data_root DIR --steps N --workers W with "images_per_second".
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from analysis.files import read_json, write_json
from callbacks.classifier_record import now as finished
from callbacks.classifier_record import peak_memory_mb
from datamodules import CIFAR10DataModule
from lit_models import ResNet20
from scripts.commandline import default_data_root, keep_freed_memory
from scripts.hardware import gains_by_compilation, has_native_bfloat16

SCRIPTS = Path(__file__).parent


def timed(command: list[str], **env: str) -> tuple[float, str]:
    """Wall-clock seconds of a whole process, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - start, done.stdout


def plain(script: str, *flags: str) -> tuple[float, dict[str, Any]]:
    """Wall-clock seconds of the plain script, and its last line of JSON."""
    process, out = timed([sys.executable, script, *flags])
    return process, json.loads(out.splitlines()[-1])


def ours(script: str, *flags: str, **env: str) -> tuple[float, dict[str, Any]]:
    """Wall-clock seconds of a script of this project with everything on, and its summary.json."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        process, _ = timed([sys.executable, str(SCRIPTS / script), "--run_dir", str(run_dir), *flags], **env)
        return process, read_json(run_dir / "summary.json")


def fit(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds; in each round every command runs once, ours right after the plain one."""
    epochs = str(args.epochs)
    grid = ["--lr", "1", "0.1", "0.01", "0.001", "--num_seeds", "8"]

    def plain_seconds(epochs: str) -> dict[str, float]:
        process, result = plain(args.plain, "--epochs", epochs)
        return {"train": result["seconds"], "process": process}

    def our_seconds(*flags: str) -> dict[str, float]:
        process, summary = ours("fit.py", *flags)
        return {"train": summary["seconds"]["train"], "process": process}

    rounds = [
        {
            "plain_1000": plain_seconds("1000"),
            "fit_1000": our_seconds("--epochs", "1000"),
            f"plain_{epochs}": plain_seconds(epochs),
            f"fit_{epochs}": our_seconds("--epochs", epochs),
            f"grid_4x8_{epochs}": our_seconds("--epochs", epochs, *grid),
        }
        for _ in range(args.repeats)
    ]
    seconds = {
        name: {part: statistics.median(r[name][part] for r in rounds) for part in ("train", "process")}
        for name in rounds[0]
    }

    def ratio(a: str, b: str, part: str) -> float:
        return statistics.median(r[a][part] / r[b][part] for r in rounds)

    return {
        "repeats": args.repeats,
        "seconds": seconds,
        "train_speedup_1000": ratio("plain_1000", "fit_1000", "train"),
        f"train_speedup_{epochs}": ratio(f"plain_{epochs}", f"fit_{epochs}", "train"),
        "grid_time_over_one_plain_run": ratio(f"grid_4x8_{epochs}", f"plain_{epochs}", "train"),
        "process_time_over_plain_1000": ratio("fit_1000", "plain_1000", "process"),
    }


class BareNetwork:
    """The network and its optimizer on one fixed batch: what is left when data, metrics and Lightning cost nothing."""

    def __init__(self, device: torch.device, batch_size: int, compile: bool, precision: str = "32-true") -> None:
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
        images = torch.randn(batch_size, 3, 32, 32, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (batch_size,), device=device)
        self.net = ResNet20().to(memory_format=torch.channels_last).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.1, weight_decay=5e-4, fused=True)
        with FlopCounterMode(display=False) as flops:
            self.step()
        self.flops_per_image = flops.get_total_flops() / batch_size
        if compile:
            self.net.compile(dynamic=False)

    def step(self) -> None:
        self.optimizer.zero_grad()
        with self.autocast:
            loss = F.cross_entropy(self.net(self.images), self.labels)
        loss.backward()
        self.optimizer.step()


class BareSteps(Callback):
    """Takes turns with the training that it is part of: after each ``block`` batches as many bare steps of each kind.

    Whatever else disturbs the machine, or is slow in this process, weighs on all of them alike. Writes
    {"trainer_in_turn", "bare", "bare_compiled"}, medians of the seconds of a step, as JSON to ``out``.
    """

    def __init__(self, out: str, block: int = 10) -> None:
        self.out, self.block = Path(out), block

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.networks = {
            name: BareNetwork(pl_module.device, 128, name == "bare_compiled", str(trainer.precision))
            for name in ("bare", "bare_compiled")
        }
        self.seconds: dict[str, list[float]] = {name: [] for name in ("trainer_in_turn", *self.networks)}
        self._last: float | None = None
        for network in self.networks.values():
            for _ in range(min(5, self.block)):
                network.step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = finished(pl_module.device)
        if self._last is not None and batch_idx > self.block:
            self.seconds["trainer_in_turn"].append(now - self._last)  # all of a step: fetch, augment, learn, log
        self._last = now
        if (batch_idx + 1) % self.block == 0:
            for name, network in self.networks.items():
                network.step()  # its memory has left the caches
                for _ in range(self.block):
                    start = finished(pl_module.device)
                    network.step()
                    self.seconds[name].append(finished(pl_module.device) - start)
            self._last = None  # and so has the training's: its next step is not counted

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        write_json(self.out, {name: statistics.median(seconds) for name, seconds in self.seconds.items()})


def median_seconds(call: Any, times: int, device: torch.device) -> float:
    """Median over ``times`` calls, after 5 to warm up."""
    seconds = []
    for _ in range(times + 5):
        start = finished(device)
        call()
        seconds.append(finished(device) - start)
    return statistics.median(seconds[5:])


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that the device reaches at its best: in a matrix product, or a wide convolution."""
    size = 4096 if device.type == "cuda" else 2048  # each large enough for full speed
    a = torch.randn(size, size, device=device, dtype=dtype)
    images, weights = (
        torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((32, 256, 32, 32), (256, 256, 3, 3))
    )
    with torch.inference_mode():
        product = 2 * size**3 / median_seconds(lambda: a @ a, 5, device)
        seconds = median_seconds(lambda: F.conv2d(images, weights, padding=1), 5, device)
    return max(product, 2 * images.numel() * 256 * 9 / seconds)


def cifar(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds; in each round everything runs once. The plain script knows only the CPU."""
    keep_freed_memory()
    device = torch.device("cuda" if args.accelerator == "gpu" else "cpu")
    compile = gains_by_compilation(device) if args.compile == "auto" else args.compile == "true"
    flags = ["--data_root", args.data_root, "--accelerator", args.accelerator, "--compile", str(compile).lower()]
    flags += ["--limit_val_batches", "0", "--limit_test_batches", "0"]
    types = {"32-true": torch.float32} | ({"bf16-mixed": torch.bfloat16} if has_native_bfloat16(device) else {})
    rounds = []
    for _ in range(args.repeats):
        plains = plain_throughputs(args) if device.type == "cpu" else {}
        turns = {name: throughputs(args.steps, [*flags, "--precision", name]) for name in types}
        rounds.append((plains, turns))
    flops = BareNetwork(device, 128, compile=False).flops_per_image
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "repeats": args.repeats,
        "compiled": compile,
        "flops_per_image": flops,
        "plain_images_per_second": medians_of([plains for plains, _ in rounds]),
        "data_alone_images_per_second": data_throughput(args.data_root, device),
        "precisions": {
            name: of_precision([(plains, turns[name]) for plains, turns in rounds], flops, peak_flops(device, dtype))
            for name, dtype in types.items()
        },
        "seconds_to_first_step": first_steps(flags),
        "fast_over_epochs": over_epochs(args.steps, flags),
    }


def of_precision(rounds: list[tuple[dict[str, float], dict[str, float]]], flops: float, peak: float) -> dict[str, Any]:
    """What the rounds' images/s, of the plain scripts and of ours, come to."""
    speeds = medians_of([turns for _, turns in rounds])
    bests = [(turns["trainer"], max(plains.values())) for plains, turns in rounds if plains]
    return {
        "images_per_second": speeds,
        "trainer_over_better_plain": statistics.median(ours / plain for ours, plain in bests) if bests else None,
        **{
            f"trainer_over_{name}": statistics.median(turns["trainer_in_turn"] / turns[name] for _, turns in rounds)
            for name in ("bare", "bare_compiled")
        },
        "peak_flops_per_second": peak,
        "trainer_fraction_of_peak": speeds["trainer"] * flops / peak,
    }


def medians_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def data_throughput(data_root: str, device: torch.device) -> float:
    """Images/s of batches and their augmentation alone."""
    data = CIFAR10DataModule(data_root)
    data.prepare_data()
    data.setup()
    data.train = (data.train[0].to(device), data.train[1].to(device))
    batches = iter(data.train_dataloader())
    return 128 / median_seconds(lambda: data.on_after_batch_transfer(next(batches), 0), 20, device)


def first_steps(flags: list[str]) -> dict[str, float]:
    """Seconds from the start of the process to its first step; of two steps, since the last one is not compiled."""
    two = ("--max_epochs", "1", "--limit_train_batches", "2")
    with tempfile.TemporaryDirectory() as cache:  # of compiled code: empty, then full
        return {
            state: ours("cifar.py", *flags, *two, TORCHINDUCTOR_CACHE_DIR=cache)[1]["seconds"]["to_first_step"]
            for state in ("cold", "warm")
        }


class EpochMemory(Callback):
    """Writes the peak memory at each epoch's end, in MB, as JSON to ``out``."""

    def __init__(self, out: str) -> None:
        self.out, self.peaks = Path(out), list[float | None]()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.peaks.append(peak_memory_mb(pl_module.device))
        write_json(self.out, self.peaks)


def over_epochs(steps: int, flags: list[str]) -> dict[str, Any]:
    """Throughput and peak memory of each of five epochs of recipe fast, of so many steps."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "memory.json"
        short = ["--recipe", "fast", "--max_epochs", "5", "--limit_train_batches", str(steps)]
        short += ["--callbacks+=scripts.bench.EpochMemory", "--callbacks.out", str(out)]
        epochs = ours("cifar.py", *flags, *short)[1]["epochs"]
        return {
            "images_per_second": [epoch["images_per_second"] for epoch in epochs],
            "peak_memory_mb": read_json(out),
        }


def plain_throughputs(args: argparse.Namespace) -> dict[str, float]:
    """Images/s of the plain script, without workers and with two."""
    row = {}
    for workers in ("0", "2"):
        parts = ("--data_root", args.data_root, "--steps", str(args.steps), "--workers", workers)
        row[f"plain_{workers}_workers"] = plain(args.plain, *parts)[1]["images_per_second"]
    return row


def throughputs(steps: int, flags: list[str]) -> dict[str, float]:
    """Images/s of cifar.py as a user runs it, and of a second run, with which the bare network takes turns."""
    block = max(2, min(10, steps // 4))
    flags = [*flags, "--max_epochs", "1", "--limit_train_batches", str(steps + 2 * block)]
    alone = ours("cifar.py", *flags)[1]["images_per_second"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        turns = ["--callbacks+=scripts.bench.BareSteps", "--callbacks.out", str(out), "--callbacks.block", str(block)]
        ours("cifar.py", *flags, *turns)
        return {"trainer": alone, **{name: 128 / seconds for name, seconds in read_json(out).items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fit", "cifar"])
    parser.add_argument("--plain", help="path of the plain script; not needed on a GPU, which it does not know")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50_000, help="of the long runs of fit")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each run of cifar")
    parser.add_argument("--data_root", default=default_data_root(), help="where CIFAR-10 is")
    parser.add_argument(
        "--compile", choices=["auto", "true", "false"], default="auto", help="of cifar.py; auto: as its whole runs do"
    )
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu", help="where cifar runs")
    args = parser.parse_args()
    if args.plain is None and (args.what == "fit" or args.accelerator == "cpu"):
        parser.error("--plain is needed: the path of the plain script to compare with")
    print(json.dumps({"fit": fit, "cifar": cifar}[args.what](args), indent=2))
