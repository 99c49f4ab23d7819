"""CIFAR-10 (or the synthetic stand-in) as one uint8 tensor; batches by index, augmentation on the Trainer's device."""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from datamodules.download import DataError, download_cifar10
from datamodules.synthetic import CLASSES as SYNTHETIC_CLASSES
from datamodules.synthetic import synthetic_images

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)  # over all pixels; the common (0.2023, 0.1994, 0.2010) is the mean over images
PADDING = 4
PROBE_SIZE = 5_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def normalize(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in channels_last order, per-channel mean 0 and deviation 1."""
    mean = torch.tensor(MEAN, device=images.device) * 255
    scale = 1 / (torch.tensor(STD, device=images.device) * 255)
    return ((images - mean) * scale).permute(0, 3, 1, 2)


def crop_and_flip(images: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Each image cut from its own place in 4 pixels of zeros around it, then mirrored or not (He et al. 2015, 4.2).

    Args:
        images: (N, H, W, 3) uint8.
        shift: (N, 2) int64, top and left edge of the crop in the padded image, 0 to 8; (4, 4) is the image itself.
        flip: (N,) bool, whether to mirror left and right.
    """
    N, H, W, _ = images.shape
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    rows = shift[:, :1] + torch.arange(H, device=images.device)
    columns = torch.arange(W, device=images.device)
    columns = shift[:, 1:] + torch.where(flip[:, None], W - 1 - columns, columns)
    return padded[torch.arange(N, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def shrink(images: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) float32 -> (N, 3, size, size), each new pixel a mean over those that it covers."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


class TrainBatches:
    """An epoch of shuffled batches: (images, labels, shift, flip), the last two for ``crop_and_flip``.

    Order and augmentation are a function of (seed, epoch, place in the epoch) alone: the same after a resume, and the
    same for any number of processes. A batch is the global batch; each process takes every ``world_size``-th image.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        max_shift: int = PADDING,
        alternate_flips: bool = False,
        shuffle: bool = True,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.max_shift, self.alternate_flips, self.shuffle = max_shift, alternate_flips, shuffle
        self.epoch = 0
        self.start = 0  # the batch to begin with, after a resume inside an epoch
        self.position = 0
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        N, device = len(self.labels), self.images.device
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(N, generator=generator).to(device)
        if not self.shuffle:
            order = torch.arange(N, device=device)
        shift = PADDING + torch.randint(-self.max_shift, self.max_shift + 1, (N, 2), generator=generator).to(device)
        if self.alternate_flips:
            first = torch.randint(2, (N,), generator=torch.Generator().manual_seed(self.seed))
            flip = ((first + self.epoch) % 2).bool().to(device)[order]
        else:
            flip = torch.randint(2, (N,), generator=generator).bool().to(device)
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            self.position = batch + 1
            mine = slice(batch * self.batch_size + self.rank, (batch + 1) * self.batch_size, self.world_size)
            index = order[mine]
            yield self.images[index], self.labels[index], shift[mine], flip[mine]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.start = state["epoch"], state["position"] % len(self)
        self.position = self.start


class EvalBatches:
    """Batches of (images, labels) in the order of the data; each process takes its share, no image twice."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, rank: int, world_size: int) -> None:
        self.images, self.labels = images[rank::world_size], labels[rank::world_size]
        self.batch_size = -(-batch_size // world_size)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


@cache  # the runs of several seeds share the images
def read_images(data_root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """(N, 32, 32, 3) uint8 and (N,) int64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*align should be passed.*")  # numpy on the files' old pickles
        data = CIFAR10(str(data_root), train=train)
    return torch.from_numpy(data.data).contiguous(), torch.tensor(data.targets)


class CIFAR10DataModule(LightningDataModule):
    """50,000 training and 10,000 test images of 32x32 pixels in ten classes, in torchvision's layout.

    Gives batches of (N, 3, 32, 32) float32 normalised images and (N,) int64 labels on the Trainer's device. Validation
    is on the test split, or with ``val_size`` on that many last training images, which are then not trained on.

    To be set before training, if at all: ``image_sizes``, {from this fraction of its steps on: pixels a side} of the
    training images, in this order; smaller ones take less time. ``max_shift``, the pixels that a training image is
    moved at most, 0 to 4. ``alternate_flips``, to mirror an image in every second epoch rather than at random (Jordan
    2024, arXiv:2404.00498).

    Args:
        data_root: the folder that holds ``cifar-10-batches-py``.
        batch_size: images an optimizer step, over all processes.
        val_size: training images to hold out.
        seed: of the order and the augmentation.
        download: fetch the data when absent.
        probe: add a second validation loader: the first 5,000 training images, unaugmented.
        dataset: ``cifar10``, or ``synthetic``: 10,000 and 2,000 drawn images that need no files.

    Raises:
        DataError: from ``prepare_data``: the data are absent, or not the official ones, or cannot be fetched.
        ValueError: batch_size or val_size is out of range.
        MisconfigurationException: from ``train_dataloader``: a process would get no image of a batch.
    """

    def __init__(
        self,
        data_root: str | Path = "data",
        batch_size: int = 128,
        val_size: int = 0,
        seed: int = 0,
        download: bool = True,
        dataset: Literal["cifar10", "synthetic"] = "cifar10",
        probe: bool = False,
    ) -> None:
        super().__init__()
        self.image_sizes: dict[float, int] = {}
        self.max_shift, self.alternate_flips = PADDING, False
        self.data_root, self.batch_size, self.val_size = Path(data_root), batch_size, val_size
        self.seed, self.download, self.dataset, self.probe = seed, download, dataset, probe
        self._prepared = False  # Lightning calls prepare_data again for fit and for test
        self.classes = CLASSES if dataset == "cifar10" else SYNTHETIC_CLASSES
        self.num_train = num_train = 50_000 if dataset == "cifar10" else 10_000
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if not 0 <= val_size < num_train:
            raise ValueError(f"val_size is {val_size}; it must be from 0 to {num_train - 1}")
        num_test = num_train // 5
        numbers = {"train": num_train - val_size, "val": val_size or num_test, "test": num_test}
        self.num_batches = {stage: -(-n // batch_size) for stage, n in numbers.items()}

    def prepare_data(self) -> None:
        """Finds the data, or fetches them, and checks them against torchvision's md5 sums."""
        if self.dataset == "synthetic" or self._prepared:
            return
        folder = self.data_root / CIFAR10.base_folder
        if not folder.is_dir():
            if not self.download:
                raise DataError(
                    f"CIFAR-10 is not in {self.data_root}: set --data_root or CIFAR10_ROOT to the folder that holds "
                    f"{CIFAR10.base_folder}, or allow --download true, or try --data synthetic"
                )
            download_cifar10(self.data_root)
        files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
        bad = [name for name, md5 in files if not check_integrity(str(folder / name), md5)]
        if bad:
            raise DataError(
                f"{folder / bad[0]} is {'corrupt' if (folder / bad[0]).exists() else 'missing'} (md5): "
                f"remove {folder} and run again with --download true, or put a good copy there"
            )
        self._prepared = True

    def setup(self, stage: str) -> None:
        if hasattr(self, "train"):
            return
        if self.dataset == "synthetic":
            self.train, self.test = synthetic_images(10_000, seed=0), synthetic_images(2_000, seed=1)
        else:
            # prepare_data has checked the files, which torchvision reads by pickle.
            self.train, self.test = (read_images(self.data_root, train) for train in (True, False))
        if self.trainer is not None:
            # 184 MB of pixels: on the device once, rather than a copy every step.
            device = self.trainer.strategy.root_device
            self.train, self.test = ((x.to(device), y.to(device)) for x, y in (self.train, self.test))

    def train_dataloader(self) -> TrainBatches:
        images, labels = self.train
        kept = len(labels) - self.val_size
        self.check_processes(self._process[1])
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return TrainBatches(
            images[:kept],
            labels[:kept],
            self.batch_size,
            self.seed,
            *self._process,
            max_shift=self.max_shift,
            alternate_flips=self.alternate_flips,
            shuffle=not overfits,  # the same batches, epoch by epoch
        )

    def check_processes(self, world_size: int) -> None:
        """Raises MisconfigurationException where one of so many processes would get no image of a training batch."""
        kept = self.num_train - self.val_size
        if min(self.batch_size, (kept - 1) % self.batch_size + 1) < world_size:
            raise MisconfigurationException(
                f"a batch of --batch_size {self.batch_size}, or the last of {kept} images, is too small to give each "
                f"of {world_size} processes an image: choose another --batch_size or --val_size"
            )

    def val_dataloader(self) -> list[EvalBatches]:
        images, labels = self.train if self.val_size else self.test
        parts = [(images[-self.val_size :], labels[-self.val_size :])]
        if self.probe:
            kept = min(PROBE_SIZE, len(self.train[1]) - self.val_size)
            parts.append((self.train[0][:kept], self.train[1][:kept]))
        return [EvalBatches(*part, self.batch_size, *self._process) for part in parts]

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(*self.test, self.batch_size, *self._process)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of its network's inputs and outputs."""
        return {"mean": list(MEAN), "std": list(STD), "classes": list(self.classes)}

    @property
    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels, *augmentation = batch
        images = normalize(crop_and_flip(images, *augmentation) if augmentation else images)
        if augmentation and self.image_sizes and self.trainer is not None:
            done = self.trainer.global_step / self.trainer.estimated_stepping_batches
            sizes = [size for start, size in self.image_sizes.items() if start <= done]
            images = shrink(images, sizes[-1]) if sizes else images
        if self.trainer is not None:  # bf16-true, 64-true: Lightning has converted the batch when it was still uint8
            images = images.to(self.trainer.lightning_module.dtype)
        return images, labels
