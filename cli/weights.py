"""Loads a trained network: from a run's checkpoint, a safetensors file of export.py, or public weights of ResNet-20."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import lit_models
from cli.command import UsageError
from datamodules.cifar10 import CLASSES
from lit_models import FunctionRegressor, ResNet20

SHIPPED = Path(lit_models.__file__).with_name("resnet20.safetensors")  # written by export.py
# the images that the weights of github.com/akamaster/pytorch_resnet_cifar10 are trained on
PUBLIC: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "classes": CLASSES}


class PictureClassifier(nn.Module):
    """(N, 3, 32, 32) float32 RGB from 0 to 1 -> (N, C) logits; subtracts ``mean`` and divides by ``std`` itself."""

    def __init__(self, net: ResNet20, mean: Sequence[float], std: Sequence[float], classes: Sequence[str]) -> None:
        super().__init__()
        self.net, self.mean, self.std, self.classes = net, mean, std, classes
        # the arithmetic of datamodules.augmentation.normalize, for the same results to the last bit
        self.offset = torch.tensor(mean)[:, None, None] * 255
        self.scale = 1 / (torch.tensor(std)[:, None, None] * 255)

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images * 255 - self.offset) * self.scale)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """(N, 32, 32, 3) uint8 -> (N, C), in batches of 128."""
        return torch.cat([self(part.permute(0, 3, 1, 2) / 255) for part in pixels.split(128)])


def load(path: Path) -> PictureClassifier | FunctionRegressor:
    """The network in the file, in eval mode.

    Raises:
        UsageError: there is no such file, it holds no such network, or a classifier's weights are not finite.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}")
    try:
        is_safe = path.suffix == ".safetensors"
        content = read_safetensors(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        settings = content.get("hyper_parameters", {})
        if "measure_at" not in settings:
            return classifier_of(content, path).eval()
        curve = FunctionRegressor(**settings)
        curve.load_state_dict(content["state_dict"])
        return curve.eval()
    except UsageError:
        raise
    except Exception as error:  # torch raises anything where a file is damaged
        # torch's words begin with the advice to run the code in the file
        reason = shorten(str(error).rpartition("WeightsUnpickler error:")[2], 160, placeholder=" ...")
        raise UsageError(f"{path} holds no network of this project ({type(error).__name__}: {reason})") from None


def read_safetensors(path: Path) -> dict[str, Any]:
    """The content, arranged as in a checkpoint. Prints the test accuracy of the shipped weights."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}
    if path == SHIPPED:
        print(f"Shipped weights: test accuracy {float(metadata['test_acc']):.2%}", file=sys.stderr)
    return {"state_dict": weights, "data": {name: json.loads(metadata[name]) for name in PUBLIC if name in metadata}}


def classifier_of(content: dict[str, Any], path: Path) -> PictureClassifier:
    """The network with the mean, std and classes that the data module, or export.py, has stored beside its weights.

    Raises:
        UsageError: a Lightning checkpoint lacks them, or the weights are not finite.
        RuntimeError: the weights are those of another network.
    """
    parts = [part for part in content.values() if isinstance(part, dict)]
    data = next((part for part in parts if part.keys() >= PUBLIC.keys()), PUBLIC)
    if data is PUBLIC and "pytorch-lightning_version" in content:
        raise UsageError(f"{path} lacks the mean, std and classes of its images, which CIFAR10DataModule stores")
    # A LightningModule, DDP, averaging and torch.compile put names before the network's own.
    weights = content.get("state_dict", content)
    weights = {re.sub(r"\b(net|module|_orig_mod)\.", "", name): value for name, value in weights.items()}
    weights.pop("n_averaged", None)  # beside averaged weights
    net = ResNet20(num_classes=len(data["classes"]))
    net.load_state_dict(weights)
    if not all(values.isfinite().all() for values in net.state_dict().values()):
        raise UsageError(f"{path} has weights that are nan or infinite: its training diverged; take another run's")
    if data is PUBLIC:
        print(f"{path} has no mean, std and classes: takes akamaster/pytorch_resnet_cifar10's", file=sys.stderr)
    return PictureClassifier(net, data["mean"], data["std"], data["classes"])
