"""A classifier's test: accuracy, loss, calibration and confusion matrix."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix


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
