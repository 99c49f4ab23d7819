"""What the report measures of a run's weights, beyond what the run itself has recorded."""

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from analysis.classifier_findings import epoch_of_drop
from analysis.files import read_json, write_json
from datamodules import CIFAR10DataModule
from datamodules.augmentation import PADDING, crop_and_flip, normalize
from datamodules.cifar10 import TRAIN_SUBSET
from lit_models import ResNet20

Images = tuple[Tensor, Tensor]  # (N, 32, 32, 3) uint8, (N,) int64 labels


def measured(path: Path, summary: Mapping[str, Any], what: Literal["gap", "noise"], data_root: str) -> dict[str, float]:
    """What is measured here of the run in ``path``, once, into its gap.json or noise.json; {} where it cannot be.

    "gap" gives the accuracies "batch_norm" and "augmented" of the final weights, see ``measure_gap``; "noise" the
    gradient-noise fraction "noise" of the weights before the learning-rate drop. Either needs the run's checkpoint of
    then, its images, and an epoch that ended with images of 32 pixels throughout.
    """
    kept_in, epochs = path / f"{what}.json", summary["epochs"]
    end = {name: epochs[-1][name] for name in ("epoch", "train_loss")}  # a run may be extended after it was measured
    with contextlib.suppress(OSError, ValueError):
        kept = read_json(kept_in)
        if isinstance(kept, dict) and kept.items() >= end.items():
            return kept
    done = len(epochs) if what == "gap" else epoch_of_drop(epochs) or 0
    net = network(path, summary, done) if done and is_at_full_size(summary, done - 1) else None
    images = training_images(summary, data_root) if net is not None else None
    if net is None or images is None:
        return {}
    settings = summary["settings"]
    measure = measure_gap if what == "gap" else measure_noise
    found = end | measure(net, images, settings["batch_size"], settings["max_shift"])
    with contextlib.suppress(OSError):  # a folder that cannot be written: measured anew the next time
        write_json(kept_in, found)
    return found


def is_at_full_size(summary: Mapping[str, Any], epoch: int) -> bool:
    """Whether all training images of the run's epoch at this index had 32 pixels, as "image_sizes" has it."""
    sizes = summary["settings"].get("image_sizes") or {}  # {from this fraction of the training on: pixels}
    begin, end = epoch / len(summary["epochs"]), (epoch + 1) / len(summary["epochs"])
    steps = sorted((float(start), pixels) for start, pixels in sizes.items())
    at_begin = [pixels for start, pixels in steps if start <= begin][-1:]
    return all(pixels == 32 for pixels in (*at_begin, *(p for start, p in steps if begin < start < end)))


def network(path: Path, summary: Mapping[str, Any], done: int) -> ResNet20 | None:
    """The network of the run in ``path`` after so many of its epochs; None without a valid checkpoint of then."""
    epochs = summary["epochs"]
    name = "last" if done == len(epochs) else f"end_of_epoch{epochs[done - 1]['epoch']}"
    file = path / "checkpoints" / f"{name}.ckpt"
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


def training_images(summary: Mapping[str, Any], data_root: str) -> Images | None:
    """What the run was trained on, without the images that it held out; None where they are not at hand."""
    settings = summary["settings"]
    try:
        data = CIFAR10DataModule(data_root, settings["batch_size"], download=False, dataset=summary["data"])
        data.prepare_data()
        data.setup()
    except (OSError, MisconfigurationException):
        return None
    images, labels = data.train
    kept = len(labels) - settings["val_size"]
    return images[:kept], labels[:kept]


def augmented(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """(N, 32, 32, 3) uint8 images, each shifted by up to ``max_shift`` pixels and flipped or not, at random."""
    shift = PADDING + torch.randint(-max_shift, max_shift + 1, (len(images), 2), generator=generator)
    return crop_and_flip(images, shift, torch.randint(2, (len(images),), generator=generator).bool())


def measure_gap(net: ResNet20, data: Images, batch_size: int, max_shift: int) -> dict[str, float]:
    """Accuracies on the training subset, augmented: in train mode ("batch_norm") and in eval mode ("augmented")."""
    images, labels = (part[:TRAIN_SUBSET] for part in data)
    batches = augmented(images, max_shift, torch.Generator().manual_seed(0)).split(batch_size)

    @torch.inference_mode()
    def accuracy() -> float:
        predicted = torch.cat([net(normalize(batch)).argmax(1) for batch in batches])
        return float((predicted == labels).float().mean())

    net.eval()
    in_eval_mode = accuracy()
    net.train()  # normalizes by the batch; its running averages change too, and are not used again
    return {"batch_norm": accuracy(), "augmented": in_eval_mode}


def measure_noise(net: ResNet20, data: Images, batch_size: int, max_shift: int, most: int = 40) -> dict[str, float]:
    """The gradient-noise fraction of a training batch: how much of its squared norm other batches do not share.

    Of n batches' gradients g_i at the same weights, (|sum g_i|^2 - sum |g_i|^2) / (n (n - 1)) estimates the squared
    norm of the gradient of all images without bias; the rest of mean |g_i|^2 is noise. {} of a single batch.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data[1]), generator=generator).split(batch_size)[:most]
    n = len(order)
    if n < 2:
        return {}
    net.train()
    parameters = list(net.parameters())
    total, squared = torch.zeros(sum(p.numel() for p in parameters)), torch.zeros(())
    for index in order:
        logits = net(normalize(augmented(data[0][index], max_shift, generator)))
        gradients = torch.autograd.grad(F.cross_entropy(logits, data[1][index]), parameters)
        gradient = torch.cat([part.reshape(-1) for part in gradients])
        total, squared = total + gradient, squared + gradient.square().sum()
    of_all = (total.square().sum() - squared) / (n * (n - 1))
    return {"noise": float(1 - of_all / (squared / n))}
