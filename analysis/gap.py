"""What lies between the training accuracy of the last epoch and the test accuracy."""

from dataclasses import replace

from analysis.measure import Nets, accuracy, measured
from analysis.runs import FinishedRun
from datamodules import CIFAR10DataModule
from datamodules.cifar10 import TRAIN_SUBSET

STEPS = {  # the accuracies in between, in this order; each changes one thing
    "epoch_average": "train (epoch average)",
    "batch_norm": "final weights, train mode",  # this and the next two on the training subset
    "augmented": "eval mode",
    "probe": "not augmented",
    "test": "test images",
}


def gap_numbers(run: FinishedRun, data_root: str | None) -> dict[str, float]:
    """Accuracies at the end of a run in percent, in the order of STEPS; two of them need checkpoint and images."""
    last = run.epochs[-1]
    accuracies = {**measured("gap", [(run, len(run.epochs))], data_root, measure_gap)}
    accuracies |= {"epoch_average": last["train_acc"], "probe": last["probe_acc"], "test": run.summary["test_acc"]}
    return {name: 100 * accuracies[name] for name in STEPS if name in accuracies}


def measure_gap(nets: Nets, data: CIFAR10DataModule, run: FinishedRun) -> dict[str, float]:
    """Accuracies of the one network on the augmented training subset, in eval mode and in train mode."""
    images, labels = (part[:TRAIN_SUBSET] for part in data.train)
    batches = replace(data.train_dataloader(), images=images, labels=labels, seed=0)
    augmented = accuracy(nets[0].eval(), batches)  # first: train mode changes the running averages
    return {"augmented": augmented, "batch_norm": accuracy(nets[0].train(), batches)}
