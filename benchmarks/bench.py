"""Times the commands of both experiments against baselines, loops in plain PyTorch, and prints a table in Markdown.

    python benchmarks/bench.py [fit|cifar|all] [--quick] [--repeats 3] [--data_root DIR] [--json]

In each round every command runs once, in a process of its own, after the baseline that it is compared with. The table
has medians over the rounds; "times as fast" is the median of the rounds' ratios. Nothing else should run on the
machine. On two cores a round takes two to seven minutes for each experiment; --quick about three in all.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).parent
LAB_STEPS = 3_910  # ten epochs: 81.6 % test accuracy by recipe lab
FAST_STEPS = 840  # at least as much by recipe fast


class Comparison(NamedTuple):
    """One measurement of a round, in seconds ("s") or "images/s"; other units have no baseline."""

    measure: str
    unit: str
    baseline: float | None
    ours: float | None

    @property
    def speedup(self) -> float | None:
        if self.baseline is None or self.ours is None:
            return None
        return self.baseline / self.ours if self.unit == "s" else self.ours / self.baseline


def timed(script: Path, *flags: str) -> tuple[float, str]:
    """Wall-clock seconds of a whole process, and its standard output."""
    print(script.name, *flags, file=sys.stderr)
    start = time.perf_counter()
    process = subprocess.run([sys.executable, str(script), *flags], capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"{script.name} {' '.join(flags)} failed:\n{process.stderr}")
    return time.perf_counter() - start, process.stdout


def baseline(script: str, *flags: str) -> dict[str, Any]:
    """The last JSON line of a baseline, with the seconds of its process as "process"."""
    seconds, output = timed(HERE / script, *flags)
    return {**json.loads(output.splitlines()[-1]), "process": seconds}


def ours(script: str, *flags: str) -> dict[str, Any]:
    """The summary.json of a command with all its outputs, with the seconds of its process as "process"."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = timed(HERE.parent / "scripts" / script, "--run_dir", f"{folder}/run", *flags)
        summary = json.loads(Path(folder, "run", "summary.json").read_text(encoding="utf-8"))
    return {**summary, "process": seconds}


def fit_round(args: argparse.Namespace) -> list[Comparison]:
    short, long = ["--epochs", "1000"], ["--epochs", str(args.epochs)]
    plain_short, fit_short = baseline("plain_fit.py", *short), ours("fit.py", *short)
    plain_long, fit_long = baseline("plain_fit.py", *long), ours("fit.py", *long)
    grid = ours("fit.py", *long, "--lr", "1", "0.1", "0.01", "0.001", "--num_seeds", "8")
    name = f"fit, {args.epochs:,} epochs: training"
    train_short, train_long, train_grid = (run["seconds"]["train"] for run in (fit_short, fit_long, grid))
    return [
        Comparison("fit, 1,000 epochs: training", "s", plain_short["seconds"], train_short),
        Comparison("fit, 1,000 epochs: whole command", "s", plain_short["process"], fit_short["process"]),
        Comparison(name, "s", plain_long["seconds"], train_long),
        Comparison(f"{name}, 32 runs against one of the baseline", "s", plain_long["seconds"], train_grid),
    ]


def cifar_round(args: argparse.Namespace) -> list[Comparison]:
    device = "cuda" if args.accelerator == "gpu" else "cpu"
    flags = ["--data_root", args.data_root, "--steps", str(args.steps), "--device", device, "--workers"]
    plain = max(baseline("plain_cifar.py", *flags, workers)["images_per_second"] for workers in ("0", "2"))

    flags = ["--data_root", args.data_root, "--accelerator", args.accelerator]
    fast = ours("cifar.py", *flags, "--recipe", "fast", "--max_epochs", "3", "--max_steps", str(args.fast_steps))
    # The steps that --fast_steps leaves out would take as long as the others.
    fast_seconds = fast["process"] + fast["seconds"]["train"] * (FAST_STEPS / args.fast_steps - 1)

    flags += ["--compile", args.compile, "--max_epochs", "1", "--limit_train_batches", str(args.steps)]
    flags += ["--limit_val_batches", "0", "--limit_test_batches", "0"]
    # Recipe fast has chosen bf16-mixed where the device computes in bfloat16.
    precisions = dict.fromkeys(["32-true", fast["settings"]["precision"]])
    labs = {precision: ours("cifar.py", *flags, "--precision", precision) for precision in precisions}
    throughputs = [
        Comparison(f"cifar, lab, {precision}: throughput", "images/s", plain, lab["images_per_second"])
        for precision, lab in labs.items()
    ]
    name = f"cifar: {FAST_STEPS} steps of recipe fast against {LAB_STEPS:,} of lab (81.6 %)"
    return [
        *throughputs,
        Comparison(name, "s", LAB_STEPS * 128 / plain, fast_seconds),
        Comparison("cifar, recipe fast: test accuracy", "%", None, None if args.quick else 100 * fast["test_acc"]),
        Comparison("cifar, recipe fast: peak memory", "MB", None, fast["peak_memory_mb"]),
        Comparison("cifar, lab, 32-true: peak memory", "MB", None, labs["32-true"]["peak_memory_mb"]),
        Comparison("cifar, lab, 32-true: time to first step", "s", None, labs["32-true"]["seconds"]["to_first_step"]),
    ]


def row_of(rounds: Sequence[Comparison]) -> dict[str, Any]:
    """One measurement's medians over the rounds, or None."""

    def median(values: Iterable[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return statistics.median(numbers) if numbers else None

    return {
        "measure": rounds[0].measure,
        "unit": rounds[0].unit,
        "baseline": median(each.baseline for each in rounds),
        "litlab": median(each.ours for each in rounds),
        "times_as_fast": median(each.speedup for each in rounds),
    }


def machine(accelerator: str) -> dict[str, Any]:
    """{"processor", "instructions", "threads", "torch"} and, for accelerator "gpu", {"GPU"}."""
    info = Path("/proc/cpuinfo")  # Linux
    name = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    bfloat16 = [kind for kind in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(kind)]
    return {
        "processor": name[1] if name else platform.processor(),
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *bfloat16]),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({"GPU": torch.cuda.get_device_name()} if accelerator == "gpu" else {}),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown of what ``--json`` prints."""

    def cell(value: float | None, unit: str = "") -> str:
        return "" if value is None else f"{value:,.{0 if value >= 100 else 2}f} {unit}".strip()

    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines = [f"Medians over {result['rounds']} rounds; {where}", ""]
    lines += ["| | baseline | litlab | times as fast | of its time |", "| --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        speedup = row["times_as_fast"]
        values = [cell(row["baseline"], row["unit"]), cell(row["litlab"], row["unit"])]
        ratios = [cell(speedup), cell(speedup and 1 / speedup)]
        lines.append("| " + " | ".join([row["measure"], *values, *ratios]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", nargs="?", choices=["fit", "cifar", "all"], default="all")
    add("--quick", action="store_true", help="one round of shorter runs: rough figures")
    quick = "--quick" in sys.argv
    add("--repeats", type=int, default=1 if quick else 3, help="rounds")
    add("--data_root", default=os.environ.get("CIFAR10_ROOT") or "data", help="where CIFAR-10 is")
    add("--epochs", type=int, default=10_000 if quick else 50_000, help="epochs of the long runs of fit")
    add("--steps", type=int, default=20 if quick else 40, help="steps of the throughput runs, five of them untimed")
    add("--fast_steps", type=int, default=120 if quick else FAST_STEPS, help="steps of fast; extrapolated to 840")
    add("--accelerator", choices=["cpu", "gpu"], default="cpu", help="where cifar and its baseline run")
    add("--compile", default="auto", help="of recipe lab; auto never compiles runs as short as these")
    add("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    if args.what != "fit" and not Path(args.data_root, "cifar-10-batches-py").is_dir():
        parser.error(f"CIFAR-10 is not in {args.data_root}: give --data_root, or fetch it with scripts/cifar.py")

    kinds = {"fit": [fit_round], "cifar": [cifar_round], "all": [fit_round, cifar_round]}[args.what]
    rounds = [[comparison for kind in kinds for comparison in kind(args)] for _ in range(args.repeats)]
    rows = [row_of(same) for same in zip(*rounds, strict=True)]
    result = {"machine": machine(args.accelerator), "rounds": args.repeats, "rows": rows}
    print(json.dumps(result, indent=2) if args.json else table(result))


if __name__ == "__main__":
    main()
