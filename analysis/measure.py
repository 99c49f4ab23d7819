"""Networks and images of finished runs, from which the report measures what the runs have not recorded."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from analysis.files import read_json, write_json
from analysis.runs import FinishedRun, Row
from datamodules import CIFAR10DataModule
from lit_models import ResNet20
from lit_models.resnet20 import resnet20_of

Nets = Sequence[ResNet20]
Measure = Callable[[Nets, CIFAR10DataModule, FinishedRun], dict[str, Any]]


def measured(name: str, weights: Sequence[tuple[FinishedRun, int]], data_root: str | None, measure: Measure) -> Row:
    """What ``measure`` gives for the networks of these runs after so many epochs, and for the first run's data, kept in
    ``name``.json of the first run. {} where a checkpoint or the images are missing, and for own pictures."""
    run = weights[0][0]
    if run.summary.get("data") == "folder":  # which may hold others than those that the run was trained on
        return {}
    path, end = run.path / f"{name}.json", {"train_loss": run.epochs[-1]["train_loss"]}
    if path.exists() and (kept := read_json(path)).items() >= end.items():  # else the run was continued
        return kept
    try:
        nets = [network_after(*each) for each in weights]
        same = {name: run.summary["settings"][name] for name in ("batch_size", "val_size", "max_shift", "padding_mode")}
        data = CIFAR10DataModule(data_root, download=False, dataset=run.summary["data"], **same)
        data.prepare_data()
        data.setup()
    except (FileNotFoundError, MisconfigurationException):
        return {}
    content = end | measure(nets, data, run)
    write_json(path, content)
    return content


def network_after(run: FinishedRun, epochs: int) -> ResNet20:
    """The network after so many epochs. Raises FileNotFoundError where its checkpoint is not kept."""
    name = "last" if epochs == len(run.epochs) else f"end_of_epoch{epochs - 1}"
    content = torch.load(run.path / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True)
    if len(content["callbacks"]["ClassifierRecord"]["epochs"]) != epochs:
        raise FileNotFoundError("the last checkpoint is of a later epoch: the run was continued")
    return resnet20_of(content["state_dict"])


@torch.inference_mode()
def accuracy(net: ResNet20, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    return torch.cat([net(images).argmax(1) == labels for images, labels in batches]).float().mean().item()
