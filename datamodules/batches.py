"""TrainBatches and EvalBatches: batches by index from images that lie in one tensor, without copies or workers."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from datamodules.augmentation import PADDING


class TrainBatches:
    """An epoch of shuffled batches: (images, labels, shift, flip), the last two for ``crop_and_flip``.

    Order and augmentation are a function of (seed, epoch, place in the epoch) alone: the same after a resume, and the
    same for any number of processes. A batch is the global batch; each process takes every ``world_size``-th image.

    Images are (N, H, W, 3) uint8, labels (N,) int64; the last batch of an epoch may be smaller. ``max_shift`` and
    ``alternate_flips`` are as in CIFAR10DataModule; without ``shuffle`` the images come in their order.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        max_shift: int = PADDING,
        alternate_flips: bool = False,
        shuffle: bool = True,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.max_shift, self.alternate_flips, self.shuffle = max_shift, alternate_flips, shuffle
        self.epoch = 0
        self.start = 0  # the batch to begin with, after a resume inside an epoch
        self.position = 0  # batches of this epoch that were given
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.start = 0  # a checkpoint may be of an epoch that ended early
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        N, device = len(self.labels), self.images.device
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)  # of no two seeds alike
        order = torch.randperm(N, generator=generator).to(device)  # always drawn, so that the shifts stay the same
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

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.images, self.labels = images[rank::world_size], labels[rank::world_size]
        self.batch_size = math.ceil(batch_size / world_size)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
