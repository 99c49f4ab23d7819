"""Picture files of any kind as what the classifier was trained on: 32x32 RGB pixels."""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from textwrap import shorten
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

SIZE = 32
UNKNOWN = (".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw")  # pictures, but not to Pillow
LARGE = 2048  # pixels a side: of more than four times its square only some are kept
MAX_BYTES, MAX_PIXELS, MAX_JPEG_PIXELS = 1 << 30, 1 << 27, 1 << 28
Turn = Image.Transpose
TURNS = {  # by EXIF's orientation
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}


class NotAPicture(ValueError):
    """The file is of no kind that Pillow knows."""


def find_files(name: str) -> list[Path]:
    """The named file, all files below a named folder, or those that a pattern such as ``cats/*.png`` matches; sorted.

    Links to folders are not followed; a sub-folder that may not be opened stands for its files.

    Raises:
        ValueError: there is none.
    """
    if os.path.isdir(name):
        closed: list[OSError] = []
        found = [Path(folder, file) for folder, _, files in os.walk(name, onerror=closed.append) for file in files]
        found += [Path(error.filename) for error in closed]
    elif os.path.exists(name) or not any(sign in name for sign in "*?["):
        found = [Path(name)]
    else:  # where no shell has done it, as on Windows
        found = [Path(path) for path in glob(name, recursive=True) if not os.path.isdir(path)]
    if not found:
        raise ValueError(f"there is no picture in {name}")
    return sorted(found)


def read_pictures(name: str) -> Iterator[tuple[Path, Tensor | str]]:
    """Each file of ``find_files`` with its (32, 32, 3) uint8 pixels, or why it is skipped, in a few words.

    A folder's files that are no pictures at all, such as ``Thumbs.db``, are only counted, beside the folder's name.

    Raises:
        ValueError: there is no file.
    """
    others = []
    for path in find_files(name):
        try:
            yield path, read_picture(path)
        except NotAPicture as error:
            named_as_picture = path.suffix.lower() in {*Image.registered_extensions(), *UNKNOWN} and path.name[0] != "."
            if named_as_picture or not os.path.isdir(name):
                yield path, str(error)
            else:
                others.append(path.suffix or path.name)
        except ValueError as error:
            yield path, str(error)
    if others:
        kinds = shorten(", ".join(sorted(set(others))), 60, placeholder=" ...")
        count = f"{len(others)} of its files are no pictures" if len(others) > 1 else "one of its files is no picture"
        yield Path(name), f"{count} ({kinds})"


def read_picture(path: Path) -> Tensor:
    """(32, 32, 3) uint8: rotated as its EXIF says, white where transparent, the central square, resized.

    A picture that has this size already is not resampled. One of over 16 million pixels is shrunk while it is decoded,
    or only some of its pixels are used. None takes more than about 3 GB of memory.

    Raises:
        NotAPicture: the file is of no kind that Pillow knows.
        ValueError: the file is missing, broken, or too large; the message says why in a few words.
    """
    try:
        with warnings.catch_warnings(), _quiet_libraries():
            warnings.simplefilter("ignore")  # what Pillow says of damage that it can read over
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe might never end
                raise ValueError("it is no file, or a folder that may not be opened")
            if status.st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES >> 30} GB")
            with open(path, "rb") as file:
                return torch.from_numpy(np.array(_square(_open(file))))
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except UnidentifiedImageError:
        kind = path.suffix.lower()
        advice = f"it is a {kind[1:].upper()}: save it as JPEG or PNG"
        raise NotAPicture(advice if kind in UNKNOWN else "it is not a picture of a known kind") from None
    except Exception as error:  # Pillow raises anything where a file is damaged
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"it cannot be read ({shorten(reason, 100, placeholder=' ...')})") from None


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without what libtiff writes to the stderr of the process."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """Raises ValueError for what could take all of the memory, or run a program."""
    is_jpeg = file.read(3) == b"\xff\xd8\xff"
    file.seek(0)
    image = JpegImageFile(file) if is_jpeg else Image.open(file)  # which has a lower bound for all kinds
    most = MAX_JPEG_PIXELS if is_jpeg else MAX_PIXELS
    if image.width * image.height > most:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {most:,}")
    if image.format == "EPS":
        raise ValueError("EPS is a program, which Ghostscript would run")
    if is_jpeg:
        image.draft(None, (LARGE, LARGE))  # decodes 1/4, 1/16 or 1/64 of the pixels
    return image


def _square(file: ImageFile.ImageFile) -> Image.Image:
    image = _to_rgb(_fewer_pixels(file))
    if image.size != (SIZE, SIZE):
        # BOX is the mean of the pixels that a new one covers, and restores a picture that was enlarged by repetition.
        shrinks = min(image.size) >= SIZE
        image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    with suppress(Exception):  # not rotated, if the orientation cannot be read
        # ImageOps.exif_transpose reads and writes all fields, and stumbles over any that is malformed.
        image = image.transpose(TURNS[file.getexif()[ExifTags.Base.Orientation]])
    return image


def _fewer_pixels(image: Image.Image) -> Image.Image:
    """Of a large picture's central square every n-th pixel; what is computed of it is a mean over many all the same."""
    if image.width * image.height <= 4 * LARGE**2:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    kept = min(side, LARGE)
    return image.resize((kept, kept), Image.Resampling.NEAREST, box=(left, top, left + side, top + side))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Gray levels that Pillow would clip at 255: 16-bit ones by their upper byte, others by the range they fit in.

    Pixels that are not finite become black.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    ranges = (65535.0,) if image.mode.startswith("I;16") else (1.0, 255.0, 65535.0, values.max())
    top = next(top for top in ranges if values.max() <= top)
    levels = Image.fromarray((values.clip(0) / top * 255).round().astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:  # a level of a PNG
        levels.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return levels
