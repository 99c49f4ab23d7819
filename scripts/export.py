"""Writes the network of a finished run of cifar.py as a safetensors file, whose metadata say how it was made."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before what PYTHONPATH holds
import cli  # noqa: F401  (before all others, which are faster then)
import json

from safetensors.torch import save

from analysis.files import read_json, write_atomically
from cli.command import UsageError, main
from cli.parser import Parser
from cli.weights import PictureClassifier, load


def run() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--run_dir", required=True, type=Path, help="the run's folder")
    parser.add_argument("--out", required=True, type=Path, help="the file to write, such as mine.safetensors")
    cfg = parser.parse_args()
    if cfg.out.suffix != ".safetensors":
        raise UsageError(f"--out {cfg.out} must end in .safetensors")
    summary = read_json(cfg.run_dir / "summary.json")
    network = load(cfg.run_dir / "checkpoints" / "last.ckpt", PictureClassifier)
    facts = {name: summary[name] for name in ("seed", "test_acc", "test_loss")}
    facts |= {"epochs": len(summary["epochs"]), "precision": summary["settings"]["precision"] or "32-true"}
    facts |= {name: getattr(network, name) for name in ("mean", "std", "classes")}
    metadata = {"command": summary["command"]} | {name: json.dumps(value) for name, value in facts.items()}
    write_atomically(cfg.out, lambda file: file.write(save(network.net.state_dict(), metadata)))
    print(f"Wrote {cfg.out}")


if __name__ == "__main__":
    main(run)
