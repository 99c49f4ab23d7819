"""Measures a trained classifier: accuracy, loss, calibration and confusion matrix, on CIFAR-10 or on own pictures."""

import scripts  # noqa: F401  (first: all other imports are faster)

# isort: split
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import Namespace
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from analysis.classifier_figures import confusion_figure
from analysis.drawing import pixels_of, save_png
from analysis.files import standard_json
from datamodules import CIFAR10DataModule
from datamodules.cifar10 import read_images
from scripts.commandline import Parser, default_data_root, main
from scripts.networks import SHIPPED, PictureClassifier, load, read_all
from scripts.rendering import table


def run() -> None:
    cfg = parse()
    network = load(Path(cfg.ckpt_path).expanduser())
    if not isinstance(network, PictureClassifier):
        raise UsageError(f"{cfg.ckpt_path} is of a curve: evaluate.py measures picture classifiers")
    skipped: list[str] = []
    if cfg.images is None:
        pixels, labels = cifar10_test_split(cfg, network.classes)
    else:
        pixels, labels, skipped = own_pictures(Path(cfg.images).expanduser(), network.classes)
    measured = {**measure(network.logits(pixels), labels, network.classes), "skipped": skipped}
    confusion = torch.tensor(measured["confusion"])
    figure = confusion_figure((confusion / confusion.sum(1, keepdim=True)).numpy(), network.classes)
    save_png(pixels_of(figure), Path(cfg.confusion).expanduser())
    print(standard_json(measured) if cfg.json else text(measured))
    print(f"The confusion matrix is in {cfg.confusion}", file=sys.stderr)


def parse() -> Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=str, default=str(SHIPPED), help="a run's checkpoint, or weights of the same ResNet-20")
    add("--images", type=str | None, help="measure on a folder of pictures with a sub-folder for each class")
    add("--data_root", type=str | None, help="else on CIFAR-10's test split, in this folder (as cifar.py's flag)")
    add("--download", type=bool, default=True, help="may CIFAR-10 be fetched when absent")
    add("--confusion", type=str, default="confusion.png", help="where the figure of the confusion matrix goes")
    add("--json", action="store_true", help="print JSON instead of a table")
    cfg = parser.parse_args()
    if cfg.images and cfg.data_root:
        raise UsageError("give --images or --data_root: one of them is measured on")
    if not Path(cfg.confusion).name:
        raise UsageError(f"--confusion {cfg.confusion!r} names no file: give one such as confusion.png")
    return cfg


def cifar10_test_split(cfg: Namespace, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(10000, 32, 32, 3) uint8 and (10000,) int64 labels, places in ``classes``.

    Raises:
        UsageError: the data are absent or not whole, or ``classes`` are not CIFAR-10's.
    """
    data = CIFAR10DataModule(cfg.data_root or default_data_root(), download=cfg.download)
    places = [place_of(name, classes, f"CIFAR-10's {name}") for name in data.classes]
    data.prepare_data()
    pixels, labels = read_images("cifar10", data.data_root, train=False)
    return pixels, torch.tensor(places)[labels]


def own_pictures(folder: Path, classes: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
    """(N, 32, 32, 3) uint8, (N,) int64 labels, and the names of the files that could not be read.

    Raises:
        UsageError: there is no such folder, no picture, or a sub-folder of an unknown class.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: give --images a folder with a sub-folder for each class")
    below = [path for path in sorted(folder.iterdir()) if path.name[0] not in "._"]
    places = {path: place_of(path.name, classes, str(path)) for path in below if path.is_dir()}
    if len(places) < len(below):
        print(f"files in {folder} itself, left out, as they have no class: {len(below) - len(places)}", file=sys.stderr)
    pixels: list[Tensor] = []
    labels: list[int] = []
    skipped: list[str] = []
    for path, place in places.items():
        pictures, why = read_all([str(path)])
        pixels += pictures.values()
        labels += [place] * len(pictures)
        skipped += [str(file) for file in why if file != path]  # which stands for files that are no pictures
    if not pixels:
        raise UsageError(f"{folder} has no picture in sub-folders with the names of classes: {', '.join(classes)}")
    return torch.stack(pixels), torch.tensor(labels), skipped


def place_of(name: str, classes: Sequence[str], what: str) -> int:
    """Where ``classes`` have this name, in whatever case. Raises UsageError, which names ``what``."""
    names = [known.casefold() for known in classes]
    if name.casefold() not in names:
        known = ", ".join(classes)
        raise UsageError(f"{what} is no class of this network: give --images a folder with sub-folders {known}")
    return names.index(name.casefold())


def measure(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """What ``--json`` prints, of (N, C) logits and (N,) int64 labels; nan for a class without images."""
    C = len(classes)
    confusion = multiclass_confusion_matrix(logits, labels, C)
    per_class = (confusion.diagonal() / confusion.sum(1)).tolist()
    return {
        "test_acc": multiclass_accuracy(logits, labels, C, average="micro").item(),
        "test_loss": F.cross_entropy(logits, labels).item(),
        "ece": multiclass_calibration_error(logits.softmax(1), labels, C, n_bins=15).item(),
        "per_class_acc": dict(zip(classes, per_class, strict=True)),
        "confusion": confusion.tolist(),
        "images": len(labels),
    }


def text(measured: dict[str, Any]) -> str:
    """A line, and a table of the classes."""
    rows = [["class", "images", "accuracy"]]
    for (name, accuracy), counts in zip(measured["per_class_acc"].items(), measured["confusion"], strict=True):
        rows.append([name, f"{sum(counts):,}", f"{accuracy:.2%}" if sum(counts) else "-"])
    return (
        f"Test accuracy {measured['test_acc']:.2%}, test loss {measured['test_loss']:.4f}, expected calibration error "
        f"{measured['ece']:.2%} (images: {measured['images']:,}, skipped: {len(measured['skipped'])})\n{table(rows)}"
    )


if __name__ == "__main__":
    main(run, files="--data_root, --images, --confusion")
