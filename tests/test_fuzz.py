"""Random and hostile texts as f(x), and damaged picture files: each is a value or one line of error.

FUZZ says how many texts; of files a quarter as many. What an error on a text advises to write works.
"""

import ast
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

from datamodules.expression import MAX_LENGTH, ExpressionError, evaluate
from datamodules.pictures import read_picture
from datamodules.spelling import MEANINGS, OF_ONE

FUZZ = int(os.environ.get("FUZZ", "20000"))
NUMBERS = "0 1 2 3.5 1e9 1e308 1e999 .5 1_000 0x1f 1j 9999999999999999999999 00 1e".split()
HOSTILE = [
    "x.__class__",
    "().__class__.__bases__[0].__subclasses__()",
    "__import__('os').system('true')",
    "open('/etc/passwd')",
    "eval('x')",
    "exec('x')",
    "(lambda: x)()",
    "[x for x in (1, 2)]",
    "{1: x}",
    "x if x else 1",
    "x := 3",
    "f'{x}'",
    "x[0]",
    "x.data",
    "x.numpy()",
    "sin.__globals__",
    "sin.__call__(x)",
    "globals()",
    "getattr(x, 'data')",
    "*x",
    "**x",
    "9**9**9**9",
    "9" * 400,
    "1e308 * 1e308",
    "'a' * 9**9",
    "x @ x",
    "x // 0",
    "x % 0",
    "x and x",
    "not x",
    "x < x",
    "...",
    "None",
    "True",
    "x;x",
    "x\n\nx",
    "#",
    "x # y",
    "\x00",
    "\ufeffx",
    "ｘ",
    "x̂",
    "sin",
    "sin(sin)",
    "sin(x)(x)",
    "sin(*[x])",
    "sin(input=x)",
    "minimum(x)",
    "maximum(x, x, x)",
    "await x",
    "yield x",
    "import os",
    "print(x)",
    "x!",
    "x²",
    "√x",
    "1 if",
    "x^2",
    "2x",
    "0,5x",
    "sin²x",
    "|x|",
    "\\frac{x}{2}",
    "x > 0 ? x : 0",
    "f(t) = t",
    "lambda x: x",
    "np.sin(x)",
    "x.abs()",
]
CHARACTERS = "xpie0123456789.+-*/()[]{}_,'\"\\ \t\n=:;<>@!%^&|~`$#abcdefgλ試😀²⁻ˣ√½π·×−—≤“，ｘ\x00\x7f\u2028\ud800"


DEEP = [("(", ")"), ("sin(", ")"), ("-", ""), ("x**", ""), ("x+", ""), ("[", "]"), ("|", "|"), ("{", "}")]
DEEP += [
    ("x^", ""),
    ("2(", ")"),
    ("sin^2", ""),
    ("pow(", ",x)"),
    ("\\frac{1}{", "}"),
    ("x if x=", " else x"),
    (" ", ""),
]
WORDS = [
    *OF_ONE,
    *(key.partition("(")[0] for key in MEANINGS),
    *NUMBERS,
    *"x t pi π e ( ( ) ) , ** ^ * / - . | = [ ] \\".split(),
]
WORDS += "lambda for in if else and not < > ? : ² √ np. x( 2x ;".split() + [" ", " ", "\n"]


def valid(dice: random.Random, depth: int) -> str:
    kind = dice.randrange(10) if depth else dice.randrange(2)
    if kind == 0:
        return dice.choice(NUMBERS)
    if kind == 1:
        return dice.choice(("x", "x", "x", "pi", "e"))
    if kind == 2:
        return f"{dice.choice('+-')}{valid(dice, depth - 1)}"
    if kind == 3:
        return f"{dice.choice(OF_ONE)}({valid(dice, depth - 1)})"
    if kind == 4:
        return f"{dice.choice(('min', 'max', 'heaviside'))}({valid(dice, depth - 1)}, {valid(dice, depth - 1)})"
    if kind == 5:
        return f"({valid(dice, depth - 1)} if {valid(dice, depth - 1)} < x else {valid(dice, depth - 1)})"
    operator = dice.choice(("+", "-", "*", "/", "**", "//", "%", "<", ">="))
    return f"({valid(dice, depth - 1)} {operator} {valid(dice, depth - 1)})"


def text(dice: random.Random) -> str:
    kind = dice.randrange(6)
    if kind == 0:
        return valid(dice, dice.randrange(6))
    if kind == 1:  # nearly valid
        characters = list(valid(dice, 4))
        for _ in range(dice.randint(1, 3)):
            characters[dice.randrange(len(characters))] = dice.choice(CHARACTERS) * dice.randrange(3)
        return "".join(characters)
    if kind == 2:
        return "".join(dice.choice(CHARACTERS) for _ in range(dice.randrange(60)))
    if kind == 3:  # hostile, alone or inside something
        inner = dice.choice(HOSTILE)
        return inner if dice.random() < 0.5 else valid(dice, 3).replace("x", inner, 1)
    if kind == 4:  # deep or long
        opening, closing = dice.choice(DEEP)
        times = dice.randrange(MAX_LENGTH // len(opening) + 20)
        return opening * times + "x" + closing * times
    return "".join(dice.choice(WORDS) for _ in range(dice.randrange(25)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_every_text_is_a_tensor_or_one_line_of_error() -> None:
    dice, x, accepted = random.Random(0), torch.linspace(-2, 2, 3, dtype=torch.float64), 0
    for _ in range(FUZZ):
        function = text(dice)
        try:
            y = evaluate(function, x)
        except ExpressionError as error:
            message = str(error)
            assert message and "\n" not in message and len(message) < 1200, repr(function)
            if " as it is written: write " in message:
                evaluate(ast.literal_eval(message.split(" as it is written: write ")[1]), x)
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} for {function!r}") from error
        else:
            assert y.shape == x.shape and y.dtype == torch.float64, repr(function)
            accepted += 1
    assert accepted > FUZZ / 20  # the texts reach the arithmetic too


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
