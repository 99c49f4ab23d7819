"""Networks and images of finished runs, from which the report measures what the runs have not recorded."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from analysis.files import read_json, write_json
from analysis.runs import Run
from datamodules import CIFAR10DataModule
from datamodules.augmentation import Augmentation
from datamodules.batches import TrainBatches
from datamodules.cifar10 import TRAIN_SUBSET
from lit_models import ResNet20

Images = tuple[Tensor, Tensor]  # (N, 32, 32, 3) uint8, (N,) int64 labels


@dataclass(frozen=True)
class Data:
    """What a run was trained on, the fixed subset of it, and what each epoch was measured on."""

    train: Images
    subset: Images
    validation: Images
    settings: Mapping[str, Any]

    def batches(self, part: Images) -> TrainBatches:
        """An epoch as in training: (N, 3, 32, 32) float inputs of the network, shuffled and augmented, and labels."""
        settings = self.settings
        augmentation = Augmentation(settings["max_shift"], settings.get("padding_mode") == "reflect")
        return TrainBatches(*part, settings["batch_size"], seed=0, augmentation=augmentation)


Measure = Callable[[Sequence[ResNet20], Data], dict[str, Any]]


def measured(name: str, weights: Sequence[tuple[Run, int]], data_root: str, measure: Measure) -> dict[str, Any]:
    """What ``measure`` gives for the networks of these runs after so many epochs, kept in ``name``.json of the first.

    {} where it is not kept, and a checkpoint or the images are missing.
    """
    run = weights[0][0]
    end = {name: run.summary["epochs"][-1][name] for name in ("epoch", "train_loss")}  # a run may be extended later
    for other, epochs in weights:
        if other is not run:
            end["train_loss_without"] = other.summary["epochs"][epochs - 1]["train_loss"]
    path = run.path / f"{name}.json"
    if path.exists() and (kept := read_json(path)).items() >= end.items():
        return kept
    nets = [net for each in weights if (net := network_after(*each))]
    data = data_of(run, data_root) if len(nets) == len(weights) else None
    if data is None:
        return {}
    content = end | measure(nets, data)
    with contextlib.suppress(OSError):  # a folder that cannot be written: measured again the next time
        write_json(path, content)
    return content


def network_after(run: Run, epochs: int) -> ResNet20 | None:
    """The network after so many epochs; None without its checkpoint, or where images grew while it was trained."""
    rows = run.summary["epochs"]
    name = "last" if epochs == len(rows) else f"end_of_epoch{rows[epochs - 1]['epoch']}"
    file = run.path / "checkpoints" / f"{name}.ckpt"
    if run.summary["settings"].get("image_sizes") or not file.exists():
        return None
    content = torch.load(file, map_location="cpu", weights_only=True)
    recorded = content["callbacks"]["ClassifierRecord"]["epochs"]
    if [row["train_loss"] for row in recorded] != [row["train_loss"] for row in rows[:epochs]]:
        return None  # the checkpoint of another run
    net = ResNet20().to(memory_format=torch.channels_last)
    net.load_state_dict({name.removeprefix("net."): value for name, value in content["state_dict"].items()})
    return net


def data_of(run: Run, data_root: str) -> Data | None:
    """None where the images are not at hand."""
    settings = run.summary["settings"]
    data = CIFAR10DataModule(
        data_root, settings["batch_size"], settings["val_size"], download=False, dataset=run.summary["data"]
    )
    try:
        data.prepare_data()
    except MisconfigurationException:
        return None
    data.setup()
    train, validation = data.train_dataloader(), data.val_dataloader()[0]
    images, labels = train.images, train.labels
    subset = images[:TRAIN_SUBSET], labels[:TRAIN_SUBSET]
    most = run.summary["val_batches"] * settings["batch_size"]  # images that each epoch was measured on
    return Data((images, labels), subset, (validation.images[:most], validation.labels[:most]), settings)
