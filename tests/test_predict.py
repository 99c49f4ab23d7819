"""scripts/predict.py on real pictures in every kind of file, on curves, and what it exports."""

import csv
import io
import json
import os
import pickle
import re
import runpy
import signal
import struct
import subprocess
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import Any

import launch
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from datamodules import CIFAR10DataModule
from datamodules.augmentation import normalize
from datamodules.cifar10 import CLASSES
from datamodules.pictures import read_picture, read_pictures
from lit_models import ResNet20, ResNet20Classifier

ROOT = Path(__file__).parents[1]
PREDICT = str(ROOT / "scripts" / "predict.py")
COUNT = 40


def predict(folder: Path, *args: str) -> subprocess.CompletedProcess:
    """The command in this process, without the seconds that a new one takes to start."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [PREDICT, *args])
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        try:
            runpy.run_path(PREDICT, run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        finally:
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def answers(folder: Path, *args: str) -> Any:
    done = predict(folder, *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=pytest.fail)  # the constants that standard JSON lacks, such as NaN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cifar10_root: Path) -> Path:
    """A short run on the real images, its checkpoint in run/, and 40 test images as files of every kind.

    In modes/ is one picture of each unusual mode.
    """
    folder = tmp_path_factory.mktemp("predict")
    done = launch.run(
        [str(ROOT / "scripts" / "cifar.py"), "--data_root", str(cifar10_root.resolve()),
         "--accelerator", "cpu", "--max_epochs", "1", "--limit_train_batches", "10", "--limit_val_batches", "0",
         "--limit_test_batches", "1", "--batch_size", "32", "--run_dir", "run"],
        folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    images = tensor(cifar10_root).numpy()
    kinds: dict[str, Any] = {
        "png": lambda image: image,
        "webp": lambda image: image,  # lossless
        "upscaled": lambda image: image.resize((128, 128), Image.Resampling.NEAREST),
        "gray": lambda image: image.convert("L"),
        "alpha": lambda image: image.convert("RGBA"),
        "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),  # and EXIF says: turn back
        "jpeg": lambda image: image,
    }
    for kind, change in kinds.items():
        (folder / kind).mkdir()
        for i, pixels in enumerate(images):
            image = change(Image.fromarray(pixels))
            if kind == "turned":
                exif = Image.Exif()
                exif[0x0112] = 6  # the picture's top is on the right: turn it by 90 degrees to the right
                image.save(folder / kind / f"{i:03}.png", exif=exif)
            elif kind == "webp":
                image.save(folder / kind / f"{i:03}.webp", lossless=True)
            elif kind == "jpeg":
                image.save(folder / kind / f"{i:03}.jpeg", quality=98, subsampling=0)
            else:
                image.save(folder / kind / f"{i:03}.png")
    save_modes(folder / "modes")
    return folder


def save_modes(folder: Path) -> None:
    """One picture of each unusual mode."""
    folder.mkdir()
    wide = Image.new("RGBA", (300, 200), (0, 0, 0, 0))  # nothing but transparent: white
    wide.save(folder / "wide.png")
    Image.new("RGB", (32, 32), "white").save(folder / "white.png")
    Image.fromarray(np.full((40, 40), 65535, dtype=np.uint16)).save(folder / "sixteen_bits.png")
    Image.new("P", (32, 32)).save(folder / "palette.gif")
    Image.new("CMYK", (50, 60)).save(folder / "print.jpg")
    Image.new("RGB", (5, 9), "white").save(folder / "tiny.png")
    Image.fromarray(np.ones((32, 32), dtype=np.float32)).save(folder / "from_0_to_1.tiff")
    Image.new("RGB", (32, 32)).save(folder / "black.png")
    Image.fromarray(np.full((32, 32), 100, dtype=np.uint16)).save(folder / "dark_sixteen_bits.png")
    levels = Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16))
    levels.save(folder / "transparent_level.png", transparency=40_000)
    Image.fromarray(np.full((32, 32), np.nan, dtype=np.float32)).save(folder / "nan.tiff")


def tensor(cifar10_root: Path, labels: bool = False) -> torch.Tensor:
    """The first test images, or their labels."""
    data = CIFAR10DataModule(cifar10_root, download=False)
    data.prepare_data()
    data.setup()
    return data.test[labels][:COUNT]


def evaluated(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """(N, 10) probabilities as the run's own evaluation computes them."""
    net = ResNet20()
    state = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    net.load_state_dict({name[4:]: value for name, value in state.items() if name.startswith("net.")})
    with torch.inference_mode():
        return net.eval()(normalize(images)).softmax(1)


CKPT = ("--ckpt_path", "run/checkpoints/last.ckpt")
LOSSLESS = ("png", "webp", "upscaled", "alpha", "turned")


@pytest.fixture(scope="module")
def of_kind(folder: Path) -> dict[str, list[Any]]:
    """What one command says of all pictures: {folder: answers in its order}."""
    told = answers(folder, *CKPT, *LOSSLESS, "gray/*.png", "jpeg", "modes", "--sheet", "sheet.png")
    return {kind: list(part) for kind, part in groupby(told, lambda answer: Path(answer["file"]).parent.name)}


def test_files_that_lose_nothing_give_the_evaluations_results(
    folder: Path, of_kind: dict[str, list[Any]], cifar10_root: Path
) -> None:
    best = evaluated(folder, tensor(cifar10_root)).topk(3)
    told = [answer for kind in LOSSLESS for answer in of_kind[kind]]
    assert [Path(answer["file"]).stem for answer in told] == [f"{i:03}" for i in range(COUNT)] * len(LOSSLESS)
    classes = CIFAR10DataModule().classes
    for i, answer in enumerate(told):
        values, indices = best.values[i % COUNT], best.indices[i % COUNT]
        assert answer["probabilities"] == pytest.approx(values.tolist(), abs=1e-4), answer["file"]
        assert answer["classes"][0] == classes[int(indices[0])] or values[0] - values[1] < 1e-4
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 500


def test_gray_is_three_equal_colors_and_jpeg_is_near(
    folder: Path, of_kind: dict[str, list[Any]], cifar10_root: Path
) -> None:
    images = tensor(cifar10_root)
    gray = torch.from_numpy(
        np.stack([np.array(Image.fromarray(i).convert("L").convert("RGB")) for i in images.numpy()])
    )
    for answer, row in zip(of_kind["gray"], evaluated(folder, gray), strict=True):
        assert answer["probabilities"] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    best = evaluated(folder, images).argmax(1).tolist()
    classes = CIFAR10DataModule().classes
    same = [answer["classes"][0] == classes[b] for answer, b in zip(of_kind["jpeg"], best, strict=True)]
    assert sum(same) > 0.9 * COUNT


def test_a_large_transparent_picture_and_other_modes(of_kind: dict[str, list[Any]]) -> None:
    told = {Path(answer["file"]).name: answer["probabilities"] for answer in of_kind["modes"]}
    assert len(told) == 11
    for name in ("wide.png", "sixteen_bits.png", "tiny.png", "from_0_to_1.tiff", "transparent_level.png"):
        assert told[name] == pytest.approx(told["white.png"], abs=1e-4)
    for name in ("dark_sixteen_bits.png", "nan.tiff"):
        assert told[name] == pytest.approx(told["black.png"], abs=1e-4)


def test_the_table_and_broken_pictures(folder: Path) -> None:
    (folder / "mixed").mkdir()
    content = (folder / "png" / "000.png").read_bytes()
    (folder / "mixed" / "good $name.png").write_bytes(content)
    (folder / "mixed" / "half.png").write_bytes(content[: len(content) // 2])
    (folder / "mixed" / "text.png").write_text("no picture")
    (folder / "mixed" / "a class").mkdir()
    (folder / "mixed" / "a class" / "good.png").write_bytes(content)
    done = launch.run([PREDICT, *CKPT, "mixed", "nowhere.png"], folder)  # as users do
    assert done.returncode == 0, done.stderr
    for line, name in zip(done.stdout.splitlines(), ("a class/good.png", "good $name.png"), strict=True):
        assert line.startswith(f"mixed/{name} ") and line.count("%") == 3
    for name in ("half.png", "text.png", "nowhere.png"):
        assert f"{name}: " in done.stderr and "skipped" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="has links and a pipe")
def test_a_folder_gives_what_pillow_reads_whatever_its_name(tmp_path: Path) -> None:
    """The others are counted where nothing says that they are pictures, and get a line of their own elsewhere."""
    (tmp_path / "a class").mkdir()
    for name in ("a class/cat", ".hidden", "photo.data"):
        Image.new("RGB", (32, 32), "white").save(tmp_path / name, "webp")
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "a class/readme", "._cat.png", "broken.png", "phone.HEIC"):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "a class" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = {path.relative_to(tmp_path).as_posix(): picture for path, picture in read_pictures(str(tmp_path))}
    reasons = {name: found.pop(name) for name in list(found) if isinstance(found[name], str)}
    assert all((picture == 255).all() for picture in found.values())
    assert list(found) == [".hidden", "a class/cat", "photo.data"]
    assert reasons == {
        "broken.png": "it is not a picture of a known kind",
        "gone.png": "there is no such file",
        "phone.HEIC": "it is a HEIC: save it as JPEG or PNG",
        "pipe.png": "it cannot be read (it is no file, or a folder that may not be opened)",
        ".": "5 of its files are no pictures (.DS_Store, .db, .png, .txt, readme)",
    }
    named = tmp_path / "notes.txt"
    assert list(read_pictures(str(named))) == [(named, "it is not a picture of a known kind")]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_may_not_be_opened_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    ((path, reason),) = read_pictures(str(tmp_path))
    assert path == tmp_path / "closed" and "may not be opened" in str(reason)


def exif(*fields: tuple[int, int, int, int]) -> bytes:
    """EXIF with these fields: (tag, type, count, value)."""
    content = b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + content + bytes(4)


@pytest.mark.parametrize(
    ("fields", "is_rotated"),
    [
        ([(0x0112, 3, 1, 6)], True),
        ([(0x0112, 3, 1, 6), (0x0100, 8, 1, 0xFFFF)], True),  # a width of -1: Pillow cannot write it
        ([(0x0112, 3, 1, 6), (0x8769, 4, 1, 10**9)], True),  # fields that lie outside the file
        ([(0x0112, 2, 1, 6)], False),  # a text
        ([(0x0112, 3, 10**9, 6)], False),
    ],
)
def test_a_malformed_exif_field_costs_no_picture(
    tmp_path: Path, fields: list[tuple[int, int, int, int]], is_rotated: bool
) -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:32] = 255  # white above, which rotated is on the right
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif(*fields))
    read = read_picture(tmp_path / "photo.jpg")
    assert bool((read[:, 20:] > 250).all()) == is_rotated and bool((read[:12] > 250).all()) != is_rotated


def test_a_bomb_is_skipped_with_its_reason(tmp_path: Path) -> None:
    Image.new("1", (32, 32)).save(path := tmp_path / "bomb.png")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + path.read_bytes()[24:29]
    path.write_bytes(path.read_bytes()[:12] + header + struct.pack(">I", zlib.crc32(header)) + path.read_bytes()[33:])
    with pytest.raises(ValueError, match="3600000000 pixels"):
        read_picture(path)


@pytest.mark.slow
def test_a_panorama_of_200_megapixels_takes_little_memory(tmp_path: Path) -> None:
    """Decoded whole it would take 800 MB, as Pillow holds 4 bytes for a pixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        image = Image.new("RGB", (20_000, 10_000), "white")
        image.paste("black", (0, 0, 20_000, 5_000))
        image.save(tmp_path / "panorama.jpg")
    code = """if True:
        from datamodules.pictures import *
        from resource import *
        before = getrusage(RUSAGE_SELF).ru_maxrss
        read = read_picture(Path("panorama.jpg")).float().mean((1, 2))
        print(read[:15].max().item(), read[17:].min().item(), getrusage(RUSAGE_SELF).ru_maxrss - before)"""
    done = launch.run_anew(["-c", code], tmp_path)
    above, below, kilobytes = map(float, done.stdout.split())
    assert above < 5 and below > 250 and kilobytes < 300_000, done.stderr


def test_a_pattern_finds_files_and_any_name_of_one_fits_on_a_line(folder: Path) -> None:
    (folder / "nested" / "deep").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "nested" / "deep" / "new\nline 文字.png")
    done = predict(folder, *CKPT, "nested/**", "nested/deep")  # the same picture twice
    (line,) = done.stdout.splitlines()
    assert line.startswith("nested/deep/new\\nline 文字.png  ")
    assert done.stderr.splitlines() == ["The pictures as the network saw them are in predictions.png"]


def test_without_a_checkpoint_the_shipped_weights_answer(folder: Path, cifar10_root: Path) -> None:
    """As well on scaled-up copies of test images as the stated test accuracy lets expect (40 images: +- 15 %)."""
    done = predict(folder, "upscaled", "--json")
    (stated,) = re.findall(r"^Shipped weights: test accuracy ([\d.]+)%$", done.stderr, flags=re.M)
    best = [CLASSES.index(answer["classes"][0]) for answer in json.loads(done.stdout)]
    right = (torch.tensor(best) == tensor(cifar10_root, labels=True)).float().mean().item()
    assert right == pytest.approx(float(stated) / 100, abs=0.15)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--ckpt_path", "nowhere.ckpt", "png"), "nowhere.ckpt"),
        (("--ckpt_path", "png/000.png", "png"), "no network"),
        ((*CKPT,), "picture files"),
        ((*CKPT, "mixed*/half.pn?"), "none of these"),
        ((*CKPT, "*.tga"), "*.tga"),
        ((*CKPT, "a**b/*.png"), "a**b/*.png"),
        ((*CKPT, "png/000.png", "--sheet", ""), "--sheet"),
        ((*CKPT, "png/000.png", "--sheet", "png/000.png/sheet.png"), "check --csv, --sheet"),
        ((*CKPT, "--x", "1"), "picture classifier"),
        (("--x", "1"), "--x and --csv are for curves"),
        ((), "picture files"),
        (("--ckpt_path", "last", "png"), "no checkpoint last"),
        ((*CKPT, "--export", "a.h5"), ".onnx or .pt2"),
    ],
)
def test_usage_errors_get_one_line(folder: Path, args: tuple[str, ...], word: str) -> None:
    done = predict(folder, *args)
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("skipped", "Shipped"))]
    assert done.returncode == 2 and len(errors) == 1 and word in errors[0], done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (lambda state: {"state_dict": state, "best_prec1": np.float64(91.73)}, "save its state_dict alone"),
        (lambda state: [state], "it is a list"),
        (lambda state: {"state_dict": {f"net.{k}": v for k, v in state.items()}}, "lacks mean, std and classes"),
        (lambda state: {"state_dict": state, "pytorch-lightning_version": "2.6.6"}, "lacks mean, std and classes"),
        (lambda state: {**state, "conv1.weight": state["conv1.weight"] * np.nan}, "nan or infinite"),
        (lambda state: {**state, "layer2.0.downsample.0.weight": torch.ones(1)}, "its shortcuts are convolutions"),
        (
            lambda state: {
                "state_dict": state,
                "Own": {"mean": [125.3] * 3, "std": [63] * 3, "classes": list("abcdefghij")},
            },
            "not three numbers from 0 to 1",
        ),
    ],
)
def test_weights_that_cannot_be_used_get_one_line(folder: Path, content: Any, word: str) -> None:
    torch.save(content(ResNet20().state_dict()), folder / "bad.th")
    done = predict(folder, "--ckpt_path", "bad.th", "png/000.png", "--export", "bad.pt2")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and word in done.stderr, done.stderr
    assert not (folder / "bad.pt2").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not a file of torch.save"),
        (b"hello world", "not a file of torch.save"),
        (pickle.dumps({"conv1.weight": torch.ones(1)}, protocol=4), "not a file of torch.save"),
        (None, "save its state_dict alone"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_files_of_another_kind_get_one_line(folder: Path, content: bytes | None, word: str) -> None:
    (folder / "other.pt").write_bytes(content or b"")
    if content is None:
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), folder / "other.pt")
    done = predict(folder, "--ckpt_path", "other.pt", "png/000.png")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and word in done.stderr, done.stderr


KNOWN = {"mean": [0.5] * 3, "std": [0.2] * 3, "classes": list(CLASSES)}


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({**KNOWN, "std": [0.2, 0.2, 0]}, "its std is [0.2, 0.2, 0], not three numbers from 0 to 1"),
        ({**KNOWN, "mean": ["a"] * 3}, "no network"),
        ({**KNOWN, "mean": 0.5}, "no network"),
        ({**KNOWN, "classes": ["cat", "dog"]}, "size mismatch"),
        ({"mean": [0.5] * 3}, "lacks mean, std and classes"),
        (None, "no network"),  # half a file
    ],
)
def test_a_safetensors_file_that_cannot_be_used_gets_one_line(folder: Path, facts: Any, word: str) -> None:
    content = safetensors.torch.save(ResNet20().state_dict(), {k: json.dumps(v) for k, v in (facts or {}).items()})
    (folder / "bad.safetensors").write_bytes(content if facts else content[: len(content) // 2])
    done = predict(folder, "--ckpt_path", "bad.safetensors", "png/000.png", "--export", "bad.pt2")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and word in done.stderr, done.stderr
    assert not (folder / "bad.pt2").exists()


@pytest.mark.parametrize("file", ["net.onnx", "net.pt2"])
def test_what_is_exported_computes_the_same(folder: Path, cifar10_root: Path, file: str) -> None:
    done = predict(folder, *CKPT, "--export", file)
    assert done.returncode == 0, done.stderr
    images = tensor(cifar10_root)[:5]
    pixels = (images.permute(0, 3, 1, 2) / 255).contiguous()
    if file.endswith("onnx"):
        import onnxruntime  # type: ignore[import-untyped]

        session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        logits = torch.from_numpy(session.run(None, {"images": pixels.numpy()})[0])
    else:
        logits = torch.export.load(folder / file).module()(pixels)
    assert torch.allclose(logits.softmax(1), evaluated(folder, images), atol=1e-4)


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"state_dict": named("module.", state), "best_prec1": 91.73},  # akamaster/pytorch_resnet_cifar10
        lambda state: state,
        lambda state: named("_orig_mod.", state),  # torch.compile
        lambda state: named("module._orig_mod.", state),  # DDP
        lambda state: {**named("module.", state), "n_averaged": torch.tensor(3)},  # torch.optim.swa_utils
    ],
)
def test_weights_alone_have_the_normalization_of_public_ones(folder: Path, content: Any) -> None:
    torch.manual_seed(1)
    net = ResNet20(he_init=True)
    torch.save(content(net.state_dict()), folder / "public.th")
    done = predict(folder, "--ckpt_path", "public.th", "png/000.png", "png/001.png", "--json")
    assert "public.th has no mean, std and classes" in done.stderr
    pixels = np.stack([np.array(Image.open(folder / "png" / f"00{i}.png")) for i in (0, 1)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = net.eval()((images - mean[:, None, None]) / std[:, None, None]).softmax(1)
    for answer, row in zip(json.loads(done.stdout), expected, strict=True):
        assert answer["probabilities"] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def named(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


class Reversed(CIFAR10DataModule):
    """Somebody's own: other names of the classes, and a mean of its own that it keeps as a hyperparameter."""

    def __init__(self, mean: list[float] | None = None) -> None:
        super().__init__(dataset="synthetic")
        self.save_hyperparameters()
        self.classes = tuple(name[::-1] for name in self.classes)


def test_checkpoints_of_plain_lightning(tmp_path: Path) -> None:
    """A data module's facts hold; where its hyperparameters say otherwise, or there are none, nothing is guessed.

    Of averaged weights the average is used, which Lightning tests too.
    """
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    image = -torch.tensor([0.4914, 0.4822, 0.4465]) / torch.tensor([0.2470, 0.2435, 0.2616])  # black, normalized
    words = {}
    for name, data in {"own": Reversed(), "two": Reversed([0.5, 0.5, 0.5]), "none": None}.items():
        model = ResNet20Classifier(lr=0.01)
        callbacks = [EMAWeightAveraging(decay=0.5), ModelCheckpoint(tmp_path, name)]
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, limit_train_batches=3, limit_val_batches=0, callbacks=callbacks,
            logger=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        images = DataLoader(list(zip(torch.rand(24, 3, 32, 32), torch.arange(24) % 10, strict=True)), batch_size=8)
        trainer.fit(model, datamodule=data) if data else trainer.fit(model, images)
        done = predict(tmp_path, "--ckpt_path", f"{name}.ckpt", "black.png", "--json")
        words[name] = done.stderr if done.returncode else json.loads(done.stdout)[0]
        if data and done.returncode == 0:
            with torch.inference_mode():  # the Trainer has put the average into the model
                expected = model.eval()(image[:, None, None].expand(1, 3, 32, 32)).softmax(1).topk(3)
            assert words[name]["classes"] == [data.classes[i] for i in expected.indices[0].tolist()]
            assert words[name]["probabilities"] == pytest.approx(expected.values[0].tolist(), abs=1e-5)
    assert "its mean is" in words["two"] and "lacks mean, std and classes" in words["none"]


def test_another_data_modules_own_classes_and_normalization(folder: Path) -> None:
    """A data module stores them under its class's name."""
    checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    data = checkpoint.pop("CIFAR10DataModule")
    reversed_names = [name[::-1] for name in data["classes"]]
    torch.save({**checkpoint, "OwnData": {**data, "classes": reversed_names}}, folder / "own.ckpt")
    (own,), (usual,) = (answers(folder, *c, "png/000.png") for c in (("--ckpt_path", "own.ckpt"), CKPT))
    assert own["classes"] == [name[::-1] for name in usual["classes"]]
    assert own["probabilities"] == usual["probabilities"]
    data["mean"] = [mean + 0.1 for mean in data["mean"]]
    torch.save({**checkpoint, "OwnData": data}, folder / "own.ckpt")
    assert answers(folder, "--ckpt_path", "own.ckpt", "png/000.png")[0]["probabilities"] != usual["probabilities"]


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curve")
    done = launch.run(
        [str(ROOT / "scripts" / "fit.py"), "--function", "3 * x + 100", "--noise_std", "0.1", "--lr",
         "0.01", "0.02", "--epochs", "1500", "--run_dir", "run"],
        folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_a_curves_values_at_numbers_and_at_a_column(curve: Path) -> None:
    told = answers(curve, *CKPT, "--x", "0", "1", "2.5")
    assert told["x"] == [0, 1, 2.5]
    assert told["members"] == [{"lr": 0.01, "seed": 0}, {"lr": 0.02, "seed": 0}]
    for x, row in zip(told["x"], told["y"], strict=True):
        assert row == pytest.approx([3 * x + 100] * 2, abs=1)
    with open(curve / "numbers.csv", "w", newline="") as file:
        csv.writer(file).writerows([["name", "position"], ["a", 0], ["b", 1.0], ["c", 2.5]])
    assert answers(curve, *CKPT, "--csv", "numbers.csv", "--column", "position")["y"] == told["y"]
    done = predict(curve, *CKPT, "--csv", "numbers.csv", "--column", "name")
    assert done.returncode == 2 and "line 2" in done.stderr and "Traceback" not in done.stderr
    table = predict(curve, *CKPT, "--x", "-1").stdout.splitlines()
    assert table[0].split("\t") == ["x", "lr 0.01 seed 0", "lr 0.02 seed 0"] and table[1].startswith("-1\t")


def test_numbers_are_taken_and_told_as_they_are(curve: Path) -> None:
    numbers = ("-2.5", "-1", "-0", "-0.001", "1000", "1234567.891")
    table = predict(curve, *CKPT, "--x", *numbers[:3], "-1e-3", "1e3", "1234567.891").stdout.splitlines()
    assert tuple(line.split("\t")[0] for line in table[1:]) == numbers
    for bad in ("-inf", "abc"):
        done = predict(curve, *CKPT, "--x", "1", bad)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert f"'{bad}' is not a finite number" in done.stderr


def test_a_csv_file_of_excels(curve: Path) -> None:
    (curve / "excel.csv").write_text(" x ,y\r\n1,a\r\n2.5,b,\r\n", encoding="utf-8-sig")
    assert answers(curve, *CKPT, "--csv", "excel.csv")["x"] == [1, 2.5]


# no CSV file with a column x: its content, and words of its error
BAD_CSV = {
    "missing": (None, "check --csv"),
    "xlsx": (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x9d\xa1\xff\x00", "CSV UTF-8"),
    "latin-1": ("x\nfünf\n".encode("latin-1"), "CSV UTF-8"),
    "utf-16": ("x\n1\n".encode("utf-16"), "CSV UTF-8"),
    "too long a field": (b"x\n" + b"1" * 200_000 + b"\n", "CSV UTF-8"),
    "other column": (b"y\n1\n", "no column x"),
    "empty": (b"", "is empty"),
    "only the header": (b"x,y\n", "no rows"),
    "decimal commas": (b"x\n1\n1,5\n", "line 3 has more cells than columns; a decimal point is '.'"),
    "infinite": (b"x\n1\ninf\n", "line 3"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_what_is_no_csv_file_gets_one_line(curve: Path, name: str) -> None:
    content, word = BAD_CSV[name]
    path = curve / "bad.csv"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    done = predict(curve, *CKPT, "--csv", "bad.csv")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "bad.csv" in done.stderr and word in done.stderr
    assert "--run_dir" not in done.stderr and "--data_root" not in done.stderr


@pytest.fixture(scope="module")
def wild_curve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Values up to 1e42, and a second learning rate by which the training diverged."""
    folder = tmp_path_factory.mktemp("wild")
    done = launch.run(
        [str(ROOT / "scripts" / "fit.py"), "--function", "1e40 * exp(x)", "--noise_std", "0", "--lr", "0.01", "1e30",
         "--epochs", "100", "--run_dir", "run"],
        folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("file", ["curve.onnx", "curve.pt2"])
def test_a_curve_is_exported_too(wild_curve: Path, file: str) -> None:
    done = predict(wild_curve, *CKPT, "--export", file)
    assert done.returncode == 0 and done.stderr.splitlines() == [f"Wrote {file}; its outputs are those of PyTorch"]
    x = torch.tensor([-1, 2.5], dtype=torch.float64)
    if file.endswith("onnx"):
        import onnxruntime  # type: ignore[import-untyped]

        session = onnxruntime.InferenceSession(str(wild_curve / file), providers=["CPUExecutionProvider"])
        values = session.run(None, {"x": x.numpy()})[0]
    else:
        values = torch.export.load(wild_curve / file).module()(x).detach().numpy()
    told = np.array(answers(wild_curve, *CKPT, "--x", "-1", "2.5")["y"], dtype=float).T  # null becomes nan
    assert np.isnan(told[1]).all() and np.isfinite(told[0]).all()
    assert np.allclose(values, told, rtol=1e-3, equal_nan=True)
