"""What lies between the training accuracy of the last epoch and the test accuracy."""

from collections.abc import Sequence

import torch

from analysis.measure import measured
from analysis.runs import Run
from datamodules import CIFAR10DataModule
from datamodules.batches import TrainBatches
from datamodules.cifar10 import TRAIN_SUBSET
from lit_models import ResNet20

# the accuracies in between, in this order; each changes one thing
STEPS = {
    "epoch_average": "train (epoch average)",
    "batch_norm": "final weights, train mode",
    "augmented": "eval mode",
    "probe": "not augmented",
    "test": "test images",
}


def gap_numbers(run: Run, data_root: str) -> dict[str, float]:
    """Accuracies at the end of a run in percent, by the names and in the order of STEPS.

    "batch_norm", "augmented" and "probe" are on the training subset; the first two need checkpoint and images.
    """
    rows = run.epochs
    accuracies = {"epoch_average": rows[-1]["train_acc"], "probe": rows[-1]["probe_acc"]}
    accuracies |= {"test": run.summary["test_acc"], **measured("gap", [(run, len(rows))], data_root, measure_gap)}
    return {name: 100 * accuracies[name] for name in STEPS if name in accuracies}


@torch.inference_mode()
def measure_gap(nets: Sequence[ResNet20], data: CIFAR10DataModule, run: Run) -> dict[str, float]:
    """Accuracies of the one network on the augmented training subset, in eval mode and in train mode."""
    images, labels = (part[:TRAIN_SUBSET] for part in data.train)
    batches, accuracies = TrainBatches(images, labels, data.batch_size, 0, data.augmentation), {}
    # Train mode normalizes by the batch; it changes the running averages, too, so it comes last.
    for name, is_train_mode in (("augmented", False), ("batch_norm", True)):
        nets[0].train(is_train_mode)
        correct = torch.cat([nets[0](x).argmax(1) == y for x, y in batches])
        accuracies[name] = correct.float().mean().item()
    return accuracies
