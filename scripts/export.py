"""Writes the network of a finished run of cifar.py as a safetensors file, whose metadata say how it was made."""

import cli  # noqa: F401  (first: all other imports are faster)

# isort: split
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from analysis.evaluation import measure
from analysis.files import read_json, write_atomically
from cli.command import UsageError, main
from cli.parser import Parser
from cli.weights import PictureClassifier, load
from datamodules import CIFAR10DataModule


def run() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--run_dir", required=True, type=str, help="the run's folder")
    parser.add_argument("--out", required=True, type=str, help="the file to write, such as mine.safetensors")
    parser.add_argument("--data_root", type=str | None, help="where CIFAR-10 is, if no longer where the run had it")
    cfg = parser.parse_args()
    if Path(cfg.out).suffix != ".safetensors":
        raise UsageError(f"--out {cfg.out!r} must end in .safetensors")
    run_dir = Path(cfg.run_dir).expanduser()
    summary = read_json(run_dir / "summary.json")
    network = load(run_dir / "checkpoints" / "last.ckpt")
    if not isinstance(network, PictureClassifier):
        raise UsageError(f"{cfg.run_dir} is a run of fit.py: export.py takes those of cifar.py")
    data = CIFAR10DataModule(cfg.data_root or summary["settings"]["data_root"], dataset=summary["data"])
    data.prepare_data()
    data.setup()
    # Measured again: these weights are used in float32, whatever the precision of the run and of its own test.
    pixels, labels = data.test
    measured = measure(network.logits(pixels), labels, network.classes)
    facts = {"seed": summary["seed"], "epochs": len(summary["epochs"])}
    facts |= {name: measured[name] for name in ("test_acc", "test_loss")}
    facts |= {"mean": network.mean, "std": network.std, "classes": network.classes}
    metadata = {"command": command(summary)} | {name: json.dumps(value) for name, value in facts.items()}
    write_atomically(Path(cfg.out).expanduser(), lambda file: file.write(save(network.net.state_dict(), metadata)))
    print(f"Wrote {cfg.out}: test accuracy {measured['test_acc']:.2%} in float32")


def command(summary: Mapping[str, Any]) -> str:
    """The run's command without the places of its files; another run's checkpoint is kept."""
    places = ("--data_root", "--run_dir") if summary["origin"] else ("--data_root", "--run_dir", "--ckpt_path")
    words = shlex.split(summary["command"])[2:]
    kept = [word for i, word in enumerate(words) if not word.startswith(places) and words[i - 1] not in places]
    return shlex.join(["python", "scripts/cifar.py", *kept])


if __name__ == "__main__":
    main(run)
