"""Picture files of any kind that Pillow reads, as what the classifier was trained on: 32x32 RGB pixels."""

from collections.abc import Iterable
from contextlib import suppress
from glob import glob
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SIZE = 32


def read_pictures(names: Iterable[str]) -> tuple[dict[Path, Tensor], dict[Path, str]]:
    """(32, 32, 3) uint8 for each picture of the named files and folders, and for each other file why it is skipped."""
    pictures: dict[Path, Tensor] = {}
    skipped: dict[Path, str] = {}
    for name in names:
        files = picture_files(name)
        if not files:
            skipped[Path(name)] = "the folder has no files"
        for path in files:
            try:
                pictures[path] = read_picture(path)
            except ValueError as error:
                skipped[path] = str(error)
    return pictures, skipped


def picture_files(name: str) -> list[Path]:
    """The named file, or all files below the named folder, sorted, without hidden ones (names that begin with ".")."""
    files: list[Path] = []
    for path in map(Path, glob(name) or [name]):  # Windows' shells pass on a pattern such as *.png as it is
        if path.is_dir():
            files += [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
        else:
            files.append(path)
    return sorted(files)


def read_picture(path: Path) -> Tensor:
    """(32, 32, 3) uint8: turned as its EXIF says, on white where transparent, the central square, shrunk to 32x32.

    The pixels of a picture of 32x32 are kept.

    Raises:
        ValueError: the file cannot be read; the message is Pillow's or the system's, on one line.
    """
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(_square(image)))
    except Exception as error:  # Pillow raises anything where a file is damaged
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def _square(image: Image.Image) -> Image.Image:
    if image.format == "EPS":
        raise ValueError("EPS is a program, which Pillow would run with Ghostscript")
    image.load()
    with suppress(Exception):  # a damaged EXIF
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip these gray levels at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # BOX is the mean of the pixels that a new one covers: it restores a picture enlarged by repetition.
    return ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BOX)
