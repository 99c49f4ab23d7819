"""What the learning-rate drop does to accuracy, and why: recorded by the runs, and measured from their checkpoints."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import update_bn

from analysis.measure import Nets, accuracy, measured
from analysis.runs import FinishedRun, Row, epoch_of_drop
from datamodules import CIFAR10DataModule
from datamodules.augmentation import normalize

LINE_IMAGES, LINE_STEPS, RENEWAL_BATCHES = 2_000, 4, 80
RENEWED = ("before", "with", "without")
ALONG = (-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25)  # 0: the weights before the drop, 1: those one epoch later
ACROSS = (-1, -0.5, 0, 0.25, 0.5, 0.75, 1, 1.5, 2)  # 0: before the step, 1: after it


def drop_numbers(run: FinishedRun, other: FinishedRun | None, data_root: str | None) -> tuple[dict[str, float], Row]:
    """What a run shows of its drop, accuracies in percent, and what ``measure_lines`` gives, where it can be measured.

    "effect", in the first epoch after the drop, and "final_effect" are with the drop minus without it (``other``).
    """
    at = epoch_of_drop(run) or 0
    numbers = {"before": 100 * run.epochs[at - 1]["val_acc"]}
    for suffix, each in (("", run), ("_without", other)):
        if each:
            before, *after = (100 * row["val_acc"] for row in each.epochs[at - 1 :])
            numbers |= {f"first{suffix}": after[0], f"change{suffix}": after[0] - before, f"last{suffix}": after[-1]}
    if other is None:
        return numbers, {}
    numbers["effect"] = numbers["first"] - numbers["first_without"]
    numbers["final_effect"] = numbers["last"] - numbers["last_without"]
    weights = [(run, at), (run, at + 1), (other, at + 1)]
    renewed = measured("renewed", weights, data_root, measure_renewed)
    lines = measured("lines", weights, data_root, measure_lines)
    if renewed and lines:
        numbers |= line_numbers(lines) | {f"renewed_{name}": 100 * renewed[name] for name in RENEWED}
        numbers["renewed_effect"] = numbers["renewed_with"] - numbers["renewed_without"]
    return numbers, lines


def line_numbers(lines: Row) -> dict[str, float]:
    """Changes of the losses, and how many percent of the steps cross a valley: are lower inside than at both ends."""
    numbers, start, end = {}, ACROSS.index(0), ACROSS.index(1)
    for way, suffix in (("with", ""), ("without", "_without")):
        numbers[f"loss_change{suffix}"] = lines[way][ALONG.index(1)] - lines[way][ALONG.index(0)]
    for kind, suffix in (("steps", ""), ("small_steps", "_after")):
        crosses = [min(losses[start + 1 : end]) < min(losses[start], losses[end]) for losses in lines[kind]]
        if crosses:
            numbers[f"crossing{suffix}"] = 100 * np.mean(crosses)
    return numbers


def measure_renewed(nets: Nets, data: CIFAR10DataModule, run: FinishedRun) -> dict[str, float]:
    """Accuracies of the weights "before" the drop and one epoch later, "with" and "without" it, in eval mode.

    Running averages are renewed: means over 80 training batches at the same weights (Wu and Johnson 2021, arXiv
    2105.07576), not moving averages over the last steps, in which the weights have changed.
    """
    accuracies = {}
    for name, net in zip(RENEWED, nets, strict=True):
        update_bn(islice(data.train_dataloader(), RENEWAL_BATCHES), net)
        accuracies[name] = accuracy(net.eval(), islice(data.val_dataloader()[0], run.summary["val_batches"]))
    return accuracies


def measure_lines(nets: Nets, data: CIFAR10DataModule, run: FinishedRun) -> dict[str, Any]:
    """The training loss along straight lines between weights (Goodfellow et al. 2015, Xing et al. 2018).

    On the first training images, in train mode. "with" and "without": at ALONG of the way from the weights before the
    drop to those one epoch later. "steps": at ACROSS of the way of successive steps of SGD; "small_steps" as many at
    the learning rate after the drop. With momentum, or Muon, no step follows its gradient alone, and both are empty.
    """
    net, settings = nets[0].train(), run.summary["settings"]
    images, labels = normalize(data.train[0][:LINE_IMAGES]), data.train[1][:LINE_IMAGES]
    start, *ends = (parameters_to_vector(each.parameters()).detach() for each in nets)

    @torch.no_grad()
    def losses(origin: Tensor, way: Tensor, at: Sequence[float]) -> list[float]:
        each = []
        for part in at:
            vector_to_parameters(origin + part * way, net.parameters())
            each.append(F.cross_entropy(net(images), labels).item())
        return each

    content: dict[str, Any] = {"images": len(labels), "along": ALONG, "across": ACROSS, "steps": [], "small_steps": []}
    for name, end in zip(("with", "without"), ends, strict=True):
        content[name] = losses(start, end - start, ALONG)
    is_plain_sgd = settings["momentum"] == 0 and settings["optimizer"] == "sgd"
    for name, lr in (("steps", run.epochs[0]["lr"]), ("small_steps", run.epochs[-1]["lr"])):
        weights = start
        for batch, targets in islice(data.train_dataloader(), LINE_STEPS if is_plain_sgd else 0):
            vector_to_parameters(weights, net.parameters())
            gradients = torch.autograd.grad(F.cross_entropy(net(batch), targets), list(net.parameters()))
            gradient = torch.cat([each.flatten() for each in gradients])  # some are channels_last
            step = -lr * (gradient + settings["weight_decay"] * weights)
            content[name].append(losses(weights, step, ACROSS))
            weights = weights + step
    return content
