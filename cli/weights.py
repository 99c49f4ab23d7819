"""Loads a trained network: from a run's checkpoint, a safetensors file of export.py, or public weights of ResNet-20."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from cli.command import UsageError
from datamodules.cifar10 import CLASSES
from lit_models import FunctionRegressor, ResNet20
from lit_models.resnet20 import resnet20_of
from lit_models.resnet20_classifier import SHIPPED

Network = TypeVar("Network", bound=nn.Module)
# the images that the weights of github.com/akamaster/pytorch_resnet_cifar10 are trained on
PUBLIC: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "classes": CLASSES}


class PictureClassifier(nn.Module):
    """(N, 3, 32, 32) float32 RGB from 0 to 1 -> (N, C) logits; subtracts ``mean`` and divides by ``std`` itself."""

    def __init__(self, net: ResNet20, mean: Sequence[float], std: Sequence[float], classes: Sequence[str]) -> None:
        super().__init__()
        self.net, self.mean, self.std, self.classes = net, mean, std, list(classes)
        # the arithmetic of datamodules.augmentation.normalize, for the same results to the last bit
        self.offset = torch.tensor(mean)[:, None, None] * 255
        self.scale = 1 / (torch.tensor(std)[:, None, None] * 255)

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images * 255 - self.offset) * self.scale)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """(N, 32, 32, 3) uint8 -> (N, C), in batches of 128."""
        return torch.cat([self(part.permute(0, 3, 1, 2) / 255) for part in pixels.split(128)])


def load(path: Path, kind: type[Network]) -> Network:
    """The network in the file, in eval mode. Raises UsageError where there is none of this kind."""
    try:
        network = network_of(read(path), path)
    except Exception as error:  # torch raises anything where a file is damaged
        # torch's words begin with the advice to run the code in the file
        words = str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")[0]
        reason = shorten(words, 160, placeholder=" ...")
        raise UsageError(f"{path} holds no network of this project ({type(error).__name__}: {reason})") from None
    if not isinstance(network, kind):
        words = f"{path} holds a {type(network).__name__}; a {kind.__name__} is needed"
        raise UsageError(f"{words}: give another --ckpt_path")
    return network.eval()


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, or of a safetensors file arranged as in one."""
    if path.suffix != ".safetensors":
        return torch.load(path, "cpu", weights_only=True)
    with safe_open(path, "pt") as file:
        facts = {name: json.loads(text) for name, text in file.metadata().items() if name != "command"}
        weights = {name: file.get_tensor(name) for name in file.keys()}
    if path == SHIPPED:
        print(f"Shipped weights: test accuracy {facts['test_acc']:.2%}", file=sys.stderr)
    return {"state_dict": weights, "data": facts}


def network_of(content: dict[str, Any], path: Path) -> PictureClassifier | FunctionRegressor:
    weights, settings = content.get("state_dict", content), content.get("hyper_parameters", {})
    if "measure_at" in settings:
        curve = FunctionRegressor(**settings)
        curve.load_state_dict(weights)
        return curve
    # in a checkpoint under the name of the data module's class
    data = next((part for part in content.values() if isinstance(part, dict) and part.keys() >= PUBLIC.keys()), PUBLIC)
    weights = {name.removeprefix("module."): weights[name] for name in weights}  # of akamaster's DataParallel
    net = resnet20_of(weights, len(data["classes"]))
    if data is PUBLIC:
        print(f"{path} has no mean, std and classes: takes akamaster/pytorch_resnet_cifar10's", file=sys.stderr)
    return PictureClassifier(net, data["mean"], data["std"], data["classes"])
