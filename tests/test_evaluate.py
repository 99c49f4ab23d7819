"""scripts/evaluate.py on pictures in folders and on CIFAR-10's test split, and the files of scripts/export.py."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import ROOT, command, succeed
from PIL import Image
from safetensors import safe_open
from short_runs import summary

from datamodules.cifar10 import CLASSES
from lit_models import ResNet20


def measured(folder: Path, *args: str) -> Any:
    return json.loads(succeed(folder, "evaluate.py", *args, "--json").stdout, parse_constant=pytest.fail)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """net.ckpt: always predicts cat, with probability 0.9, each other class 1/90; own/: two cats, a dog and a ship."""
    net = ResNet20()
    with torch.no_grad():
        net.linear.weight.zero_()
        net.linear.bias.zero_()
        net.linear.bias[CLASSES.index("cat")] = torch.tensor(81.0).log()  # 81 / (81 + 9) = 0.9
    data = {"mean": [0.5] * 3, "std": [0.2] * 3, "classes": list(CLASSES)}
    torch.save({"state_dict": net.state_dict(), "CIFAR10DataModule": data}, tmp_path / "net.ckpt")
    for i, name in enumerate(("cat", "cat/indoors", "dog", "ship")):
        (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / "own" / name / f"{i}.png")
    for name in ("ship/broken.jpg", "loose.txt", ".DS_Store"):
        (tmp_path / "own" / name).write_bytes(b"")
    return tmp_path


def test_a_folder_of_own_pictures(folder: Path) -> None:
    """Accuracy 2/4. Loss (2 ln(1 / 0.9) + 2 ln 90) / 4. Calibration error |0.9 - 0.5|, as all lie in one bin."""
    results = measured(folder, "--ckpt_path", "net.ckpt", "--images", "own")
    assert [results[name] for name in ("test_acc", "test_loss", "ece")] == pytest.approx([0.5, 2.3026, 0.4], abs=1e-4)
    assert results["per_class_acc"] == dict.fromkeys(CLASSES) | {"cat": 1.0, "dog": 0.0, "ship": 0.0}
    counts = {(3, 3): 2, (5, 3): 1, (8, 3): 1}  # true label, predicted label
    assert results["confusion"] == [[counts.get((true, predicted), 0) for predicted in range(10)] for true in range(10)]
    assert results["images"] == 4 and results["skipped"] == ["own/loose.txt", "own/ship/broken.jpg"]
    with Image.open(folder / "confusion.png") as figure:
        assert figure.format == "PNG"
    done = succeed(folder, "evaluate.py", "--ckpt_path=net.ckpt", "--images=own", "--confusion=figures/own.png")
    table = [line.split() for line in done.stdout.splitlines()]
    assert "50.00%," in table[0] and table[4] == ["cat", "100.00%"] and len(table) == 11
    assert re.findall("^skipped (.+?):", done.stderr, flags=re.M) == results["skipped"]
    assert "trained on some of these pictures, this accuracy is too high" in done.stderr
    assert (folder / "figures" / "own.png").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("evaluate.py --images nowhere", "nowhere must hold pictures in sub-folders named as the classes: airplane, "),
        ("evaluate.py --images .", "must hold pictures in sub-folders"),
        ("evaluate.py --images own/dog/2.png", "must hold pictures in sub-folders"),
        ("evaluate.py --images own/*", "must hold pictures in sub-folders"),
        ("evaluate.py --ckpt_path nowhere.ckpt", "No such file or directory: 'nowhere.ckpt'"),
        ("evaluate.py --data_root own --download false", "CIFAR-10 is not in own"),
        ("export.py --run_dir nowhere --out a.safetensors", "No such file or directory: 'nowhere/summary.json'"),
        ("export.py --run_dir own --out a.onnx", "--out a.onnx must end in .safetensors"),
    ],
)
def test_usage_errors_get_one_line(folder: Path, line: str, words: str) -> None:
    done = command(folder, *line.split())
    errors = [text for text in done.stderr.splitlines() if not text.startswith(("skipped", "Shipped"))]
    assert done.returncode == 2 and len(errors) == 1 and words in errors[0], done.stderr
    assert done.stdout == "" and not list(folder.glob("confusion.png")) + list(folder.glob("a.*"))


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_shipped_weights_have_the_accuracy_that_the_readme_states(tmp_path: Path, cifar10_root: Path) -> None:
    """Another CPU or number of threads adds in another order, which may change the answer for an image or two."""
    results = measured(tmp_path, "--data_root", str(cifar10_root.resolve()))
    facts = metadata(ROOT / "lit_models" / "resnet20.safetensors")
    assert results["test_acc"] == pytest.approx(json.loads(facts["test_acc"]), abs=5e-4)
    assert results["test_loss"] == pytest.approx(json.loads(facts["test_loss"]), abs=1e-3)
    for page in ("README.md", "README.zh.md"):
        (stated,) = re.findall(r"ResNet-20 ?[(（]\D*([\d.]+) %", (ROOT / page).read_text(encoding="utf-8"))
        assert results["test_acc"] == pytest.approx(float(stated) / 100, abs=1e-3)
    assert facts["command"].startswith("python scripts/cifar.py --recipe ") and " /" not in facts["command"]


def test_an_exported_run_keeps_its_facts_and_its_answers(tmp_path: Path) -> None:
    flags = "--data synthetic --max_epochs 1 --batch_size 8 --limit_train_batches 3 --limit_val_batches 0 "
    flags += "--limit_test_batches 9 --he_init true --seed 3"
    succeed(tmp_path, "cifar.py", *flags.split(), "--accelerator=cpu", "--run_dir=my run")
    succeed(tmp_path, "export.py", "--run_dir", "my run", "--out", "nets/mine.safetensors")
    content, facts = summary(tmp_path / "my run"), metadata(tmp_path / "nets" / "mine.safetensors")
    assert facts.pop("command") == content["command"]
    facts = {name: json.loads(value) for name, value in facts.items()}
    assert (facts["seed"], facts["epochs"], facts["mean"]) == (3, 1, [0.4914, 0.4822, 0.4465])
    assert (facts["test_acc"], facts["precision"]) == (content["test_acc"], "32-true")
    for name in facts["classes"][:2]:
        (tmp_path / "own" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "orange").save(tmp_path / "own" / name / "1.png")
    own, exported = (
        measured(tmp_path, "--ckpt_path", file, "--images", "own")
        for file in ("my run/checkpoints/last.ckpt", "nets/mine.safetensors")
    )
    assert exported == own
