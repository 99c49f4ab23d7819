"""Measures a trained classifier: accuracy, loss, calibration and confusion matrix, on CIFAR-10 or on own pictures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before what PYTHONPATH holds
import cli  # noqa: F401  (before all others, which are faster then)
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from analysis.figures import confusion_figure, save_png
from analysis.files import standard_json
from cli.command import UsageError, main
from cli.parser import Parser
from cli.weights import SHIPPED, PictureClassifier, load
from datamodules import CIFAR10DataModule
from datamodules.pictures import read_pictures


def run() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--ckpt_path", type=Path, default=SHIPPED, help="a run's checkpoint, or weights of the same ResNet-20")
    add("--images", type=Path | None, help="measure on a folder of pictures with a sub-folder for each class")
    add("--data_root", type=Path | None, help="else on CIFAR-10's test split, in this folder, found as by cifar.py")
    add("--download", type=bool, default=True, help="may CIFAR-10 be fetched when absent")
    add("--confusion", type=Path, default=Path("confusion.png"), help="where the figure of the confusion matrix goes")
    add("--json", action="store_true", help="print JSON instead of a table")
    cfg = parser.parse_args()
    network = load(cfg.ckpt_path, PictureClassifier)
    skipped: list[Path] = []
    if cfg.images:
        pictures, skipped = read_pictures([str(cfg.images)])
        names = [path.relative_to(cfg.images).parts[0] for path in pictures if cfg.images.is_dir()]
        if not names or not set(names) <= set(network.classes):
            classes = ", ".join(network.classes)
            raise UsageError(f"{cfg.images} must hold pictures in sub-folders named as the classes: {classes}")
        pixels, labels = torch.stack(list(pictures.values())), torch.tensor(list(map(network.classes.index, names)))
    else:
        data = CIFAR10DataModule(cfg.data_root, download=cfg.download)
        if network.classes != list(data.classes):
            raise UsageError(f"{cfg.ckpt_path} has other classes than CIFAR-10: give --images DIR, or DIR/test")
        data.prepare_data()
        data.setup()
        pixels, labels = data.test
    measured = measure(network.logits(pixels), labels, network.classes)
    confusion = torch.tensor(measured["confusion"])
    fractions = (confusion / confusion.sum(1, keepdim=True)).numpy()
    save_png(confusion_figure(fractions, network.classes), cfg.confusion)
    if cfg.json:
        print(standard_json({**measured, "skipped": [str(path) for path in skipped]}))
    else:
        line = "Test accuracy {test_acc:.2%}, loss {test_loss:.4f}, calibration error {ece:.2%} ({images:,} images)"
        print(line.format(**measured))
        for name, accuracy in measured["per_class_acc"].items():
            print(f"{name:>12} {accuracy:>8.2%}")
    if cfg.images:
        print("If the network was trained on some of these pictures, this accuracy is too high", file=sys.stderr)
    print(f"The confusion matrix is in {cfg.confusion}", file=sys.stderr)


def measure(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The results as ``--json`` prints them, of (N, C) logits and (N,) int64 labels; nan for a class without images."""
    confusion = multiclass_confusion_matrix(logits, labels, len(classes))
    per_class = (confusion.diagonal() / confusion.sum(1)).tolist()
    return {
        "test_acc": (confusion.diagonal().sum() / len(labels)).item(),
        "test_loss": F.cross_entropy(logits, labels).item(),
        "ece": multiclass_calibration_error(logits.softmax(1), labels, len(classes)).item(),  # of 15 bins
        "per_class_acc": dict(zip(classes, per_class, strict=True)),
        "confusion": confusion.tolist(),
        "images": len(labels),
    }


if __name__ == "__main__":
    main(run)
