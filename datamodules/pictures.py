"""Pictures of your own as 32x32 RGB pixels: files that Pillow reads, and folders with a sub-folder for each class."""

import sys
from collections.abc import Iterable, Sequence
from glob import escape, glob
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Labeled = tuple[Tensor, Tensor]  # (N, 32, 32, 3) uint8 images, (N,) int64 labels


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


def read_folder(root: Path, seed: int) -> tuple[list[str], Labeled, Labeled]:
    """The names of the classes in sorted order, training images, and test images, both in a random order.

    They are in ``root/train/<class>`` and ``root/test/<class>``, or in ``root/<class>``, of which the seed then chooses
    a fifth of each class, at least one picture, for the test. What cannot be read is skipped, with a line on stderr.
    Raises ValueError where there are not 2 to 1,000 classes, the same for both, with a readable picture each.
    """
    parts = [part for name in ("[Tt]rain", "[Tt]est") for part in root.glob(name) if part.is_dir()]
    if len(parts) == 1:
        raise ValueError(f"{root} holds {parts[0].name} alone: it takes train and test, or a folder for each class")
    if others := [name for name in subfolders(root) if parts and root / name not in parts]:
        print(f"skipped {root}: {', '.join(others)}, for there are train and test", file=sys.stderr)
    inner = {tuple(subfolders(root / name)) for name in subfolders(root)}
    if not parts and len(inner) == 1 and len(max(inner)) > 1:
        raise ValueError(f"each folder of {root} holds {max(inner)}: if these are the classes, name it train or test")
    parts = parts or [root]
    names = [subfolders(part) for part in parts]
    if odd := {*names[0]} ^ {*names[-1]}:
        raise ValueError(f"{root}: train and test must hold the same classes; only one of them has {sorted(odd)}")
    classes, least, rng = names[0], 3 - len(parts), torch.Generator().manual_seed(seed)
    if not 2 <= len(classes) <= 1000:
        raise ValueError(f"{parts[0]} must hold 2 to 1,000 sub-folders, one for each class, not {len(classes)}")
    splits = []
    for name in classes:
        images = []
        for part in parts:
            pictures, _ = read_pictures([escape(str(part / name))])
            if len(pictures) < least:
                raise ValueError(f"{part / name} holds {len(pictures)} readable pictures; {least} or more are needed")
            images.append(torch.stack(list(pictures.values())))
        if len(parts) == 1:
            mixed, num = images[0][torch.randperm(len(images[0]), generator=rng)], max(1, len(images[0]) // 5)
            images = [mixed[num:], mixed[:num]]
        splits.append(images)
    train, test = (shuffled(images, rng) for images in zip(*splits, strict=True))
    return classes, train, test


def subfolders(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and each.name[0] != ".")


def shuffled(images: tuple[Tensor, ...], rng: torch.Generator) -> Labeled:
    """The images of all classes, a tensor each, in a random order, so that any part of them has all classes."""
    labels = torch.cat([torch.full((len(each),), label) for label, each in enumerate(images)])
    order = torch.randperm(len(labels), generator=rng)
    return torch.cat(images)[order], labels[order]


def counts(classes: Sequence[str], pictures: Sequence[Labeled]) -> str:
    """How many pictures each class has, and which classes have few."""
    train, test = (labels.bincount(minlength=len(classes)).tolist() for _, labels in pictures)
    each = list(zip(classes, train, test, strict=True))
    few = [name for name, a, b in each if a + b < 10]
    warning = f"\nUnder ten pictures, so that its accuracy says little: {', '.join(few)}" if few else ""
    return "Pictures to train on + to test on: " + ", ".join(f"{name} {a} + {b}" for name, a, b in each) + warning


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel, as fractions of 1, rounded to six digits; a channel that is constant has deviation 0.001."""
    each = [torch.std_mean(channel.double() / 255, correction=0) for channel in images.unbind(3)]
    return tuple(round(mean.item(), 6) for _, mean in each), tuple(max(round(std.item(), 6), 0.001) for std, _ in each)
