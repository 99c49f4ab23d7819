"""What the learning-rate drop does to accuracy, and why: recorded by the runs, and measured from their checkpoints."""

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import vector_to_parameters
from torch.optim.swa_utils import update_bn

from analysis.measure import Data, measured
from analysis.runs import Rows, Run, epoch_of_drop
from datamodules.augmentation import normalize
from lit_models import ResNet20

LINE_IMAGES, LINE_STEPS, NOISE_BATCHES, RENEWAL_BATCHES = 2_000, 4, 40, 80
EFFECT_STEPS = {  # from the accuracy without the drop to that with it
    "without the drop": "without",
    "running averages renewed": "renewed_without",
    "weights after the drop": "renewed_with",
    "its own running averages": "with",
}
Points = dict[str, list[tuple[str, float, float]]]  # {chart: (line, x, y) each}

ALONG = (-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25)  # 0: the weights before the drop, 1: those one epoch later
ACROSS = (-1, -0.5, 0, 0.25, 0.5, 0.75, 1, 1.5, 2)  # 0: before the step, 1: after it


def drop_numbers(rows: Rows, without: Rows = ()) -> dict[str, float]:
    """What one run shows of its drop; accuracies in percent, their differences in percentage points.

    "change" is the difference between the first epoch after the drop and the last before it; "effect" and
    "final_effect" are with the drop minus ``without`` it, in the first epoch after it and in the last. "path" is the
    length of the weights' path in an epoch and "straightness" the distance between its ends in percent of it: 100 for
    a straight path, near 100 / sqrt(steps) for independent random steps, less where steps undo each other.

    Raises:
        ValueError: there is no drop.
    """
    at = epoch_of_drop(rows)
    if at is None:
        raise ValueError("this run has no drop of the learning rate")
    accuracies, others = ([100 * row["val_acc"] for row in part] for part in (rows, without))
    before, after = accuracies[at - 1], accuracies[at]
    numbers = {"before": before, "with": after, "change": after - before}
    numbers |= residual_sd("residual_sd", accuracies[at:])
    if others:
        numbers |= {"without": others[at], "change_without": others[at] - before, "effect": after - others[at]}
        numbers |= {"final_effect": accuracies[-1] - others[-1], **residual_sd("residual_sd_without", others[at:])}
    for suffix, part in (("", rows[:at]), ("_after", rows[at:])):
        if all(row.get("path") for row in part):
            numbers[f"path{suffix}"] = statistics.mean(row["path"] for row in part)
            straightness = statistics.mean(row["displacement"] / row["path"] for row in part)
            numbers[f"straightness{suffix}"] = 100 * straightness
    return numbers


def residual_sd(name: str, values: Sequence[float]) -> dict[str, float]:
    """{name: standard deviation around a straight line, with n - 2 degrees of freedom}; {} for less than 3 values."""
    if len(values) < 3:
        return {}
    slope, intercept = statistics.linear_regression(range(len(values)), values)
    squares = sum((y - intercept - slope * x) ** 2 for x, y in enumerate(values))
    return {name: math.sqrt(squares / (len(values) - 2))}


def line_numbers(lines: Mapping[str, Any]) -> dict[str, float]:
    """What the losses of ``measure_lines`` show: their changes, and how many percent of the steps cross a valley."""

    def ends(at: str, losses: Sequence[float]) -> tuple[float, float]:
        return losses[lines[at].index(0)], losses[lines[at].index(1)]

    def crossing(steps: Sequence[Sequence[float]]) -> float:
        """A step crosses a valley if inside it the loss is lower than at both of its ends."""
        inside = slice(lines["across"].index(0) + 1, lines["across"].index(1))
        return 100 * statistics.mean(min(losses[inside]) < min(ends("across", losses)) for losses in steps)

    numbers = {}
    for name, losses in (("loss_change", lines["with"]), ("loss_change_without", lines["without"])):
        start, end = ends("along", losses)
        numbers[name] = end - start
    if lines["steps"]:
        numbers |= {"crossing": crossing(lines["steps"]), "crossing_after": crossing(lines["small_steps"])}
    return numbers


def line_points(lines: Mapping[str, Any]) -> Points:
    """What to draw of the content of ``measure_lines``, "along" and "across"."""
    ways = {"with the drop": lines["with"], "without the drop": lines["without"]}
    steps = {f"step {i}": losses for i, losses in enumerate(lines["steps"], start=1)}
    return {
        at: [(name, x, loss) for name, losses in each.items() for x, loss in zip(lines[at], losses, strict=True)]
        for at, each in (("along", ways), ("across", steps))
    }


def measured_drop(run: Run, other: Run | None, data_root: str) -> tuple[dict[str, float], Points]:
    """Further numbers of the run, and the losses along lines, as far as checkpoints and images are at hand.

    "renewed_*" are accuracies as in ``drop_numbers``, with batch normalization's running averages renewed.
    """
    at = epoch_of_drop(run.summary["epochs"]) or 0
    noise = measured("noise", [(run, at)], data_root, measure_noise)
    numbers = {"noise": min(100.0, 100 * noise["noise"])} if noise else {}  # an estimate may be above 1
    if other is None:
        return numbers, {}
    weights = [(run, at), (run, at + 1), (other, at + 1)]
    if renewed := measured("renewed", weights, data_root, measure_renewed):
        numbers |= {f"renewed_{name}": 100 * renewed[name] for name in ("before", "with", "without")}
        numbers["renewed_effect"] = numbers["renewed_with"] - numbers["renewed_without"]
    if lines := measured("lines", weights, data_root, measure_lines):
        return numbers | line_numbers(lines), line_points(lines)
    return numbers, {}


def measure_renewed(nets: Sequence[ResNet20], data: Data) -> dict[str, float]:
    """Accuracies of the weights "before" the drop and one epoch later, "with" and "without" it, in eval mode.

    With batch normalization's running averages renewed: means over 80 training batches at the same weights (Wu and
    Johnson 2021, arXiv 2105.07576), not moving averages over the last steps, in which the weights have changed.
    """
    images, labels = data.validation
    accuracies = {}
    for name, net in zip(("before", "with", "without"), nets, strict=True):
        update_bn(itertools.islice(data.batches(data.train), RENEWAL_BATCHES), net)
        net.eval()
        with torch.inference_mode():
            predicted = torch.cat([net(normalize(part)).argmax(1) for part in images.split(1000)])
        accuracies[name] = float((predicted == labels).float().mean())
    return accuracies


def gradients(net: ResNet20, data: Data, most: int) -> Iterator[Tensor]:
    """(P,) gradients of the training loss at the network's weights at that time, for up to ``most`` batches."""
    net.train()
    for images, labels in itertools.islice(data.batches(data.train), most):
        loss = F.cross_entropy(net(images), labels)
        yield flat(torch.autograd.grad(loss, list(net.parameters())))


def flat(parts: Iterable[Tensor]) -> Tensor:
    """(P,) all numbers of all parts."""
    return torch.cat([part.reshape(-1) for part in parts])


def measure_noise(nets: Sequence[ResNet20], data: Data) -> dict[str, float]:
    """The gradient-noise fraction of a training batch: how much of its squared norm other batches do not share.

    For n batches' gradients g_i at the same weights, (|sum g_i|^2 - sum |g_i|^2) / (n (n - 1)) estimates the squared
    norm of the gradient of all images without bias; the rest of mean |g_i|^2 is noise. There are two batches at least.
    """
    each = torch.stack(list(gradients(nets[0], data, NOISE_BATCHES)))
    n, squared = len(each), each.square().sum()
    of_all = (each.sum(0).square().sum() - squared) / (n * (n - 1))
    return {"noise": float(1 - of_all / (squared / n))}


def measure_lines(nets: Sequence[ResNet20], data: Data) -> dict[str, Any]:
    """The training loss along straight lines between weights (Goodfellow et al. 2015, Xing et al. 2018).

    On the first images of the training subset, not augmented; batch normalization takes its statistics anew at each
    point, from these images. "with" and "without": at "along" of the way from the weights before the drop to those one
    epoch later. "steps": at "across" of the way of single steps of SGD, one after the other, each of a batch and with
    the settings of training; "small_steps" as many at the learning rate after the drop. With momentum, or Muon, there
    is no single step, and both are empty.
    """
    settings, net = data.settings, nets[0].train()
    images, labels = normalize(data.subset[0][:LINE_IMAGES]), data.subset[1][:LINE_IMAGES]
    start, *ends = (flat(net.parameters()).detach() for net in nets)

    @torch.no_grad()
    def losses(origin: Tensor, way: Tensor, at: Sequence[float]) -> list[float]:
        each = []
        for part in at:
            vector_to_parameters(origin + part * way, net.parameters())
            each.append(float(F.cross_entropy(net(images), labels)))
        vector_to_parameters(origin, net.parameters())
        return each

    def steps(lr: float) -> list[list[float]]:
        each, weights = [], start
        vector_to_parameters(start, net.parameters())
        for gradient in gradients(net, data, LINE_STEPS if is_plain_sgd else 0):
            step = -lr * (gradient + settings["weight_decay"] * weights)
            each.append(losses(weights, step, ACROSS))
            weights = weights + step
            vector_to_parameters(weights, net.parameters())
        return each

    with_drop, without = (losses(start, end - start, ALONG) for end in ends)
    is_plain_sgd = not settings["momentum"] and settings.get("optimizer", "sgd") == "sgd"
    (lr_after,) = settings["milestones"].values()
    content = {"images": len(labels), "along": ALONG, "with": with_drop, "without": without}
    return {**content, "across": ACROSS, "steps": steps(settings["lr"]), "small_steps": steps(lr_after)}
