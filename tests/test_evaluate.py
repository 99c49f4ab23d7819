"""scripts/evaluate.py on pictures in folders and on CIFAR-10's test split, and what scripts/export.py writes for it."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import launch
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from datamodules.cifar10 import CLASSES
from lit_models import FunctionRegressor, ResNet20

ROOT = Path(__file__).parents[1]
EVALUATE, EXPORT = (str(ROOT / "scripts" / f"{name}.py") for name in ("evaluate", "export"))


def evaluate(folder: Path, *args: str) -> subprocess.CompletedProcess:
    return launch.run([EVALUATE, "--ckpt_path", "net.ckpt", *args], folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network that takes everything for a cat, with probability 0.9, and pictures of two cats, a dog and a ship.

    Each of the other nine classes has the probability 1/90.
    """
    net = ResNet20()
    with torch.no_grad():
        net.linear.weight.zero_()
        net.linear.bias.zero_()
        net.linear.bias[CLASSES.index("cat")] = torch.tensor(81.0).log()  # 81 / (81 + 9) = 0.9
    data = {"mean": [0.5] * 3, "std": [0.2] * 3, "classes": list(CLASSES)}
    torch.save({"state_dict": net.state_dict(), "CIFAR10DataModule": data}, tmp_path / "net.ckpt")
    for i, name in enumerate(("Cat", "cat/indoors", "DOG", "ship")):
        (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / "own" / name / f"{i}.png")
    for name in ("ship/broken.jpg", "ship/Thumbs.db", "loose.png", ".DS_Store"):
        (tmp_path / "own" / name).write_bytes(b"")
    return tmp_path


def test_a_folder_of_own_pictures(folder: Path) -> None:
    """Accuracy 2/4. Loss (2 ln(1 / 0.9) + 2 ln 90) / 4. Calibration error |0.9 - 0.5|, as all lie in one bin."""
    done = evaluate(folder, "--images", "own", "--json")
    assert done.returncode == 0, done.stderr
    measured: dict[str, Any] = json.loads(done.stdout, parse_constant=pytest.fail)
    assert [measured[name] for name in ("test_acc", "test_loss", "ece")] == pytest.approx([0.5, 2.3026, 0.4], abs=1e-4)
    per_class = dict.fromkeys(CLASSES) | {"cat": 1.0, "dog": 0.0, "ship": 0.0}
    assert measured["per_class_acc"] == per_class
    counts = {(3, 3): 2, (5, 3): 1, (8, 3): 1}  # true label, predicted label
    assert measured["confusion"] == [
        [counts.get((true, predicted), 0) for predicted in range(10)] for true in range(10)
    ]
    assert measured["images"] == 4 and measured["skipped"] == ["own/ship/broken.jpg"]
    loose, *skipped, _ = done.stderr.splitlines()
    assert loose == "files in own itself, left out, as they have no class: 1"
    assert [line.split(":")[0] for line in skipped] == ["skipped own/ship/broken.jpg", "skipped own/ship"]
    with Image.open(folder / "confusion.png") as figure:
        assert figure.format == "PNG"
    table = evaluate(folder, "--images", "own", "--confusion", "figures/own.png").stdout.splitlines()
    assert "50.00%" in table[0] and "(images: 4, skipped: 1)" in table[0] and len(table) == 12
    assert table[5].split() == ["cat", "2", "100.00%"] and table[2].split() == ["airplane", "0", "-"]
    assert (folder / "figures" / "own.png").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--images", "nowhere"), "there is no folder nowhere"),
        (("--images", "unknown"), "unknown/cats is no class of this network"),
        (("--images", "own/cat"), "own/cat/indoors is no class"),
        (("--images", "own/DOG"), "own/DOG has no picture in sub-folders"),
        (("--images", "empty"), "there is no picture in empty/cat"),
        (("--images", "own", "--data_root", "."), "give --images or --data_root"),
        (("--images", "own", "--confusion", ""), "--confusion"),
        (("--data_root", "own", "--download", "false"), "CIFAR-10 is not in own"),
        (("--ckpt_path", "curve.ckpt", "--images", "own"), "of a curve"),
        (("--ckpt_path", "letters.ckpt"), "CIFAR-10's airplane is no class of this network"),
    ],
)
def test_usage_errors_get_one_line(folder: Path, args: tuple[str, ...], words: str) -> None:
    for name in ("unknown/cats", "empty/cat"):
        (folder / name).mkdir(parents=True)
    curve = FunctionRegressor()
    torch.save({"state_dict": curve.state_dict(), "hyper_parameters": dict(curve.hparams)}, folder / "curve.ckpt")
    content = torch.load(folder / "net.ckpt")
    content["CIFAR10DataModule"]["classes"] = list("abcdefghij")
    torch.save(content, folder / "letters.ckpt")
    done = evaluate(folder, *args)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and words in errors[0], done.stderr
    assert "Traceback" not in done.stderr and done.stdout == "" and not (folder / "confusion.png").exists()


def test_the_shipped_weights_have_the_accuracy_that_they_and_the_readme_state(
    tmp_path: Path, cifar10_root: Path
) -> None:
    """Another CPU or number of threads adds in another order, which may change the answer for an image or two."""
    measured = json.loads(launch.run([EVALUATE, "--data_root", str(cifar10_root.resolve()), "--json"], tmp_path).stdout)
    facts = metadata(ROOT / "lit_models" / "resnet20.safetensors")
    assert measured["test_acc"] == pytest.approx(json.loads(facts["test_acc"]), abs=5e-4)
    assert measured["test_loss"] == pytest.approx(json.loads(facts["test_loss"]), abs=1e-3)
    for page in ("README.md", "README.zh.md"):
        (stated,) = re.findall(r"[(（]ResNet-20\D*([\d.]+) %", (ROOT / page).read_text(encoding="utf-8"))
        assert measured["test_acc"] == pytest.approx(float(stated) / 100, abs=1e-3)
    assert facts["command"].startswith("python scripts/cifar.py --recipe ") and " /" not in facts["command"]


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_an_exported_run_keeps_its_facts_and_its_answers(tmp_path: Path) -> None:
    flags = "--data synthetic --max_epochs 1 --limit_train_batches 3 --limit_val_batches 0 --he_init true --seed 3"
    run = launch.run(
        [str(ROOT / "scripts" / "cifar.py"), *flags.split(), "--accelerator=cpu", "--run_dir=my run"], tmp_path
    )
    assert run.returncode == 0, run.stderr
    done = launch.run([EXPORT, "--run_dir", "my run", "--out", "nets/mine.safetensors"], tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "my run" / "summary.json").read_text())
    facts = metadata(tmp_path / "nets" / "mine.safetensors")
    assert facts.pop("command") == f"python scripts/cifar.py {flags} --accelerator=cpu"
    facts = {name: json.loads(value) for name, value in facts.items()}
    assert (facts["seed"], facts["epochs"], facts["mean"]) == (3, 1, [0.4914, 0.4822, 0.4465])
    assert facts["test_acc"] == summary["test_acc"] and facts["test_loss"] == pytest.approx(summary["test_loss"])
    for name in facts["classes"][:2]:
        (tmp_path / "own" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "orange").save(tmp_path / "own" / name / "1.png")
    (tmp_path / "nets" / "renamed.pt").write_bytes((tmp_path / "nets" / "mine.safetensors").read_bytes())
    own, *exported = (
        evaluate(tmp_path, "--ckpt_path", file, "--images", "own", "--json").stdout
        for file in ("my run/checkpoints/last.ckpt", "nets/mine.safetensors", "nets/renamed.pt")
    )
    assert exported == [own] * 2 and own != ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--run_dir", "nowhere", "--out", "a.safetensors"), "no finished run of one seed in nowhere"),
        (("--run_dir", "curve", "--out", "a.onnx"), "--out 'a.onnx' must end in .safetensors"),
        (("--run_dir", "curve", "--out", "a.safetensors"), "curve is a run of fit.py"),
        (("--run_dir", "curve"), "out"),
    ],
)
def test_what_cannot_be_exported_gets_one_line(tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    curve, checkpoints = FunctionRegressor(), tmp_path / "curve" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({"state_dict": curve.state_dict(), "hyper_parameters": dict(curve.hparams)}, checkpoints / "last.ckpt")
    (tmp_path / "curve" / "summary.json").write_text("{}")
    done = launch.run([EXPORT, *args], tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_a_runs_checkpoint_gets_the_accuracy_of_its_own_test(tmp_path: Path, cifar10_root: Path) -> None:
    """Bit for bit. A network whose classes have another order gets the same."""
    data = ["--data_root", str(cifar10_root.resolve())]
    done = launch.run(
        [str(ROOT / "scripts" / "cifar.py"), *data, "--accelerator", "cpu", "--max_epochs", "1",
         "--limit_train_batches", "10", "--limit_val_batches", "0", "--run_dir", "run"],
        tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    for name in ("net.linear.weight", "net.linear.bias"):
        content["state_dict"][name] = content["state_dict"][name].flip(0)
    content["CIFAR10DataModule"]["classes"].reverse()
    torch.save(content, tmp_path / "reversed.ckpt")
    expected = json.loads((tmp_path / "run" / "summary.json").read_text())["test_acc"]
    for checkpoint in ("run/checkpoints/last.ckpt", "reversed.ckpt"):
        measured = json.loads(evaluate(tmp_path, "--ckpt_path", checkpoint, *data, "--json").stdout)
        assert measured["test_acc"] == expected and measured["images"] == 10_000
        assert sum(measured["per_class_acc"].values()) / 10 == pytest.approx(expected)
