"""What the report measures of a run's weights, beyond what the run itself has recorded."""

import contextlib
import itertools
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.utils import vector_to_parameters
from torch.optim.swa_utils import update_bn

from analysis.classifier_findings import epoch_of_drop
from analysis.files import read_json, write_json
from analysis.runs import Run
from datamodules import CIFAR10DataModule
from datamodules.augmentation import crop_and_flip, normalize
from datamodules.batches import TrainBatches
from datamodules.cifar10 import TRAIN_SUBSET
from lit_models import ResNet20

LINE_IMAGES, LINE_STEPS, NOISE_BATCHES, RENEWAL_BATCHES = 2_000, 4, 40, 80
ALONG = (-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25)  # 0: the weights before the drop, 1: those one epoch later
ACROSS = (-1, -0.5, 0, 0.25, 0.5, 0.75, 1, 1.5, 2)  # 0: before the step, 1: after it

Images = tuple[Tensor, Tensor]  # (N, 32, 32, 3) uint8, (N,) int64 labels


def measured(
    what: Literal["gap", "noise", "lines", "renewed"], data_root: str, run: Run, without: Run | None = None
) -> dict[str, Any]:
    """What is measured here of the run, once, into its gap.json, ...; {} where it cannot be.

    See ``measure_gap``, of the final weights; ``measure_noise``, of those before the learning-rate drop; and
    ``measure_lines`` and ``measure_renewed``, of those and the ones an epoch later, with the drop and in the run
    ``without`` it. Each needs the runs' checkpoints of then, the images, and an epoch that ended with images of 32
    pixels throughout.
    """
    kept_in, epochs = run.path / f"{what}.json", run.summary["epochs"]
    at = epoch_of_drop(epochs) or 0
    wanted = [(run, len(epochs) if what == "gap" else at)]
    end = {name: epochs[-1][name] for name in ("epoch", "train_loss")}  # a run may be extended after it was measured
    if without:
        wanted += [(run, at + 1), (without, at + 1)]
        end["train_loss_without"] = without.summary["epochs"][at]["train_loss"]
    with contextlib.suppress(OSError, ValueError):
        kept = read_json(kept_in)
        if isinstance(kept, dict) and kept.items() >= end.items():
            return kept
    nets = [network(*one) for one in wanted]
    images = None if None in nets else images_of(run.summary, data_root)
    if images is None:
        return {}
    measures: dict[str, Callable[..., dict[str, Any]]]
    measures = {"gap": measure_gap, "noise": measure_noise, "lines": measure_lines, "renewed": measure_renewed}
    settings = run.summary["settings"] | {"lr": epochs[at - 1]["lr"], "lr_after": epochs[at]["lr"]}  # the drop's
    found = end | measures[what](*nets, *(images if what == "renewed" else images[:1]), settings)
    with contextlib.suppress(OSError):  # a folder that cannot be written: measured anew the next time
        write_json(kept_in, found)
    return found


def is_at_full_size(summary: Mapping[str, Any], epoch: int) -> bool:
    """Whether all training images of the run's epoch at this index had 32 pixels, as "image_sizes" has it."""
    sizes = summary["settings"].get("image_sizes") or {}  # {from this fraction of the training on: pixels}
    steps = sorted(({0.0: 32} | {float(start): pixels for start, pixels in sizes.items()}).items())
    stops = [start for start, _ in steps[1:]] + [1.0]
    begin, end = epoch / len(summary["epochs"]), (epoch + 1) / len(summary["epochs"])
    in_epoch = [size for (start, size), stop in zip(steps, stops, strict=True) if start < end and begin < stop]
    return set(in_epoch) == {32}


def network(run: Run, done: int) -> ResNet20 | None:
    """The network of the run after so many of its epochs, the last of them with images of 32 pixels.

    None without a valid checkpoint of then.
    """
    epochs = run.summary["epochs"]
    if not done or not is_at_full_size(run.summary, done - 1):
        return None
    name = "last" if done == len(epochs) else f"end_of_epoch{epochs[done - 1]['epoch']}"
    file = run.path / "checkpoints" / f"{name}.ckpt"
    try:
        with zipfile.ZipFile(file) as archive:
            is_broken = archive.testzip() is not None  # torch.load looks at no checksums
        content = torch.load(file, map_location="cpu", weights_only=True)
        losses = [row["train_loss"] for row in content["callbacks"]["ClassifierRecord"]["epochs"]]
        net = ResNet20().to(memory_format=torch.channels_last)
        net.load_weights(content["state_dict"])
    except Exception:  # a file can be broken in any way
        return None
    is_of_then = losses == [row["train_loss"] for row in epochs[:done]]
    return net if is_of_then and not is_broken else None


def images_of(summary: Mapping[str, Any], data_root: str) -> tuple[Images, Images] | None:
    """What the run was trained on, and what each epoch was measured on; None where they are not at hand."""
    settings, dataset = summary["settings"], summary["data"]
    data = CIFAR10DataModule(data_root, settings["batch_size"], settings["val_size"], download=False, dataset=dataset)
    try:
        data.prepare_data()
        data.setup()
    except (OSError, MisconfigurationException):
        return None
    train, measured_on = data.train_dataloader(), data.val_dataloader()[0]
    return (train.images, train.labels), (measured_on.images, measured_on.labels)


def most_measured(images: int, settings: Mapping[str, Any]) -> int:
    """How many of so many images the run itself has measured after each epoch."""
    batch_size, limit = settings["batch_size"], settings.get("limit_val_batches")
    limit = int(limit * math.ceil(images / batch_size)) if isinstance(limit, float) else limit
    return images if limit is None else min(images, limit * batch_size)


def training_batches(data: Images, settings: Mapping[str, Any]) -> Iterator[Images]:
    """An epoch as in training: the images shuffled, cropped, flipped and normalized."""
    batches = TrainBatches(*data, settings["batch_size"], seed=0, max_shift=settings["max_shift"])
    reflect = settings.get("padding_mode") == "reflect"  # older runs do not have it
    for images, labels, shift, flip in batches:
        yield normalize(crop_and_flip(images, shift, flip, reflect)), labels


def measure_gap(net: ResNet20, data: Images, settings: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies on the training subset, augmented: in train mode ("batch_norm") and in eval mode ("augmented").

    On as much of the subset as the run itself has measured in eval mode.
    """
    most = most_measured(TRAIN_SUBSET, settings)
    subset = (data[0][:most], data[1][:most])

    @torch.inference_mode()
    def accuracy() -> float:
        batches = training_batches(subset, settings)
        return float(torch.cat([net(images).argmax(1) == labels for images, labels in batches]).float().mean())

    net.eval()
    in_eval_mode = accuracy()
    net.train()  # normalizes by the batch; its running averages change too, and are not used again
    return {"batch_norm": accuracy(), "augmented": in_eval_mode}


def measure_renewed(
    before: ResNet20,
    dropped: ResNet20,
    stayed: ResNet20,
    data: Images,
    measured_on: Images,
    settings: Mapping[str, Any],
) -> dict[str, float]:
    """Accuracies of the weights "before" the drop and one epoch later, "with" and "without" it, in eval mode.

    On the images that the run has measured, but with batch normalization's running averages renewed: means over up to
    80 training "batches" at the same weights (Wu and Johnson 2021, arXiv 2105.07576), not moving averages over the last
    steps, in which the weights have changed.
    """
    most, batch_size = most_measured(len(measured_on[1]), settings), settings["batch_size"]
    images, labels = measured_on[0][:most], measured_on[1][:most]
    found: dict[str, float] = {"batches": min(RENEWAL_BATCHES, math.ceil(len(data[1]) / batch_size))}
    for name, net in (("before", before), ("with", dropped), ("without", stayed)):
        update_bn(itertools.islice(training_batches(data, settings), RENEWAL_BATCHES), net)
        net.eval()
        with torch.inference_mode():
            predicted = torch.cat([net(normalize(part)).argmax(1) for part in images.split(batch_size)])
        found[name] = float((predicted == labels).float().mean())
    return found


def gradients(net: ResNet20, data: Images, settings: Mapping[str, Any], most: int) -> Iterator[Tensor]:
    """(P,) of the training loss at the network's weights of then, of up to ``most`` batches of an epoch."""
    net.train()
    for images, labels in itertools.islice(training_batches(data, settings), most):
        loss = F.cross_entropy(net(images), labels)
        yield flat(torch.autograd.grad(loss, list(net.parameters())))


def flat(parts: Iterable[Tensor]) -> Tensor:
    """(P,) all numbers of all parts."""
    return torch.cat([part.reshape(-1) for part in parts])


def measure_noise(net: ResNet20, data: Images, settings: Mapping[str, Any]) -> dict[str, float]:
    """The gradient-noise fraction of a training batch: how much of its squared norm other batches do not share.

    Of n batches' gradients g_i at the same weights, (|sum g_i|^2 - sum |g_i|^2) / (n (n - 1)) estimates the squared
    norm of the gradient of all images without bias; the rest of mean |g_i|^2 is noise. {} of a single batch.
    """
    each = torch.stack(list(gradients(net, data, settings, NOISE_BATCHES)))
    n, squared = len(each), each.square().sum()
    if n < 2:
        return {}
    of_all = (each.sum(0).square().sum() - squared) / (n * (n - 1))
    return {"noise": float(1 - of_all / (squared / n))}


def measure_lines(
    before: ResNet20, dropped: ResNet20, stayed: ResNet20, data: Images, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The training loss along straight lines between weights (Goodfellow et al. 2015, Xing et al. 2018).

    On the first images of the training subset, not augmented; batch normalization takes its statistics anew at each
    point, from these images. "with" and "without": at "along" of the way from ``before`` to ``dropped`` and ``stayed``.
    "steps": at "across" of the way of single steps of SGD from ``before``, one after the other, each of a batch and
    with the settings of training; "small_steps" as many from ``before`` at the learning rate after the drop. With
    momentum, or Muon, there is no single step, and both are empty.
    """
    images, labels = normalize(data[0][:LINE_IMAGES]), data[1][:LINE_IMAGES]
    start, *ends = (flat(net.parameters()).detach() for net in (before, dropped, stayed))

    @torch.no_grad()
    def losses(origin: Tensor, way: Tensor, at: Sequence[float]) -> list[float]:
        found = []
        for part in at:
            vector_to_parameters(origin + part * way, before.parameters())
            found.append(float(F.cross_entropy(before(images), labels)))
        vector_to_parameters(origin, before.parameters())
        return found

    before.train()
    with_drop, without = (losses(start, end - start, ALONG) for end in ends)
    is_plain_sgd = not settings["momentum"] and settings.get("optimizer", "sgd") == "sgd"

    def steps(lr: float) -> list[list[float]]:
        found, weights = [], start
        vector_to_parameters(start, before.parameters())
        for gradient in gradients(before, data, settings, LINE_STEPS if is_plain_sgd else 0):
            step = -lr * (gradient + settings["weight_decay"] * weights)
            found.append(losses(weights, step, ACROSS))
            weights = weights + step
            vector_to_parameters(weights, before.parameters())
        return found

    content = {"images": len(labels), "along": ALONG, "with": with_drop, "without": without}
    return {**content, "across": ACROSS, "steps": steps(settings["lr"]), "small_steps": steps(settings["lr_after"])}
