"""CIFAR10DataModule: CIFAR-10 (synthetic, or own pictures) as one uint8 tensor, augmented on the Trainer's device."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from datamodules.augmentation import MEAN, PADDING, STD
from datamodules.batches import EvalBatches, TrainBatches
from datamodules.cifar10_files import ARCHIVE, FOLDER, download_cifar10, read_cifar10
from datamodules.pictures import Labeled, mean_and_std, read_folder
from datamodules.synthetic import CLASSES as SYNTHETIC_CLASSES
from datamodules.synthetic import synthetic_images

TRAIN_SUBSET = 5_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10DataModule(LightningDataModule):
    """50,000 training and 10,000 test images of 32x32 pixels in ten classes, in torchvision's layout.

    Batches are (N, 3, 32, 32) normalized float32 images, augmented for training, and (N,) int64 labels, on the
    Trainer's device; prediction is on the test images. Raises ValueError where an argument is out of range, and in
    ``prepare_data`` and ``setup`` MisconfigurationException where the data are absent, damaged, or cannot be fetched.

    Args:
        data_root: the folder that holds cifar-10-batches-py, by default $CIFAR10_ROOT, else data; or with
            dataset="folder" that of the pictures.
        batch_size: images of an optimizer step, over all processes together.
        val_size: hold out the last N training images, and validate on them instead of on the test split.
        seed: of the order and the augmentation, and of which pictures of a folder are for the test.
        download: may CIFAR-10 be fetched when absent.
        dataset: cifar10; synthetic, which needs no files (10,000 and 2,000 drawn images); or folder: pictures of your
            own in data_root/train/<class> and data_root/test/<class>, or in data_root/<class> (see read_folder).
        probe_train: also measure 5,000 training images in each validation, in eval mode, without augmentation.
        test_each_epoch: validate on the test split where val_size is 0; if false, only with probe_train.
        image_sizes: progressive resizing, {start, as a fraction of all steps: pixels a side}; 32 before the first.
        max_shift: pixels that a training image is moved at most, 0 to 4.
        padding_mode: what a shift uncovers: zeros, or the image mirrored at its edge.
        alternate_flips: mirror training images in every second epoch, not at random (Jordan 2024, arXiv 2404.00498).
    """

    def __init__(
        self,
        data_root: str | Path | None = None,
        batch_size: int = 128,
        val_size: int = 0,
        seed: int = 0,
        download: bool = True,
        dataset: Literal["cifar10", "synthetic", "folder"] = "cifar10",
        probe_train: bool = False,
        test_each_epoch: bool = True,
        image_sizes: Mapping[float, int] | None = None,
        max_shift: int = PADDING,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        alternate_flips: bool = False,
    ) -> None:
        super().__init__()
        if dataset not in ("cifar10", "synthetic", "folder") or padding_mode not in ("zeros", "reflect"):
            raise ValueError(f"dataset is {dataset!r}, padding_mode {padding_mode!r}")
        if dataset == "folder" and not data_root:
            raise ValueError("give data_root (--data_root DIR), the folder of your pictures")
        data_root = str(data_root or os.environ.get("CIFAR10_ROOT") or "data")
        # A checkpoint holds plain values, whatever numbers these are, such as NumPy's.
        batch_size, val_size, seed, max_shift = int(batch_size), int(val_size), int(seed), int(max_shift)
        image_sizes = {float(start): int(size) for start, size in sorted((image_sizes or {}).items())}
        self.save_hyperparameters()
        root = Path(data_root).expanduser()
        self.data_root = root.parent if root.name == FOLDER else root
        self.batch_size, self.val_size, self.seed, self.download = batch_size, val_size, seed, download
        self.dataset, self.probe_train, self.test_each_epoch = dataset, probe_train, test_each_epoch
        self.max_shift, self.padding_mode, self.alternate_flips = max_shift, padding_mode, alternate_flips
        self.image_sizes = image_sizes
        self.num_train = 50_000 if dataset == "cifar10" else 10_000
        self.classes: Sequence[str] = CLASSES if dataset == "cifar10" else SYNTHETIC_CLASSES
        self.mean, self.std = MEAN, STD
        self.pictures: list[Labeled] | None = None  # of a folder: to train on, to test on
        if dataset == "folder":
            self.classes, *self.pictures = read_folder(self.data_root, seed)
            self.num_train = len(self.pictures[0][1])
            self.mean, self.std = mean_and_std(self.pictures[0][0])
        if batch_size < 1 or not 0 <= val_size < self.num_train or not 0 <= max_shift <= PADDING:
            raise ValueError(f"batch_size is {batch_size}, val_size {val_size}, max_shift {max_shift}: out of range")
        if not all(0 <= start < 1 and 8 <= size <= 32 for start, size in image_sizes.items()):
            raise ValueError(f"image_sizes is {image_sizes}; fractions are from 0 to below 1, sizes 8 to 32 pixels")

    def prepare_data(self) -> None:
        """Unpacks CIFAR-10, or fetches it, where it is absent."""
        if self.dataset != "cifar10" or (self.data_root / FOLDER).is_dir():
            return
        if not (self.download or (self.data_root / ARCHIVE).exists()):
            words = "give its folder (--data_root, CIFAR10_ROOT), --download true, or cifar.py --data synthetic"
            raise MisconfigurationException(f"CIFAR-10 is not in {self.data_root}: {words}")
        download_cifar10(self.data_root)

    def setup(self, stage: str | None = None) -> None:
        """Sets ``train`` and ``test``, each (images, labels), on the Trainer's device: that saves a copy every step.

        A subclass may change them after ``super().setup()``. Only the labels are its own, to be written into; all data
        modules of the process share the images, (N, 32, 32, 3) uint8, 184 MB.
        """
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        parts = self.pictures or [read_images(self.dataset, self.data_root, train, device) for train in (True, False)]
        self.train, self.test = ((images.to(device), labels.to(device, copy=True)) for images, labels in parts)

    def train_dataloader(self) -> TrainBatches:
        """In a loop of your own call its ``set_epoch(epoch)``, as the Trainer does, for another order each epoch."""
        images, labels = (part[: len(part) - self.val_size] for part in self.train)
        how = self._how
        if min(self.batch_size, (len(labels) - 1) % self.batch_size + 1) < how["world_size"]:
            words = f"a batch of {self.batch_size}, or the last one, is too small for {how['world_size']} processes"
            raise MisconfigurationException(f"{words}: choose another batch_size or val_size")
        # To overfit is to see the same images, epoch by epoch.
        shuffle = self.trainer is None or self.trainer.overfit_batches == 0  # type: ignore[attr-defined]
        size_now = self._size_now if self.image_sizes and self.trainer is not None else None
        how |= {"seed": self.seed, "max_shift": self.max_shift, "reflect": self.padding_mode == "reflect"}
        how |= {"alternate_flips": self.alternate_flips, "shuffle": shuffle, "size_now": size_now}
        return TrainBatches(images, labels, **how)

    def _size_now(self) -> int:
        """Pixels a side of the training images of the Trainer's next step."""
        done = self.trainer.global_step / self.trainer.estimated_stepping_batches  # type: ignore[union-attr]
        return [32, *(size for start, size in self.image_sizes.items() if start <= done)][-1]

    def val_dataloader(self) -> list[EvalBatches]:
        if not (self.val_size or self.test_each_epoch or self.probe_train):
            return []
        images, labels = self.train if self.val_size else self.test
        loaders = [EvalBatches(images[-self.val_size :], labels[-self.val_size :], **self._how)]  # [-0:] is all
        if self.probe_train:
            num = min(TRAIN_SUBSET, len(self.train[1]) - self.val_size)
            loaders.append(EvalBatches(self.train[0][:num], self.train[1][:num], **self._how))
        return loaders

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(*self.test, **self._how)

    def predict_dataloader(self) -> EvalBatches:
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Mean and standard deviation of the normalization, and the classes: what a checkpoint's network expects."""
        return {"mean": list(self.mean), "std": list(self.std), "classes": list(self.classes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Own pictures are tested with the checkpoint's normalization.

        Raises MisconfigurationException where its classes are others, or training would continue on other pictures.
        """
        if self.dataset != "folder":
            return
        # Among other pictures the seed would choose some for the test that the network was trained on.
        training = self.trainer is not None and self.trainer.training
        if state["classes"] != list(self.classes) or (training and state != self.state_dict()):
            raise MisconfigurationException(f"{self.data_root} no longer holds the pictures that the run began with")
        self.mean, self.std = tuple(state["mean"]), tuple(state["std"])

    @property
    def _how(self) -> dict[str, Any]:
        """How images become batches, to train and to evaluate."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        how = {"batch_size": self.batch_size, "rank": rank, "world_size": world_size}
        return {**how, "mean": self.mean, "std": self.std}


@cache  # fit and test, and runs of several seeds, share the images
def read_images(dataset: str, data_root: Path, train: bool, device: torch.device) -> Labeled:
    """(N, 32, 32, 3) uint8 and (N,) int64. Raises MisconfigurationException where a file is not the official one."""
    if dataset == "synthetic":
        images, labels = synthetic_images(10_000, seed=0) if train else synthetic_images(2_000, seed=1)
    else:
        images, labels = read_cifar10(data_root, train)
    return images.to(device), labels
