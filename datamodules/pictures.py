"""Picture files of any kind that Pillow reads, as what the classifier was trained on: 32x32 RGB pixels."""

import sys
from collections.abc import Iterable
from glob import glob
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def read_pictures(names: Iterable[str]) -> tuple[dict[Path, Tensor], list[Path]]:
    """(32, 32, 3) uint8 for each picture of the named files and folders, and the files skipped, with a line on stderr.

    A folder's files include those of its sub-folders, but no hidden ones.
    """
    pictures, skipped = {}, []
    for path in (Path(file) for name in names for file in glob(name) or [name]):  # Windows' shells pass *.png as it is
        files = sorted(f for f in path.rglob("*") if f.is_file() and "/." not in f"/{f.relative_to(path).as_posix()}")
        for file in files if path.is_dir() else [path]:
            try:
                pictures[file] = read_picture(file)
            except Exception as error:  # Pillow raises anything where a file is damaged
                print(f"skipped {file}: {error!r}", file=sys.stderr)
                skipped.append(file)
    return pictures, skipped


def read_picture(path: Path) -> Tensor:
    """(32, 32, 3) uint8: turned as its EXIF says, on white where transparent, the central square, shrunk to 32x32."""
    with Image.open(path) as image:
        if image.mode[0] in "IF":  # which Pillow would cut off at 255
            raise ValueError("more than 8 bits a channel")
        image.draft(None, (512, 512))  # a photo in JPEG is decoded at down to an eighth of its size: many times as fast
        turned = ImageOps.exif_transpose(image).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned).convert("RGB")
    # BOX is the mean of the pixels that a new one covers: it restores a picture enlarged by repetition.
    return torch.from_numpy(np.array(ImageOps.fit(picture, (32, 32), Image.Resampling.BOX)))
