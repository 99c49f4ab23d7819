"""What lies between the training accuracy of the last epoch and the test accuracy."""

from collections.abc import Sequence

import torch

from analysis.measure import Data, measured
from analysis.runs import Run
from lit_models import ResNet20

# the accuracies in between, in this order; each changes one thing
STEPS = {
    "epoch_average": "training accuracy (epoch average)",
    "batch_norm": "final weights, train mode",
    "augmented": "eval mode",
    "probe": "not augmented",
    "test": "test images",
}


def gap_numbers(run: Run, data_root: str) -> dict[str, float]:
    """Accuracies at the end of a run in percent, by the names and in the order of STEPS.

    "epoch_average" is over the last epoch, each batch scored before the network learns from it. On the training subset
    are "batch_norm" (augmented, train mode: batch statistics), "augmented" (augmented, eval mode) and "probe" (not
    augmented, eval mode). The first two of these need the run's last checkpoint and its images.
    """
    rows = run.summary["epochs"]
    accuracies = {"epoch_average": rows[-1]["train_acc"], "probe": rows[-1]["probe_acc"]}
    accuracies |= {"test": run.summary["test_acc"], **measured("gap", [(run, len(rows))], data_root, measure_gap)}
    return {name: 100 * accuracies[name] for name in STEPS if name in accuracies}


def measure_gap(nets: Sequence[ResNet20], data: Data) -> dict[str, float]:
    """Accuracies of the one network on the augmented subset: in train mode ("batch_norm") and in eval mode."""
    (net,) = nets

    @torch.inference_mode()
    def accuracy() -> float:
        correct = [net(images).argmax(1) == labels for images, labels in data.batches(data.subset)]
        return float(torch.cat(correct).float().mean())

    net.eval()
    in_eval_mode = accuracy()
    net.train()  # normalizes by the batch; its running averages change too, and are not used again
    return {"batch_norm": accuracy(), "augmented": in_eval_mode}
