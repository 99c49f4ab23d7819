"""TrainBatches and EvalBatches: batches by index from images that lie in one tensor, without copies or workers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.augmentation import MEAN, PADDING, STD, crop_and_flip, normalize, resize


@dataclass(eq=False)
class EvalBatches:
    """Batches in the order of the data: (N, 3, H, H) normalized float32 images and (N,) int64 labels.

    Each process takes every ``world_size``-th image of a batch of ``batch_size``; the last batch may be smaller.
    """

    images: Tensor  # (M, H, H, 3) uint8; the batches are on its device
    labels: Tensor  # (M,) int64
    batch_size: int
    rank: int = 0
    world_size: int = 1
    mean: Sequence[float] = MEAN  # of the normalization
    std: Sequence[float] = STD

    def __len__(self) -> int:
        return math.ceil((len(self.labels) - self.rank) / self.batch_size)  # none is empty

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(len(self)):
            mine = self._mine(batch)
            yield normalize(self.images[mine], self.mean, self.std), self.labels[mine]

    def _mine(self, batch: int) -> slice:
        return slice(batch * self.batch_size + self.rank, (batch + 1) * self.batch_size, self.world_size)


@dataclass(eq=False)
class TrainBatches(EvalBatches):
    """An epoch of shuffled, augmented batches, with images of (N, 3, size, size).

    Order and augmentation are a function of (seed, epoch, place in the epoch) alone: the same after a resume, and the
    same for any number of processes.
    """

    seed: int = 0
    max_shift: int = PADDING  # pixels that an image is moved at most
    reflect: bool = False  # at the edge pixels, as torchvision's "reflect", where a shift uncovers; else zeros
    alternate_flips: bool = False  # mirrored in every second epoch, not at random
    shuffle: bool = True  # if false, the images come in their order
    size_now: Callable[[], int] | None = None  # gives each batch's pixels a side
    epoch = 0
    first_batch = 0  # of the next iteration; not 0 after a resume inside an epoch
    position = 0  # batches of this epoch that were given
    sampler = property(lambda self: self)  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.first_batch = 0  # the checkpoint's epoch may have ended early
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        M, device, most = len(self.labels), self.images.device, self.max_shift
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(M, generator=generator)
        shift = PADDING + torch.randint(-most, most + 1, (M, 2), generator=generator)
        flip = torch.randint(2, (M,), generator=generator)
        if not self.shuffle:
            order = torch.arange(M)
        if self.alternate_flips:
            first_flips = torch.randint(2, (M,), generator=torch.Generator().manual_seed(self.seed))
            flip = (first_flips[order] + self.epoch) % 2
        order, shift, flip = order.to(device), shift.to(device), flip.bool().to(device)
        first, self.first_batch = self.first_batch, 0
        for batch in range(first, len(self)):
            self.position = batch + 1
            mine = self._mine(batch)
            pixels = crop_and_flip(self.images[order[mine]], shift[mine], flip[mine], self.reflect)
            if self.size_now is not None:
                pixels = resize(pixels, self.size_now())
            yield normalize(pixels, self.mean, self.std), self.labels[order[mine]]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.first_batch = state["epoch"], state["position"] % len(self)
        self.position = self.first_batch
