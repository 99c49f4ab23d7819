"""Pictures of your own as training and test images: a folder with a sub-folder for each class."""

from glob import escape
from pathlib import Path

import torch
from torch import Tensor

from datamodules.pictures import read_pictures

Labeled = tuple[Tensor, Tensor]  # (N, 32, 32, 3) uint8 images, (N,) int64 labels


def read_folder(root: Path, seed: int) -> tuple[list[str], Labeled, Labeled]:
    """The names of the classes in sorted order, training images, and test images, both in a random order.

    They are in ``root/train/<class>`` and ``root/test/<class>``, or in ``root/<class>``, of which the seed then chooses
    a fifth of each class, at least one picture, for the test. What cannot be read is skipped, with a line on stderr.
    Raises ValueError where there are not 2 to 1,000 classes, the same for both, with a readable picture each.
    """
    parts = [root / name for name in ("train", "test") if (root / name).is_dir()]
    if len(parts) == 1:
        raise ValueError(
            f"{root} holds {parts[0].name} alone: it takes both train and test, or a folder for each class"
        )
    parts = parts or [root]
    names = [sorted(each.name for each in part.iterdir() if each.is_dir() and each.name[0] != ".") for part in parts]
    if odd := {*names[0]} ^ {*names[-1]}:
        raise ValueError(f"{root}: train and test must hold the same classes; only one of them has {sorted(odd)}")
    classes, splits, rng = names[0], list[list[Tensor]](), torch.Generator().manual_seed(seed)
    if not 2 <= len(classes) <= 1000:
        raise ValueError(f"{parts[0]} must hold 2 to 1,000 sub-folders, one for each class, not {len(classes)}")
    for name in classes:
        images = [read_class(part / name, at_least=3 - len(parts)) for part in parts]
        if len(parts) == 1:
            mixed, num = images[0][torch.randperm(len(images[0]), generator=rng)], max(1, len(images[0]) // 5)
            images = [mixed[num:], mixed[:num]]
        splits.append(images)
    train, test = (shuffled(images, rng) for images in zip(*splits, strict=True))
    return classes, train, test


def read_class(folder: Path, at_least: int) -> Tensor:
    """(N, 32, 32, 3) uint8. Raises ValueError where fewer pictures can be read."""
    pictures, _ = read_pictures([escape(str(folder))])
    if len(pictures) < at_least:
        raise ValueError(f"{folder} holds {len(pictures)} readable pictures; {at_least} or more are needed")
    return torch.stack(list(pictures.values()))


def shuffled(images: tuple[Tensor, ...], rng: torch.Generator) -> Labeled:
    """The images of all classes, a tensor each, in a random order, so that any part of them has all classes."""
    labels = torch.cat([torch.full((len(each),), label) for label, each in enumerate(images)])
    order = torch.randperm(len(labels), generator=rng)
    return torch.cat(images)[order], labels[order]


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel, as fractions of 1, rounded to six digits; a channel that is constant has deviation 0.001."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(3)]).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(round(each, 6) for each in mean.tolist()), tuple(round(each, 6) for each in std.tolist())
