"""Picture files of every kind, and pictures of your own: the layouts of a folder, what is refused, a whole run."""

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import assert_refused, command, succeed
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from short_runs import assert_same_run, callback, checkpoint, files, summary

from datamodules import CIFAR10DataModule
from datamodules.pictures import read_picture, read_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
WIDE = Image.new("RGB", (48, 32))
WIDE.paste(PICTURE, (8, 0))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the top of the picture is on the right


@pytest.mark.parametrize(
    ("expected", "picture", "options"),
    [
        (PIXELS, PICTURE, {}),
        (PIXELS, PICTURE, {"format": "webp", "lossless": True}),
        (PIXELS, PICTURE, {"format": "bmp"}),
        (PIXELS, PICTURE.resize((128, 128), Image.Resampling.NEAREST), {}),
        (PIXELS, WIDE, {}),  # cut to its central square
        (PIXELS, PICTURE.convert("RGBA"), {}),
        (PIXELS, PICTURE.transpose(Image.Transpose.ROTATE_90), {"exif": TURNED}),
        (255, Image.new("RGBA", (40, 40), (9, 9, 9, 0)), {}),  # transparent: white
        (100, Image.new("LA", (40, 40), (100, 255)), {}),
        (0, Image.new("P", (40, 40)), {}),
        (255, Image.new("1", (7, 5), 1), {}),
    ],
)
def test_the_pixels_of_a_picture(tmp_path: Path, expected: Any, picture: Image.Image, options: Any) -> None:
    picture.save(tmp_path / "without_suffix", **{"format": "png"} | options)
    pixels = read_picture(tmp_path / "without_suffix")
    assert pixels.shape == (32, 32, 3) and (pixels == expected).all()


def test_other_files_are_skipped_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b class").mkdir(), (tmp_path / ".hidden").mkdir()
    for name in ("b class/cat", "photo.data", "[1].png", ".hidden/cat.png"):
        PICTURE.save(tmp_path / name, "png")
    for name in ("notes.txt", ".DS_Store"):
        (tmp_path / name).write_bytes(b"no picture")
    Image.new("I;16", (40, 40)).save(tmp_path / "xray.png")
    content = (tmp_path / "photo.data").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:-300])
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + content[24:29]  # refused before it is decoded
    (tmp_path / "bomb").write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    pictures, skipped = read_pictures(map(str, (tmp_path, tmp_path / "[[]*.png", tmp_path / "gone.png")))
    assert [path.relative_to(tmp_path).as_posix() for path in pictures] == ["[1].png", "b class/cat", "photo.data"]
    reasons = {"bomb": "3600000000 pixels", "cut.png": "truncated", "notes.txt": "identify", "xray.png": "8 bits"}
    reasons["gone.png"] = "No such file"
    assert [path.name for path in skipped] == list(reasons)
    for line, (name, reason) in zip(capsys.readouterr().err.splitlines(), reasons.items(), strict=True):
        assert line.startswith(f"skipped {tmp_path / name}: ") and reason in line


# A folder of your own

COLORS = {"kiwi": (90, 160, 40), "plum": (90, 30, 120), "[p]lum": (200, 0, 0)}  # the last: a pattern for the other
OWN = "cifar.py --recipe own --accelerator cpu --batch_size 8 --max_epochs 2 --data_root own".split()


def save(folder: Path, **pictures: int) -> Path:
    """So many pictures of each class, of all shades of its color."""
    for name, num in pictures.items():
        for i in range(num):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), tuple(c + i for c in COLORS[name])).save(folder / name / f"{i}.png")
    return folder


def data_of(folder: Path, **arguments: Any) -> CIFAR10DataModule:
    data = CIFAR10DataModule(folder, dataset="folder", **arguments)
    data.prepare_data(), data.setup()
    return data


def shades(data: CIFAR10DataModule, part: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[str, int]]:
    """The class, and which of its pictures, of each image."""
    names = [data.classes[label] for label in part[1]]
    return [(name, int(image[0, 0, 0]) - COLORS[name][0]) for name, image in zip(names, part[0], strict=True)]


def test_an_undivided_folder_is_divided_by_the_seed(tmp_path: Path) -> None:
    save(tmp_path, **{"kiwi": 12, "plum": 2, "[p]lum": 5})
    data, other = data_of(tmp_path), data_of(tmp_path, seed=1)
    assert data.classes == ["[p]lum", "kiwi", "plum"] and data.num_train == 15
    train, test = (shades(data, part) for part in (data.train, data.test))
    assert sorted(name for name, _ in test) == ["[p]lum", "kiwi", "kiwi", "plum"]  # a fifth, and at least one
    assert len({*train, *test}) == 19
    assert shades(data_of(tmp_path), data_of(tmp_path).test) == test != shades(other, other.test)
    images = torch.cat([images for images, _ in data.train_dataloader()])
    assert data.state_dict()["mean"] == pytest.approx((data.train[0] / 255).mean((0, 1, 2)).tolist(), abs=1e-5)
    assert data.state_dict()["std"] == pytest.approx((data.train[0] / 255).std((0, 1, 2)).tolist(), rel=1e-3)
    assert images.shape == (15, 3, 32, 32) and images.amax() < 5  # standard deviations
    with pytest.raises(MisconfigurationException, match="holds pictures, not CIFAR-10"):
        CIFAR10DataModule(tmp_path).prepare_data()
    save(tmp_path, plum=3)
    changed = data_of(tmp_path)
    assert changed.mean != data.mean
    changed.load_state_dict(data.state_dict())  # to be tested on; that training goes on is refused below
    assert (changed.mean, changed.std) == (data.mean, data.std)
    shutil.rmtree(tmp_path / "kiwi")
    with pytest.raises(MisconfigurationException, match="no longer holds the pictures"):
        data_of(tmp_path).load_state_dict(data.state_dict())


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        ({}, "must hold 2 to 1,000 sub-folders, one for each class, not 0"),
        ({"": {"kiwi": 3}}, "one for each class, not 1"),
        ({"": {"kiwi": 3, "plum": 1}}, "plum holds 1 readable pictures; 2 or more"),
        ({"Train": {"kiwi": 3, "plum": 1}}, "holds Train alone"),
        (
            {"Training": {"kiwi": 3, "plum": 3}, "Testing": {"kiwi": 3, "plum": 3}},
            "holds .'kiwi', 'plum'.: if these are",
        ),
        ({"train": {"kiwi": 1, "plum": 1}, "test": {"kiwi": 1, "[p]lum": 1}}, "only one .* has ..\\[p]lum', 'plum'"),
    ],
)
def test_what_cannot_be_learned(pictures: Any, words: str, tmp_path: Path) -> None:
    for part, each in pictures.items():
        save(tmp_path / part, **each)
    with pytest.raises(ValueError, match=words):
        data_of(tmp_path)


@pytest.mark.slow
def test_a_run_on_own_pictures_and_what_is_made_of_it(tmp_path: Path) -> None:
    """Trained, resumed, predicted with, measured, exported, reported; no command writes into the folder."""
    save(tmp_path / "own" / "train", kiwi=9, plum=12), save(tmp_path / "own" / "test", kiwi=1, plum=2)
    (tmp_path / "own" / "train" / "kiwi" / "broken.png").write_bytes(b"")
    (tmp_path / "own" / "valid").mkdir()
    before = files(tmp_path / "own")
    assert_refused(command(tmp_path, *OWN[:-1], "own/test/kiwi", "--run_dir", "run"), "one for each class, not 0")
    assert not (tmp_path / "run").exists()
    done = succeed(tmp_path, *OWN, "--run_dir", "run")
    assert "broken.png" in done.stderr and "skipped own: valid, for" in done.stderr
    assert "to test on: kiwi 9 + 1, plum 12 + 2\n" in done.stdout
    content, facts = summary(tmp_path / "run"), checkpoint(tmp_path / "run")["CIFAR10DataModule"]
    assert content["per_class_acc"].keys() == {"kiwi", "plum"} and content["data"] == "folder"
    right = content["per_class_acc"]["kiwi"] + 2 * content["per_class_acc"]["plum"]
    assert right == pytest.approx(3 * content["test_acc"]) and "test accuracy of each class: kiwi " in done.stdout
    assert facts["classes"] == ["kiwi", "plum"] and checkpoint(tmp_path / "run")["hyper_parameters"]["num_classes"] == 2
    assert content["settings"]["pretrained"] and content["parameters"] == 269_722 - 8 * 65

    interrupt = callback(tmp_path, "on_train_batch_start", "trainer.global_step == 4 and signal.raise_signal(2)")
    resumed = [*OWN, "--run_dir", "resumed"]
    assert command(tmp_path, *resumed, interrupt).returncode == 130
    succeed(tmp_path, *resumed, "--ckpt_path", "last")
    assert_same_run(tmp_path / "resumed", tmp_path / "run")
    last = ("--ckpt_path", "run/checkpoints/last.ckpt")
    assert_refused(command(tmp_path, "evaluate.py", *last), "other classes than CIFAR-10: give --images DIR")
    measured = json.loads(succeed(tmp_path, "evaluate.py", *last, "--images", "own/test", "--json").stdout)
    assert measured["test_loss"] == pytest.approx(content["test_loss"], rel=1e-4)
    assert measured["per_class_acc"] == content["per_class_acc"]
    assert "kiwi " in succeed(tmp_path, "predict.py", *last, "own/test/kiwi/0.png").stdout
    succeed(tmp_path, "report.py", "run")
    assert "recipe own on the pictures in own" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert files(tmp_path / "own") == before
    save(tmp_path / "own" / "train", plum=13)
    done = command(tmp_path, *resumed, "--ckpt_path", "last")
    assert done.returncode == 2 and "own no longer holds the pictures" in done.stderr
    succeed(tmp_path, "export.py", "--run_dir", "run", "--out", "own.safetensors")
    assert "kiwi " in succeed(tmp_path, "predict.py", "--ckpt_path", "own.safetensors", "own/test/kiwi/0.png").stdout
