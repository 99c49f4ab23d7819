"""What evaluate.py, export.py and predict.py share: the network of a checkpoint, and pictures read for it."""

import json
import pickle
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException as UsageError
from safetensors import safe_open
from torch import Tensor, nn

import lit_models
from datamodules.cifar10 import CLASSES
from datamodules.pictures import read_pictures
from lit_models import FunctionRegressor, ResNet20

# the project's own weights, made by export.py: which run they are from is in the file's metadata
SHIPPED = Path(lit_models.__file__).with_name("resnet20.safetensors")
# what the weights of github.com/akamaster/pytorch_resnet_cifar10 are trained with
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "classes": CLASSES}


class PictureClassifier(nn.Module):
    """(N, 3, 32, 32) float32 RGB from 0 to 1 -> (N, C) logits; the normalization is inside.

    Args:
        net: the network.
        mean, std: of its training images, for each color, from 0 to 1.
        classes: their names.

    Raises:
        ValueError: mean or std is not of that kind.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, net: ResNet20, mean: Sequence[float], std: Sequence[float], classes: Sequence[str]) -> None:
        super().__init__()
        self.net, self.mean, self.std, self.classes = net, list(mean), list(std), [str(name) for name in classes]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
                raise ValueError(f"its {name} is {values}, not three numbers from 0 to 1")
        # the arithmetic of datamodules.augmentation.normalize, for the same results to the last bit
        self.register_buffer("offset", torch.tensor(mean)[:, None, None] * 255)
        self.register_buffer("scale", 1 / (torch.tensor(std)[:, None, None] * 255))

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images * 255 - self.offset) * self.scale)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """(N, 32, 32, 3) uint8 -> (N, C), by batches of 128."""
        return torch.cat([self(part.permute(0, 3, 1, 2) / 255) for part in pixels.split(128)])


def load(path: Path) -> PictureClassifier | FunctionRegressor:
    """The network of a checkpoint or safetensors file, or ResNet-20 from public weights.

    Raises:
        UsageError: there is no such file, it is neither, or a classifier's weights are not finite.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}: give another --ckpt_path")
    try:
        with open(path, "rb") as file:
            is_safe = file.read(9)[8:] == b"{"  # its header, after the header's length
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says what they do
            content = read_safetensors(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        return network_of(content, path).eval()
    except UsageError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError | EOFError | KeyError):  # torch advises to run the file's code
            reason = "it is not a file of torch.save"
        if "GLOBAL" in str(error) or "TorchScript" in str(error):  # a class or function, in torch's words
            reason = "it holds more than tensors and plain values: save its state_dict alone with torch.save"
        reason = shorten(reason, 160, placeholder=" ...")
        raise UsageError(f"{path} holds no network of this program ({reason})") from None


def read_safetensors(path: Path) -> dict[str, Any]:
    """The weights, and of the metadata mean, std and classes. Prints the test accuracy of the shipped weights."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}
    if path == SHIPPED:
        print(f"Shipped weights: test accuracy {float(metadata['test_acc']):.2%}", file=sys.stderr)
    return {"state_dict": weights, "data": {name: json.loads(metadata[name]) for name in IMAGENET if name in metadata}}


def network_of(content: object, path: Path) -> PictureClassifier | FunctionRegressor:
    """The network of the content of ``path``.

    Raises:
        TypeError: it is something else.
        ValueError: of a Lightning checkpoint, the mean, std or classes of its images are not known, or not for sure.
        RuntimeError: the weights are of another network.
        UsageError: a classifier's weights are not finite.
    """
    if not isinstance(content, dict):
        raise TypeError(f"it is a {type(content).__name__}, not a dictionary of weights")
    weights = content.get("state_dict", content)
    settings = content.get("hyper_parameters") or {}
    if "measure_at" in settings:
        curve = FunctionRegressor(**settings)
        curve.load_state_dict(weights)
        return curve
    if any("downsample" in name for name in weights):
        raise ValueError("its shortcuts are convolutions; those of this ResNet-20 have no parameters, as in the paper")
    is_lightning = "pytorch-lightning_version" in content or any("net" in name.split(".") for name in weights)
    found = facts(content)
    data = found if is_lightning or found else IMAGENET
    if len(data) < len(IMAGENET):
        raise ValueError("it lacks mean, std and classes of its data, which CIFAR10DataModule stores in a checkpoint")
    net = ResNet20(num_classes=len(data["classes"]))
    net.load_weights(weights)
    if not all(values.isfinite().all() for values in net.state_dict().values()):
        raise UsageError(f"{path} has weights that are nan or infinite: its training diverged; take another run's")
    if data is IMAGENET:
        print(f"{path} has no mean, std and classes: takes akamaster/pytorch_resnet_cifar10's", file=sys.stderr)
    return PictureClassifier(net, **data)


def facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """mean, std and classes, as far as a data module has stored them, in its state or as hyperparameters.

    Raises:
        ValueError: two of them differ, as those of a subclass and of what it inherits.
    """
    found: dict[str, Any] = {}
    parts = [part for part in content.values() if isinstance(part, dict)]
    for name in IMAGENET:
        for value in [list(part[name]) for part in parts if part.get(name) is not None]:
            if found.setdefault(name, value) != value:
                raise ValueError(f"its {name} is {found[name]} in one place and {value} in another")
    return found


def read_all(names: Iterable[str]) -> tuple[dict[Path, Tensor], dict[Path, str]]:
    """(32, 32, 3) uint8 for each picture under the names; and what is skipped, for which a line on stderr says why.

    Raises:
        UsageError: there is no file under one of the names.
    """
    pictures: dict[Path, Tensor] = {}
    skipped: dict[Path, str] = {}
    for name in names:
        try:
            for path, found in read_pictures(name):
                if isinstance(found, Tensor):
                    pictures[path] = found
                elif skipped.setdefault(path, found) is found:
                    print(f"skipped {printable(path)}: {found}", file=sys.stderr)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return pictures, skipped


def printable(name: object) -> str:
    """A file's name on one line, whatever is in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))
