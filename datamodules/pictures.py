"""Picture files of any kind as what the classifier was trained on: 32x32 RGB pixels."""

from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def find_pictures(names: Iterable[str]) -> Iterator[Path]:
    """The named files, all pictures below a named folder, and the files that a pattern such as ``cats/*.png`` matches.

    Those of one name are sorted.

    Raises:
        ValueError: no file is found under one of the names.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES]
        elif path.exists() or not any(sign in name for sign in "*?["):
            found = [path]
        else:  # where no shell has done it, as on Windows
            found = [Path(p) for p in glob(name, recursive=True)]
        files = sorted(p for p in found if not p.is_dir())
        if not files:
            raise ValueError(f"there is no picture in {name}")
        yield from files


def read_picture(path: Path, size: int = 32) -> Tensor:
    """(size, size, 3) uint8: rotated as its EXIF says, white where transparent, the central square, resized.

    A picture that has this size already is not resampled.

    Raises:
        ValueError: the file is missing, broken, or no picture; the message says why in a few words.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I") or image.mode == "F":
                image = _to_8_bits(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except UnidentifiedImageError:
        raise ValueError("it is not a picture of a known kind") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be read ({' '.join(str(error).split())[:100]})") from None
    if image.size != (size, size):
        # BOX is the mean of the pixels that a new one covers, and restores a picture that was enlarged by repetition.
        shrinks = min(image.size) >= size
        image = ImageOps.fit(image, (size, size), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Gray levels that Pillow would clip at 255: 16-bit ones by their upper byte, others by the range they fit in.

    Pixels that are not finite become black.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    ranges = (65535.0,) if image.mode.startswith("I;16") else (1.0, 255.0, 65535.0, values.max())
    top = next(top for top in ranges if values.max() <= top)
    return Image.fromarray((values.clip(0) / top * 255).round().astype(np.uint8))
