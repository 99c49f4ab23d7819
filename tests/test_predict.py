"""scripts/predict.py on pictures and on curves, and the networks that it exports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import Done, command, succeed
from PIL import Image
from torch import Tensor

from datamodules.augmentation import MEAN, STD, normalize
from datamodules.cifar10 import CLASSES
from lit_models import FunctionRegressor, ResNet20

NET, CURVE = ("--ckpt_path", "net.ckpt"), ("--ckpt_path", "curve.ckpt")
X = [-1.0, 0.0, 2.5]
net = ResNet20(he_init=True).eval()
# Values too close together for float32, for two seeds; those of the second are nan, as if its training had diverged.
curve = FunctionRegressor(seeds=(0, 1), x_mean=1, x_scale=2, y_mean=[1e9, torch.nan], y_scale=[1, 1])
IMAGES = torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def predict(folder: Path, *args: str) -> Done:
    return succeed(folder, "predict.py", *args)


def answers(folder: Path, *args: str) -> Any:
    return json.loads(predict(folder, *args, "--json").stdout, parse_constant=pytest.fail)  # NaN is no standard JSON


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints net.ckpt and curve.ckpt, and the images as files in pictures/."""
    folder = tmp_path_factory.mktemp("predict")
    data = {"mean": list(MEAN), "std": list(STD), "classes": list(CLASSES)}
    torch.save({"state_dict": net.state_dict(), "CIFAR10DataModule": data}, folder / "net.ckpt")
    torch.save({"state_dict": curve.state_dict(), "hyper_parameters": dict(curve.hparams)}, folder / "curve.ckpt")
    (folder / "pictures").mkdir()
    for i, pixels in enumerate(IMAGES.numpy()):
        Image.fromarray(pixels).save(folder / "pictures" / f"{i:03}.png")
    (folder / "text.png").write_text("no picture")
    return folder


@torch.inference_mode()
def test_pictures_get_the_networks_probabilities(folder: Path) -> None:
    rows = answers(folder, *NET, "pictures", "--sheet", "sheets/8.png")
    assert [row["file"] for row in rows] == [f"pictures/{i:03}.png" for i in range(8)]
    best = net(normalize(IMAGES)).softmax(1).topk(3)
    for row, values, places in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True):
        assert row["probabilities"] == pytest.approx(values, abs=1e-4)
        assert row["classes"] == [CLASSES[place] for place in places]
    with Image.open(folder / "sheets" / "8.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 300


def test_the_table_and_skipped_files(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "new 文字.png")
    done = predict(folder, *NET, "pictures/00[01].png", "new 文字.png", "nowhere.png", "text.png")
    names = ["pictures/000.png", "pictures/001.png", "new 文字.png"]
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == names and done.stdout.count("%") == 9
    gone, text, last = done.stderr.splitlines()  # no warning of characters that the font lacks
    assert gone.startswith("skipped nowhere.png: ") and text.startswith("skipped text.png: ")
    assert last == "The pictures as the network saw them are in predictions.png"


@torch.inference_mode()
def test_a_curves_values_at_numbers_and_at_a_column(folder: Path) -> None:
    values = answers(folder, *CURVE, "--x", *map(str, X))
    assert values["x"] == X and values["members"] == [{"lr": 0.01, "seed": 0}, {"lr": 0.01, "seed": 1}]
    first = curve(torch.tensor(X, dtype=torch.float64))[0].tolist()
    assert values["y"] == [[pytest.approx(y, rel=1e-14), None] for y in first]
    (folder / "numbers.csv").write_text("name, position\r\na,-1\r\nb, 0\r\nc,2.5\r\n", encoding="utf-8-sig")
    assert answers(folder, *CURVE, "--csv", "numbers.csv", "--column", "position") == values
    done = predict(folder, *CURVE, "--x", "-1e-3", "1234567.891", "1e3", "-9", "11")
    assert done.stderr == "Extrapolated: 2 of 5, for the curve was trained on x from -9 to 11\n"
    table = done.stdout.splitlines()
    assert table[0].split("\t") == ["x", "lr 0.01 seed 0", "lr 0.01 seed 1"]
    assert [line.split("\t")[0] for line in table[1:]] == ["-0.001", "1234567.891", "1000.0", "-9.0", "11.0"]


REFUSED = {
    "": "nothing to predict",
    "--ckpt_path net.ckpt text.png": "none of these",
    "--ckpt_path net.ckpt --x 1": "net.ckpt holds a PictureClassifier; a FunctionRegressor is needed",
    "--ckpt_path curve.ckpt pictures": "curve.ckpt holds a FunctionRegressor; a PictureClassifier is needed",
    "--ckpt_path curve.ckpt --x abc": "abc",
    "--ckpt_path curve.ckpt --csv nowhere.csv": "No such file or directory: 'nowhere.csv'",
    "--ckpt_path curve.ckpt --export a.h5": ".onnx or .pt2",
}


@pytest.mark.parametrize("line", REFUSED)
def test_usage_errors_get_one_line(folder: Path, line: str) -> None:
    done = command(folder, "predict.py", *line.split())
    errors = [error for error in done.stderr.splitlines() if not error.startswith("skipped")]
    assert done.returncode == 2 and len(errors) == 1 and REFUSED[line] in errors[0] and not done.stdout, done.stderr


def computed(path: Path, inputs: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The outputs of an .onnx file, computed without this project, and what it says of itself."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    facts = session.get_modelmeta().custom_metadata_map | {"names": (given.name, gives.name)}
    return torch.from_numpy(session.run([gives.name], {given.name: inputs.numpy()})[0]), facts


@torch.inference_mode()
def test_exported_classifier(folder: Path) -> None:
    """The normalization of the images is in it; any number of inputs is taken."""
    images, expected = (IMAGES.permute(0, 3, 1, 2) / 255).contiguous(), net(normalize(IMAGES))
    assert predict(folder, *NET, "--export", "net.onnx").stderr == "Wrote net.onnx\n"
    predict(folder, *NET, "--export", "net.pt2")
    logits, facts = computed(folder / "net.onnx", images)
    for values in (logits, torch.export.load(folder / "net.pt2").module()(images)):
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-3)
    assert facts["names"] == ("images", "logits") and json.loads(facts["classes"]) == list(CLASSES)
    assert "from 0 to 1" in facts["images"] and "softmax" in facts["logits"]


@torch.inference_mode()
def test_exported_curves(folder: Path) -> None:
    """In float64 as .pt2; in float32 and of operations that OpenCV reads too as .onnx, if float32 holds the values."""
    predict(folder, *CURVE, "--export", "curve.pt2")
    x = torch.tensor(X, dtype=torch.float64)
    values = torch.export.load(folder / "curve.pt2").module()(x)
    assert values[1].isnan().all() and np.allclose(values[0], curve(x)[0], rtol=1e-14)
    done = command(folder, "predict.py", *CURVE, "--export", "curve.onnx")
    assert done.returncode == 2 and "float32" in done.stderr and not (folder / "curve.onnx").exists()
    small = FunctionRegressor([0.1, 0.01], (3, 4), x_mean=1, x_scale=2, y_mean=[5, torch.nan], y_scale=[7, 1])
    torch.save({"state_dict": small.state_dict(), "hyper_parameters": dict(small.hparams)}, folder / "small.ckpt")
    predict(folder, "--ckpt_path", "small.ckpt", "--export", "small.onnx")
    columns, facts = computed(folder / "small.onnx", x.float()[:, None])
    assert np.allclose(columns.T, small(x), atol=1e-5, equal_nan=True) and columns[:, 0].isfinite().all()
    assert facts["names"] == ("x", "y") and json.loads(facts["members"])[2] == {"lr": 0.01, "seed": 3}
    import onnx

    kinds = {node.op_type for node in onnx.load(folder / "small.onnx").graph.node}
    assert kinds <= {"Sub", "Div", "Gemm", "Relu", "Concat", "Mul", "Add"}
