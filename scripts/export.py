"""Writes the network of a finished run of cifar.py as a safetensors file, whose metadata say how it was made."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before what PYTHONPATH holds
import cli  # noqa: F401  (before all others, which are faster then)
import json

from jsonargparse import Namespace
from safetensors.torch import save

from analysis.evaluation import measure
from analysis.files import read_json, write_atomically
from cli.command import UsageError, main
from cli.parser import Parser, build
from cli.weights import PictureClassifier, load
from datamodules import CIFAR10DataModule


def run() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--run_dir", required=True, type=Path, help="the run's folder")
    parser.add_argument("--out", required=True, type=Path, help="the file to write, such as mine.safetensors")
    parser.add_argument("--data_root", type=Path | None, help="where the run's pictures are, if they were moved")
    cfg = parser.parse_args()
    if cfg.out.suffix != ".safetensors":
        raise UsageError(f"--out {cfg.out} must end in .safetensors")
    summary = read_json(cfg.run_dir / "summary.json")
    network = load(cfg.run_dir / "checkpoints" / "last.ckpt", PictureClassifier)
    where = {"data_root": cfg.data_root or summary["settings"]["data_root"], "seed": summary["seed"]}
    data = build(CIFAR10DataModule, Namespace(), dataset=summary["data"], **where)
    images = {name: getattr(network, name) for name in ("mean", "std", "classes")}
    data.load_state_dict(images)
    data.prepare_data()
    data.setup()
    # Measured again: these weights are used in float32, whatever the precision of the run and of its own test.
    pixels, labels = data.test
    measured = measure(network.logits(pixels), labels, network.classes)
    facts = {"seed": summary["seed"], "epochs": len(summary["epochs"]), **images}
    facts |= {name: measured[name] for name in ("test_acc", "test_loss")}
    metadata = {"command": summary["command"]} | {name: json.dumps(value) for name, value in facts.items()}
    write_atomically(cfg.out, lambda file: file.write(save(network.net.state_dict(), metadata)))
    print(f"Wrote {cfg.out}: test accuracy {measured['test_acc']:.2%} in float32")


if __name__ == "__main__":
    main(run)
