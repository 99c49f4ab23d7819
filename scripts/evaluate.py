"""Measures a trained classifier: accuracy, loss, calibration and confusion matrix, on CIFAR-10 or on own pictures."""

import cli  # noqa: F401  (first: all other imports are faster)

# isort: split
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.evaluation import measure
from analysis.figures import confusion_figure, pixels_of, save_png
from analysis.files import standard_json
from cli.command import UsageError, main
from cli.parser import Parser, default_data_root
from cli.weights import SHIPPED, PictureClassifier, load
from datamodules import CIFAR10DataModule
from datamodules.pictures import read_pictures


def run() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=str, default=str(SHIPPED), help="a run's checkpoint, or weights of the same ResNet-20")
    add("--images", type=str | None, help="measure on a folder of pictures with a sub-folder for each class")
    add("--data_root", type=str | None, help="else on CIFAR-10's test split, in this folder (as cifar.py's flag)")
    add("--download", type=bool, default=True, help="may CIFAR-10 be fetched when absent")
    add("--confusion", type=str, default="confusion.png", help="where the figure of the confusion matrix goes")
    add("--json", action="store_true", help="print JSON instead of a table")
    cfg = parser.parse_args()
    network = load(Path(cfg.ckpt_path).expanduser())
    if not isinstance(network, PictureClassifier):
        raise UsageError(f"{cfg.ckpt_path} is of a curve: evaluate.py measures picture classifiers")
    skipped: dict[Path, str] = {}
    if cfg.images:
        pixels, labels, skipped = own_pictures(Path(cfg.images).expanduser(), network.classes)
    else:
        data = CIFAR10DataModule(cfg.data_root or default_data_root(), download=cfg.download)
        if list(network.classes) != list(data.classes):
            raise UsageError(f"{cfg.ckpt_path} has other classes than CIFAR-10: give --images")
        data.prepare_data()
        data.setup()
        pixels, labels = data.test
    measured = measure(network.logits(pixels), labels, network.classes) | {"skipped": list(map(str, skipped))}
    confusion = torch.tensor(measured["confusion"])
    figure = confusion_figure((confusion / confusion.sum(1, keepdim=True)).numpy(), network.classes)
    save_png(pixels_of(figure), Path(cfg.confusion).expanduser())
    print(standard_json(measured) if cfg.json else text(measured))
    print(f"The confusion matrix is in {cfg.confusion}", file=sys.stderr)


def own_pictures(folder: Path, classes: Sequence[str]) -> tuple[Tensor, Tensor, dict[Path, str]]:
    """(N, 32, 32, 3) uint8, (N,) int64 labels, and why which files are skipped, which is also printed."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: give --images a folder with a sub-folder for each class")
    pictures, skipped = read_pictures([str(folder)])
    for path, reason in skipped.items():
        print(f"skipped {path}: {reason}", file=sys.stderr)
    places = {name.casefold(): place for place, name in enumerate(classes)}
    labels = []
    for path in pictures:
        name = path.relative_to(folder).parts[0]
        if name.casefold() not in places:
            raise UsageError(f"{folder / name} is no folder of a class of this network: {', '.join(classes)}")
        labels.append(places[name.casefold()])
    if not labels:
        raise UsageError(f"{folder} has no picture in sub-folders with the names of classes: {', '.join(classes)}")
    return torch.stack(list(pictures.values())), torch.tensor(labels), skipped


def text(measured: dict[str, Any]) -> str:
    """A line, and a row for each class."""
    lines = [
        f"Test accuracy {measured['test_acc']:.2%}, test loss {measured['test_loss']:.4f}, "
        f"expected calibration error {measured['ece']:.2%} ({measured['images']:,} images)",
        f"{'class':>12} {'images':>8} {'accuracy':>9}",
    ]
    for (name, accuracy), row in zip(measured["per_class_acc"].items(), measured["confusion"], strict=True):
        lines.append(f"{name:>12} {sum(row):>8,} {accuracy:>9.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run)
