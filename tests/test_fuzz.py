"""Damaged picture files: each is a picture or one line of error. FUZZ / 4 is their number."""

import io
import os
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.pictures import read_picture

FUZZ = int(os.environ.get("FUZZ", "20000"))


def picture_files() -> list[bytes]:
    """A small picture of every kind that Pillow writes, in the ways that it is written."""
    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (40, 52, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise).resize((61, 47), Image.Resampling.BICUBIC)
    rgb, gray, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.quantize(9)
    bits, wide = gray.convert("1"), Image.fromarray(np.asarray(gray, dtype=np.uint16) * 257)
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "maker", 0x011A: 72.0, 0x8769: {0x9003: "2026:01:01", 0x829A: 0.01}})
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90 * i) for i in range(3)]}
    compressions = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    kinds: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "png": [(image, {}) for image in (rgba, gray, wide, bits, palette)] + [(rgb, {"exif": exif}), (rgb, frames)],
        "jpeg": [(image, {"exif": exif}) for image in (rgb, gray, rgb.convert("CMYK"))]
        + [(rgb, {"progressive": True}), (rgb, {"restart_marker_rows": 1})],
        "mpo": [(rgb, frames)],
        "webp": [(rgba, {"lossless": True}), (rgb, {"exif": exif}), (rgb, frames)],
        "bmp": [(image, {}) for image in (rgb, gray, rgba, palette, bits)],
        "gif": [(rgb, frames), (gray, {"transparency": 3})],
        "tiff": [(rgb, {"compression": compression}) for compression in compressions]
        + [(bits, {"compression": compression}) for compression in ("group3", "group4", "tiff_ccitt")]
        + [(image, {}) for image in (wide, palette, *(rgb.convert("L").convert(mode) for mode in "FI"))]
        + [(rgb.convert(mode), {"big_tiff": True}) for mode in ("CMYK", "LAB", "YCbCr")],
        "ico": [(rgba, {"sizes": [(16, 16), (32, 32)]}), (rgba, {"bitmap_format": "bmp"})],
        "ppm": [(image, {}) for image in (rgb, gray, bits, wide, gray.convert("F"))],
        "tga": [
            (image, {"compression": compression}) for image in (rgba, palette) for compression in (None, "tga_rle")
        ],
        "jpeg2000": [(rgb, {}), (rgba, {"irreversible": True, "no_jp2": True}), (wide, {})],
        "avif": [(rgb, {"speed": 10, "exif": exif}), (rgb, frames | {"speed": 10})],
        "sgi": [(rgba, {}), (gray, {"rle": True})],
        "dds": [(rgba, {}), (rgba, {"pixel_format": "DXT5"})],
        "qoi": [(rgba, {})],
        "blp": [(palette, {})],
        "spider": [(gray.convert("F"), {})],
        **{kind: [(bits, {})] for kind in ("msp", "xbm")},
        **{kind: [(rgb, {})] for kind in ("icns", "pcx", "eps")},
    }
    files = []
    for kind in kinds.keys() & {name.lower() for name in Image.SAVE}:  # an older Pillow writes fewer
        for image, options in kinds[kind]:
            image.save(file := io.BytesIO(), kind, **options)
            files.append(file.getvalue())
    return sorted(files)


def mutated(content: bytes, dice: random.Random) -> bytes:
    """With some bits and bytes changed, parts removed, repeated or inserted; mostly near the file's beginning."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 3, 8, 40))):
        at = dice.randrange(min(len(data), dice.choice((64, 400, len(data)))) or 1)
        end = at + dice.choice((1, 2, 4, 4, 16, 100))
        kind, part = dice.randrange(7), bytes(data[at:end])
        if kind == 0 and part:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:  # the limits of integers
            data[at:end] = dice.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * len(part)
        elif kind == 2:
            data[at:end] = dice.randbytes(len(part))
        elif kind == 3:
            data[at:at] = part * dice.choice((1, 1, 2, 50))
        elif kind == 4:
            data[at:at] = dice.randbytes(end - at)
        elif kind == 5:
            del data[at:end]
        elif dice.random() < 0.3:
            del data[at:]
    return with_png_checksums(bytes(data)) if dice.random() < 0.7 else bytes(data)


def with_png_checksums(data: bytes) -> bytes:
    """So that the chunks of a PNG file are read, not refused."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        parts += [data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join(parts)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_every_file_is_a_picture_or_gets_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dice, files, path, read = random.Random(0), picture_files(), tmp_path / "picture", 0
    for _ in range(FUZZ // 4):
        path.write_bytes(mutated(dice.choice(files), dice))  # it stays there when the test fails
        try:
            pixels = read_picture(path)
        except ValueError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 150
        else:
            assert pixels.shape == (32, 32, 3) and pixels.dtype == torch.uint8
            read += 1
    assert capfd.readouterr() == ("", "")
    assert read > FUZZ / 40  # many are whole enough to be decoded
