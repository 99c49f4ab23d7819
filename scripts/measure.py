"""What report.py measures of a run's weights, beyond what the run has told itself."""

import contextlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from callbacks.atomic import write_json
from callbacks.classifier_answers import Rows, epoch_of_drop
from datamodules import CIFAR10DataModule
from datamodules.cifar10 import PROBE_SIZE, crop_and_flip, normalize
from datamodules.download import DataError
from lit_models import ResNet20
from scripts.cli import UserError
from scripts.run_dir import Checkpoint


def measured(path: Path, summary: Mapping[str, Any], what: Literal["gap", "noise"], data_root: str) -> dict[str, float]:
    """What is measured here of a run's weights, once, into its gap.json or noise.json; {} where it cannot be.

    That needs the run's checkpoints and images, and the augmentation with which it was trained: not that of fast.
    """
    kept_in, epochs = path / f"{what}.json", summary["epochs"]
    end = {name: epochs[-1][name] for name in ("epoch", "train_loss")}  # a run may go on after it was measured
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(kept_in.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and kept.items() >= end.items():
            return kept
    if summary["recipe"] == "fast" or "batch_size" not in summary:  # older summaries do not tell it
        return {}
    try:
        net = network(path, epochs, len(epochs) if what == "gap" else epoch_of_drop(epochs) or 0)
        data = CIFAR10DataModule(data_root, summary["batch_size"], download=False, dataset=summary["data"])
        data.prepare_data()
        data.setup("fit")
        found = end | (measure_gap if what == "gap" else measure_noise)(net, data)
    except (OSError, DataError, UserError):
        return {}
    with contextlib.suppress(OSError):  # a folder that cannot be written: measured anew the next time
        write_json(kept_in, found)
    return found


def network(path: Path, epochs: Rows, done: int) -> ResNet20:
    """The run's network after so many of its epochs. Raises UserError without a whole checkpoint of then."""
    name = "last" if done == len(epochs) else f"end_of_epoch{epochs[done - 1]['epoch']}"
    path = path / "checkpoints" / f"{name}.ckpt"
    Checkpoint.read(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    its_epochs = content["callbacks"]["EpochRecord"]["epochs"]
    if [row["train_loss"] for row in its_epochs] != [row["train_loss"] for row in epochs[:done]]:
        raise UserError(f"{path} is not of the run's epoch {done}: it has gone on")
    net = ResNet20().to(memory_format=torch.channels_last)
    net.load_weights(content["state_dict"])
    return net


def measure_gap(net: ResNet20, data: CIFAR10DataModule) -> dict[str, float]:
    """Accuracies of a run's last weights on the probed training images, augmented, in train and in eval mode."""
    images, labels = (part[:PROBE_SIZE] for part in data.train)
    generator = torch.Generator().manual_seed(0)
    shift = torch.randint(9, (len(labels), 2), generator=generator)
    flip = torch.randint(2, (len(labels),), generator=generator).bool()
    augmented = crop_and_flip(images, shift, flip)

    @torch.inference_mode()
    def accuracy() -> float:
        answers = torch.cat([net(normalize(part)).argmax(1) for part in augmented.split(data.batch_size)])
        return float((answers == labels).float().mean())

    net.eval()
    in_eval_mode = accuracy()
    net.train()  # normalises by the batch; its running averages change too, and are not used again
    return {"batch_norm": accuracy(), "augmented": in_eval_mode}


def measure_noise(net: ResNet20, data: CIFAR10DataModule, most: int = 40) -> dict[str, float]:
    """The part of a training batch's gradient, by squared length, that is noise, at the weights before the rate falls.

    Of n batches' gradients g_i at the same weights, (|sum g_i|^2 - sum |g_i|^2) / (n (n - 1)) estimates the squared
    length of the gradient of all images without bias; the rest of mean |g_i|^2 is noise. {} of a single batch.
    """
    net.train()
    total, squared = torch.zeros(sum(p.numel() for p in net.parameters())), torch.zeros(())
    batches = data.train_dataloader()
    n = min(most, len(batches))
    if n < 2:
        return {}
    for batch in itertools.islice(batches, n):
        images, labels = data.on_after_batch_transfer(batch, 0)
        gradients = torch.autograd.grad(F.cross_entropy(net(images), labels), list(net.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in gradients])
        total, squared = total + gradient, squared + gradient.square().sum()
    of_all = (total.square().sum() - squared) / (n * (n - 1))
    return {"noise": float(1 - of_all / (squared / n))}
