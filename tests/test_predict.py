"""scripts/predict.py on pictures and on curves, and the networks that it exports."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import launch
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import CIFAR10DataModule
from datamodules.augmentation import MEAN, STD, normalize
from datamodules.cifar10 import CLASSES
from lit_models import FunctionRegressor, ResNet20

PREDICT = str(Path(__file__).parents[1] / "scripts" / "predict.py")
NET, CURVE = ("--ckpt_path", "net.ckpt"), ("--ckpt_path", "curve.ckpt")
X = [-1.0, 0.0, 2.5]


def predict(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    done = launch.run([PREDICT, *args], folder)
    assert done.returncode == 0, done.stderr
    return done


def answers(folder: Path, *args: str) -> Any:
    # the constants that standard JSON lacks, such as NaN
    return json.loads(predict(folder, *args, "--json").stdout, parse_constant=pytest.fail)


def save_pictures(folder: Path, images: Tensor) -> None:
    folder.mkdir()
    for i, pixels in enumerate(images.numpy()):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> ResNet20:
    torch.manual_seed(0)
    return ResNet20(he_init=True).eval()


@pytest.fixture(scope="module")
def curve() -> FunctionRegressor:
    """Values beyond float32, for two seeds; those of the second are nan, as if its training had diverged."""
    return FunctionRegressor(seeds=(0, 1), x_mean=1, x_scale=2, y_mean=[1e42, torch.nan], y_scale=[1e41, 1e41])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, images: Tensor, net: ResNet20, curve: FunctionRegressor) -> Path:
    """The checkpoints net.ckpt and curve.ckpt, and the images as files in pictures/."""
    folder = tmp_path_factory.mktemp("predict")
    data = {"mean": list(MEAN), "std": list(STD), "classes": list(CLASSES)}
    torch.save({"state_dict": net.state_dict(), "CIFAR10DataModule": data}, folder / "net.ckpt")
    torch.save({"state_dict": curve.state_dict(), "hyper_parameters": dict(curve.hparams)}, folder / "curve.ckpt")
    save_pictures(folder / "pictures", images)
    (folder / "text.png").write_text("no picture")
    return folder


@torch.inference_mode()
def test_pictures_get_the_networks_probabilities(folder: Path, net: ResNet20, images: Tensor) -> None:
    rows = answers(folder, *NET, "pictures", "--sheet", "sheets/8.png")
    assert [row["file"] for row in rows] == [f"pictures/{i:03}.png" for i in range(8)]
    best = net(normalize(images)).softmax(1).topk(3)
    for row, values, places in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True):
        assert row["probabilities"] == pytest.approx(values, abs=1e-4)
        assert row["classes"] == [CLASSES[place] for place in places]
    with Image.open(folder / "sheets" / "8.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 300


def test_the_table_and_skipped_files(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "new 文字.png")
    done = predict(folder, *NET, "pictures/00[01].png", "new 文字.png", "nowhere.png", "text.png")
    starts = ("pictures/000.png  ", "pictures/001.png  ", "new 文字.png ")
    for line, start in zip(done.stdout.splitlines(), starts, strict=True):
        assert line.startswith(start) and line.count("%") == 3
    gone, text, last = done.stderr.splitlines()  # no warning of characters that the font lacks
    assert gone.startswith("skipped nowhere.png: ") and text.startswith("skipped text.png: ")
    assert last == "The pictures as the network saw them are in predictions.png"


def test_without_a_checkpoint_the_shipped_weights_answer(tmp_path: Path, cifar10_root: Path) -> None:
    """As well on 100 test images as the stated test accuracy lets expect (standard deviation 2.5 %)."""
    data = CIFAR10DataModule(cifar10_root, download=False)
    data.prepare_data()
    data.setup()
    images, labels = data.test
    save_pictures(tmp_path / "images", images[:100])
    done = predict(tmp_path, "images", "--json")
    (stated,) = re.findall(r"^Shipped weights: test accuracy ([\d.]+)%$", done.stderr, flags=re.M)
    best = torch.tensor([CLASSES.index(row["classes"][0]) for row in json.loads(done.stdout)])
    assert (best == labels[:100]).float().mean().item() == pytest.approx(float(stated) / 100, abs=0.1)


@torch.inference_mode()
def test_a_curves_values_at_numbers_and_at_a_column(folder: Path, curve: FunctionRegressor) -> None:
    values = answers(folder, *CURVE, "--x", *map(str, X))
    assert values["x"] == X and values["members"] == [{"lr": 0.01, "seed": 0}, {"lr": 0.01, "seed": 1}]
    first = curve(torch.tensor(X, dtype=torch.float64))[0].tolist()
    assert values["y"] == [[pytest.approx(y, rel=1e-5), None] for y in first]
    # as Excel writes UTF-8
    (folder / "numbers.csv").write_text("name, position\r\na,-1\r\nb, 0\r\nc,2.5,\r\n", encoding="utf-8-sig")
    assert answers(folder, *CURVE, "--csv", "numbers.csv", "--column", "position") == values
    table = predict(folder, *CURVE, "--x", "-1e-3", "1234567.891", "1e3").stdout.splitlines()
    assert table[0].split("\t") == ["x", "lr 0.01 seed 0", "lr 0.01 seed 1"]
    assert [line.split("\t")[0] for line in table[1:]] == ["-0.001", "1234567.891", "1000"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x9d\xa1\xff\x00", "bad.csv, line 0: 'utf-8' codec"),  # .xlsx
        (b"", "no column x"),
        (b"x,y\n1,2\n\nabc,2\n", "bad.csv, line 4: could not convert string to float: 'abc'"),
        (b"x\n1\n1,5\n", "bad.csv, line 3: more cells than columns"),
    ],
)
def test_another_csv_file_gets_one_line(folder: Path, content: bytes, words: str) -> None:
    (folder / "bad.csv").write_bytes(content)
    check_refused(folder, words, *CURVE, "--csv", "bad.csv")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "nothing to predict"),
        ((*NET, "text.png"), "none of these"),
        ((*NET, "pictures", "--sheet", "text.png/sheet.png"), "text.png"),
        ((*NET, "--x", "1"), "--x and --csv are for curves"),
        ((*CURVE, "pictures"), "is of a curve"),
        ((*CURVE, "--x", "abc"), "--x is abc"),
        ((*CURVE, "--csv", "nowhere.csv"), "No such file or directory: nowhere.csv"),
        ((*CURVE, "--export", "a.h5"), ".onnx or .pt2"),
    ],
)
def test_usage_errors_get_one_line(folder: Path, args: tuple[str, ...], words: str) -> None:
    check_refused(folder, words, *args)


def check_refused(folder: Path, words: str, *args: str) -> None:
    done = launch.run([PREDICT, *args], folder)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("skipped")]
    assert done.returncode == 2 and len(errors) == 1 and words in errors[0], done.stderr
    assert done.stdout == ""


def exported(path: Path, name: str, inputs: Tensor) -> Tensor:
    """The outputs of an exported network, computed without this project."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(inputs)
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


@torch.inference_mode()
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exported_networks(folder: Path, net: ResNet20, curve: FunctionRegressor, images: Tensor, suffix: str) -> None:
    """The normalization of the images is in it; any number of inputs is taken."""
    done = predict(folder, *NET, "--export", f"net.{suffix}")
    assert done.stderr == f"Wrote net.{suffix}; its outputs are those of PyTorch\n"
    logits = exported(folder / f"net.{suffix}", "images", (images.permute(0, 3, 1, 2) / 255).contiguous())
    torch.testing.assert_close(logits, net(normalize(images)), rtol=1e-3, atol=1e-3)
    predict(folder, *CURVE, "--export", f"curve.{suffix}")
    x = torch.tensor(X, dtype=torch.float64)
    values = exported(folder / f"curve.{suffix}", "x", x)
    assert values[1].isnan().all() and np.allclose(values[0], curve(x)[0], rtol=1e-5)
