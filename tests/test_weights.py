"""Networks from files of every kind that cli/weights.py reads, and files that it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from cli.command import UsageError
from cli.weights import PictureClassifier, load
from datamodules.cifar10 import CLASSES
from lit_models import ResNet20

PIXELS = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STATE = ResNet20(he_init=True).state_dict()
FACTS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 0.3], "classes": list("abcdefghij")}


@torch.inference_mode()
def check(path: Path, mean: list[float], std: list[float], classes: list[str]) -> None:
    """The network in the file is the one of STATE, with these facts."""
    network, net = load(path, PictureClassifier), ResNet20().eval()
    assert network.classes == classes
    net.load_state_dict(STATE)
    images = PIXELS.permute(0, 3, 1, 2) / 255
    expected = net((images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    torch.testing.assert_close(network.logits(PIXELS), expected, rtol=1e-4, atol=1e-4)


def named(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: values for name, values in STATE.items()}


def test_networks_and_their_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Akamaster's weights have ImageNet's normalization; a checkpoint has its facts under the data module's name."""
    torch.save({"state_dict": named("module."), "best_prec1": 91.73}, tmp_path / "public.th")
    check(tmp_path / "public.th", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], list(CLASSES))
    assert "public.th has no mean, std and classes" in capsys.readouterr().err
    checkpoint = {"state_dict": named("net."), "pytorch-lightning_version": "2.6.6", "OwnData": FACTS}
    torch.save(checkpoint, tmp_path / "net.ckpt")
    metadata = {name: json.dumps(value) for name, value in FACTS.items()} | {"command": "python ..."}
    safetensors.torch.save_file(STATE, tmp_path / "net.safetensors", metadata)
    for name in ("net.ckpt", "net.safetensors"):
        check(tmp_path / name, **FACTS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"hello world", "no network of this project"),
        ({"state_dict": STATE, "best_prec1": np.float64(91.73)}, "numpy"),  # to torch a call of a function
        (ResNet20(), "lit_models.resnet20.ResNet20"),
        ({**STATE, "layer2.0.downsample.0.weight": torch.ones(1)}, "Unexpected key"),
        ({"state_dict": STATE, "Own": {**FACTS, "classes": ["a", "b"]}}, "size mismatch"),
    ],
)
def test_other_files_get_one_line(tmp_path: Path, content: Any, word: str) -> None:
    path = tmp_path / "other.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match=word) as raised:
        load(path, PictureClassifier)
    assert len(str(raised.value)) < 400
    assert "set to `False`" not in str(raised.value)  # torch's advice to run the code in the file
