"""Picture files of every kind as 32x32 pixels, and files that are skipped."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.pictures import read_picture, read_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
WIDE = Image.new("RGB", (48, 32))
WIDE.paste(PICTURE, (8, 0))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the top of the picture is on the right


@pytest.mark.parametrize(
    ("name", "picture", "options"),
    [
        ("a.png", PICTURE, {}),
        ("a.webp", PICTURE, {"lossless": True}),
        ("without_suffix", PICTURE, {"format": "bmp"}),
        ("upscaled.png", PICTURE.resize((128, 128), Image.Resampling.NEAREST), {}),
        ("wide.png", WIDE, {}),  # cut to its central square
        ("opaque.png", PICTURE.convert("RGBA"), {}),
        ("turned.png", PICTURE.transpose(Image.Transpose.ROTATE_90), {"exif": TURNED}),
    ],
)
def test_the_pixels_of_a_picture_are_kept(tmp_path: Path, name: str, picture: Image.Image, options: Any) -> None:
    picture.save(tmp_path / name, **options)
    assert np.array_equal(read_picture(tmp_path / name), PIXELS)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("RGBA", (40, 40), (9, 9, 9, 0)), 255),  # transparent: white
        (Image.new("LA", (40, 40), (100, 255)), 100),
        (Image.new("P", (40, 40)), 0),
        (Image.new("1", (7, 5), 1), 255),
    ],
)
def test_other_modes(tmp_path: Path, picture: Image.Image, expected: int) -> None:
    picture.save(tmp_path / "picture.png")
    assert (read_picture(tmp_path / "picture.png") == expected).all()


def test_other_files_are_skipped_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b class").mkdir()
    for name in ("b class/cat", "photo.data", "[1].png"):
        PICTURE.save(tmp_path / name, "png")
    for name in ("notes.txt", ".DS_Store"):
        (tmp_path / name).write_bytes(b"no picture")
    content = (tmp_path / "photo.data").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:-300])
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + content[24:29]  # refused before it is decoded
    (tmp_path / "bomb").write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    pictures, skipped = read_pictures(map(str, (tmp_path, tmp_path / "[[]*.png", tmp_path / "gone.png")))
    assert [path.relative_to(tmp_path).as_posix() for path in pictures] == ["[1].png", "b class/cat", "photo.data"]
    reasons = {"bomb": "3600000000 pixels", "cut.png": "truncated", "notes.txt": "identify", "gone.png": "No such file"}
    assert [path.name for path in skipped] == list(reasons)
    for line, (name, reason) in zip(capsys.readouterr().err.splitlines(), reasons.items(), strict=True):
        assert line.startswith(f"skipped {tmp_path / name}: ") and reason in line
