"""TrainBatches and EvalBatches: batches by index from images that lie in one tensor, without copies or workers."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from datamodules.augmentation import PADDING, Augmentation, crop_and_flip, normalize, resize


class TrainBatches:
    """An epoch of shuffled, augmented batches: (N, 3, size, size) normalized float32 images and (N,) int64 labels.

    Order and augmentation are a function of (seed, epoch, place in the epoch) alone: the same after a resume, and the
    same for any number of processes. Each process takes every ``world_size``-th image of a batch of ``batch_size``; the
    last batch of an epoch may be smaller.

    ``images`` are (M, H, W, 3) uint8 and ``labels`` (M,) int64; the batches are on their device. ``size_now``, called
    for each batch, gives the pixels a side of its images. Without ``shuffle`` the images come in their order.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        size_now: Callable[[], int] | None = None,
    ) -> None:
        self.images, self.labels, self.batch_size, self.seed = images, labels, batch_size, seed
        self.augmentation, self.shuffle, self.size_now = augmentation, shuffle, size_now
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.first_batch = 0  # the one to begin with, after a resume inside an epoch
        self.position = 0  # batches of this epoch that were given
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.first_batch = 0  # the checkpoint's epoch may have ended early
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, shift, flip = self._draw()
        first, self.first_batch = self.first_batch, 0
        for batch in range(first, len(self)):
            self.position = batch + 1
            mine = slice(batch * self.batch_size + self.rank, (batch + 1) * self.batch_size, self.world_size)
            pixels, reflect = self.images[order[mine]], self.augmentation.reflect
            pixels = crop_and_flip(pixels, shift[mine], flip[mine], reflect)
            if self.size_now is not None:
                pixels = resize(pixels, self.size_now())
            yield normalize(pixels), self.labels[order[mine]]

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M,) order, (M, 2) shift and (M,) flip of this epoch, different for each seed and epoch."""
        M, device, most = len(self.labels), self.images.device, self.augmentation.max_shift
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(M, generator=generator).to(device)
        if not self.shuffle:
            order = torch.arange(M, device=device)
        shift = PADDING + torch.randint(-most, most + 1, (M, 2), generator=generator).to(device)
        if self.augmentation.alternate_flips:
            first = torch.randint(2, (M,), generator=torch.Generator().manual_seed(self.seed))
            return order, shift, ((first + self.epoch) % 2).bool().to(device)[order]
        return order, shift, torch.randint(2, (M,), generator=generator).bool().to(device)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.first_batch = state["epoch"], state["position"] % len(self)
        self.position = self.first_batch


class EvalBatches:
    """Batches of (N, 3, H, W) normalized float32 images and (N,) int64 labels in the order of the data.

    Arguments as in TrainBatches. Each process takes its share, no image twice.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.images, self.labels = images[rank::world_size], labels[rank::world_size]
        self.batch_size = math.ceil(batch_size / world_size)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
        return ((normalize(images), labels) for images, labels in parts)
