"""Times exercise 1 against a plain PyTorch script, whole processes taken in turn; prints one JSON object.

    python scripts/bench.py fit --plain PATH/plain_fit.py

The plain script is called with ``--epochs N`` and prints a JSON line with "seconds", its training time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FIT = Path(__file__).with_name("fit.py")


def timed(command: list[str]) -> tuple[float, str]:
    """Wall-clock seconds of a whole process, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def plain(script: str, epochs: int) -> dict[str, float]:
    """{"train", "process"} seconds of the plain script."""
    process, out = timed([sys.executable, script, "--epochs", str(epochs)])
    return {"train": json.loads(out.splitlines()[-1])["seconds"], "process": process}


def ours(*flags: str) -> dict[str, float]:
    """{"train", "process"} seconds of scripts/fit.py with everything on."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        process, _ = timed([sys.executable, str(FIT), "--run_dir", str(run_dir), *flags])
        return {"train": json.loads((run_dir / "summary.json").read_text())["seconds"]["train"], "process": process}


def fit(script: str, repeats: int, epochs: int) -> dict[str, Any]:
    """Medians over ``repeats`` rounds; in each round every command runs once, ours right after the plain one."""
    grid = ["--lr", "1", "0.1", "0.01", "0.001", "--num_seeds", "8"]
    rounds = [
        {
            "plain_1000": plain(script, 1000),
            "fit_1000": ours("--epochs", "1000"),
            f"plain_{epochs}": plain(script, epochs),
            f"fit_{epochs}": ours("--epochs", str(epochs)),
            f"grid_4x8_{epochs}": ours("--epochs", str(epochs), *grid),
        }
        for _ in range(repeats)
    ]
    seconds = {
        name: {part: statistics.median(r[name][part] for r in rounds) for part in ("train", "process")}
        for name in rounds[0]
    }

    def ratio(a: str, b: str, part: str) -> float:
        return statistics.median(r[a][part] / r[b][part] for r in rounds)

    return {
        "repeats": repeats,
        "seconds": seconds,
        "train_speedup_1000": ratio("plain_1000", "fit_1000", "train"),
        f"train_speedup_{epochs}": ratio(f"plain_{epochs}", f"fit_{epochs}", "train"),
        "grid_time_over_one_plain_run": ratio(f"grid_4x8_{epochs}", f"plain_{epochs}", "train"),
        "process_time_over_plain_1000": ratio("fit_1000", "plain_1000", "process"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fit"])
    parser.add_argument("--plain", required=True, help="path of the plain script")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50_000, help="of the long runs")
    args = parser.parse_args()
    print(json.dumps(fit(args.plain, args.repeats, args.epochs), indent=2))
