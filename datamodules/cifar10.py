"""CIFAR10DataModule: CIFAR-10 (or the synthetic stand-in) as one uint8 tensor, augmented on the Trainer's device."""

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.datasets import CIFAR10

from datamodules.augmentation import MEAN, PADDING, STD, Augmentation
from datamodules.batches import EvalBatches, TrainBatches
from datamodules.download import download_cifar10
from datamodules.synthetic import CLASSES as SYNTHETIC_CLASSES
from datamodules.synthetic import synthetic_images

TRAIN_SUBSET = 5_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10DataModule(LightningDataModule):
    """50,000 training and 10,000 test images of 32x32 pixels in ten classes, in torchvision's layout.

    The loaders give (N, 3, 32, 32) normalized float32 images, training images augmented, and smaller where
    ``image_sizes`` says so, and (N,) int64 labels, in a Trainer on its device; prediction is on the test images.

    Args:
        data_root: the folder that holds cifar-10-batches-py.
        batch_size: images of an optimizer step, over all processes together.
        val_size: hold out the last N training images, and validate on them instead of on the test split.
        seed: of the order and the augmentation.
        download: may CIFAR-10 be fetched when absent.
        dataset: cifar10, or synthetic, which needs no files (10,000 and 2,000 drawn images).
        probe_train: also measure 5,000 fixed training images in each validation, in eval mode, without augmentation
            (a second validation loader).
        test_each_epoch: validate on the test split after each epoch where val_size is 0; if false, the test split is
            measured at the end only (but with probe_train after each epoch all the same).
        image_sizes: {start, as a fraction of all steps of a Trainer: pixels a side}, to which training images are
            resized from there on (progressive resizing); before the first start, and without any, 32.
        max_shift: pixels that a training image is moved at most, 0 to 4.
        padding_mode: what a shift uncovers: zeros, or the image mirrored at its edge.
        alternate_flips: mirror each training image in every second epoch instead of at random (Jordan 2024, arXiv
            2404.00498).

    Raises:
        ValueError: an argument is out of range.
        MisconfigurationException: from prepare_data, the data are absent, or not the official ones, or cannot be
            fetched; from train_dataloader, a process would get no image of a batch.
    """

    def __init__(
        self,
        data_root: str | Path = "data",
        batch_size: int = 128,
        val_size: int = 0,
        seed: int = 0,
        download: bool = True,
        dataset: Literal["cifar10", "synthetic"] = "cifar10",
        probe_train: bool = False,
        test_each_epoch: bool = True,
        image_sizes: Mapping[float, int] | None = None,
        max_shift: int = PADDING,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        alternate_flips: bool = False,
    ) -> None:
        super().__init__()
        # A checkpoint holds plain values, whatever numbers these are, such as NumPy's.
        data_root, batch_size, val_size = str(data_root), int(batch_size), int(val_size)
        seed, max_shift = int(seed), int(max_shift)
        image_sizes = dict(sorted((float(start), int(size)) for start, size in (image_sizes or {}).items()))
        self.save_hyperparameters()
        self.data_root = Path(data_root).expanduser()
        self.batch_size, self.val_size, self.seed, self.download = batch_size, val_size, seed, download
        self.dataset, self.probe_train, self.test_each_epoch = dataset, probe_train, test_each_epoch
        self.augmentation = Augmentation(max_shift, padding_mode == "reflect", alternate_flips)
        self.image_sizes = image_sizes
        self.classes = CLASSES if dataset == "cifar10" else SYNTHETIC_CLASSES
        self.num_train = 50_000 if dataset == "cifar10" else 10_000
        if dataset not in ("cifar10", "synthetic") or padding_mode not in ("zeros", "reflect"):
            choices = "'cifar10' or 'synthetic', and 'zeros' or 'reflect'"
            raise ValueError(f"dataset is {dataset!r} and padding_mode {padding_mode!r}; they are {choices}")
        if batch_size < 1 or not 0 <= val_size < self.num_train:
            raise ValueError(f"batch_size is {batch_size} and val_size {val_size} of {self.num_train} images")
        if not 0 <= max_shift <= PADDING:
            raise ValueError(f"max_shift is {max_shift}; it must be from 0 to {PADDING}")
        if not all(0 <= start < 1 and 8 <= size <= 32 for start, size in image_sizes.items()):
            raise ValueError(f"image_sizes is {image_sizes}; fractions are from 0 to below 1, sizes 8 to 32 pixels")

    @property
    def is_at_hand(self) -> bool:
        """Whether CIFAR-10, unpacked or as its archive, is in ``data_root``."""
        return (self.data_root / CIFAR10.base_folder).is_dir() or (self.data_root / CIFAR10.filename).exists()

    def prepare_data(self) -> None:
        """Finds the data, or fetches them, and reads them, checked against torchvision's md5 sums."""
        if self.dataset == "synthetic":
            return
        if not (self.data_root / CIFAR10.base_folder).is_dir():
            if not (self.download or self.is_at_hand):
                raise MisconfigurationException(
                    f"CIFAR-10 is not in {self.data_root}: give data_root (--data_root, CIFAR10_ROOT) the folder "
                    f"that holds {CIFAR10.base_folder}, or allow download (--download true), or train on drawn "
                    "pictures instead (cifar.py --data synthetic)"
                )
            download_cifar10(self.data_root)
        for train in (True, False):
            read_images(self.dataset, self.data_root, train)

    def setup(self, stage: str | None = None) -> None:
        """Reads all images, about 184 MB of pixels, onto the device once, rather than by a copy every step.

        Later calls keep the ``train`` and ``test`` that they find, each (images, labels). A subclass puts others in
        their place; all data modules of the process share the images, which are not to be written into.
        """
        if not hasattr(self, "train"):
            parts = (read_images(self.dataset, self.data_root, train) for train in (True, False))
            # The labels are this module's own, to be changed at will.
            self.train, self.test = ((images, labels.clone()) for images, labels in parts)
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            self.train, self.test = ((x.to(device), y.to(device)) for x, y in (self.train, self.test))

    def train_dataloader(self) -> TrainBatches:
        images, labels = (part[: len(part) - self.val_size] for part in self.train)
        rank, world_size = self._rank_and_size
        if min(self.batch_size, (len(labels) - 1) % self.batch_size + 1) < world_size:
            raise MisconfigurationException(
                f"a batch of batch_size {self.batch_size}, or the last one of {len(labels)} images, is too small to "
                f"give each of {world_size} processes an image: choose another batch_size or val_size"
            )
        trainer = self.trainer
        # To overfit is to see the same images, epoch by epoch.
        shuffle = trainer is None or trainer.overfit_batches == 0  # type: ignore[attr-defined]
        size = partial(self._size_now, trainer) if self.image_sizes and trainer is not None else None
        return TrainBatches(
            images, labels, self.batch_size, self.seed, self.augmentation, rank, world_size, shuffle, size
        )

    def _size_now(self, trainer: Trainer) -> int:
        """Pixels a side of the training images of the Trainer's next step."""
        done = trainer.global_step / trainer.estimated_stepping_batches
        return [32, *(size for start, size in self.image_sizes.items() if start <= done)][-1]

    def val_dataloader(self) -> list[EvalBatches]:
        if not (self.val_size or self.test_each_epoch or self.probe_train):
            return []
        images, labels = self.train if self.val_size else self.test
        parts = [(images[-self.val_size :], labels[-self.val_size :])]  # with val_size 0 all of the test split
        if self.probe_train:
            kept = min(TRAIN_SUBSET, len(self.train[1]) - self.val_size)
            parts.append((self.train[0][:kept], self.train[1][:kept]))
        return [EvalBatches(*part, self.batch_size, *self._rank_and_size) for part in parts]

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(*self.test, self.batch_size, *self._rank_and_size)

    def predict_dataloader(self) -> EvalBatches:
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Mean and standard deviation of the normalization, and the classes: what a checkpoint's network expects."""
        return {"mean": list(MEAN), "std": list(STD), "classes": list(self.classes)}

    @property
    def _rank_and_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


@cache  # runs of several seeds share the images
def read_images(dataset: str, data_root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """(N, 32, 32, 3) uint8 and (N,) int64.

    torchvision's ``CIFAR10`` would read and check all files anew for each of the splits.

    Raises:
        MisconfigurationException: a file is missing, or not the official one.
    """
    if dataset == "synthetic":
        return synthetic_images(10_000, seed=0) if train else synthetic_images(2_000, seed=1)
    folder, files = data_root / CIFAR10.base_folder, CIFAR10.train_list if train else CIFAR10.test_list
    images = torch.empty(len(files), 10_000, 32, 32, 3, dtype=torch.uint8)  # filled file by file: the memory's peak
    labels: list[int] = []
    for part, (name, md5) in zip(images, files, strict=True):
        path = folder / name
        content = path.read_bytes() if path.exists() else None
        if content is None or hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise MisconfigurationException(
                f"{path} is {'missing' if content is None else 'corrupt'} (md5): "
                f"remove {folder} and run again with download (--download true), or put a good copy there"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*align should be passed.*")  # numpy on these old pickles
            batch = pickle.loads(content, encoding="latin1")  # the official file: its md5 says so
        part.copy_(torch.from_numpy(batch["data"]).view(-1, 3, 32, 32).permute(0, 2, 3, 1))
        labels += batch["labels"]
    return images.flatten(0, 1), torch.tensor(labels)
