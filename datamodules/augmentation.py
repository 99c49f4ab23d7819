"""From uint8 pixels to what the network sees: crop and flip, resize, normalize. All on the pixels' own device."""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN: Sequence[float] = (0.4914, 0.4822, 0.4465)
STD: Sequence[float] = (0.2470, 0.2435, 0.2616)  # over all pixels; (0.2023, 0.1994, 0.2010) is the mean over images
PADDING = 4


def normalize(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """(N, H, W, 3) pixels, 0 to 255 -> (N, 3, H, W) float32, channels_last, per-channel mean 0 and deviation 1."""
    center, scale = center_and_scale(tuple(mean), tuple(std), images.device)
    return ((images - center) * scale).permute(0, 3, 1, 2)


@cache  # to copy them to a GPU for each batch would make the host wait each time
@torch.inference_mode(False)
def center_and_scale(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """(3,) and (3,) float32, for pixels from 0 to 255."""
    return torch.tensor(mean, device=device) * 255, 1 / (torch.tensor(std, device=device) * 255)


def crop_and_flip(images: Tensor, shift: Tensor, flip: Tensor, reflect: bool = False) -> Tensor:
    """Each image cut from its own place in 4 pixels of padding around it, then mirrored or not (He et al. 2015, 4.2).

    ``images`` are (N, H, H, 3) uint8. ``shift`` (N, 2) int64 is the top and left edge of the crop in the padded image,
    0 to 8; (4, 4) is the image itself. ``flip`` (N,) bool mirrors left and right; ``reflect`` is as in TrainBatches.
    """
    N, H, _, C = images.shape
    places = shift[:, :, None] + torch.arange(H, device=images.device)  # (N, 2, H), in the padded image
    if reflect:
        places = H - 1 - (H - 1 - (places - PADDING).abs()).abs()  # in the image: -1 is 1, and H is H - 2
    else:
        images = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    rows, columns = places.unbind(1)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    # One index a pixel: three, one a dimension, take three times as long.
    rows = rows + torch.arange(N, device=images.device)[:, None] * images.shape[1]
    pixels = rows[:, :, None] * images.shape[2] + columns[:, None, :]
    return images.reshape(-1, C).index_select(0, pixels.view(-1)).view(*pixels.shape, C)


def resize(images: Tensor, size: int) -> Tensor:
    """(N, H, H, 3) uint8 -> (N, size, size, 3), uint8 on the CPU, else float32: means over the pixels covered."""
    if size == images.shape[1]:
        return images
    pixels = images.permute(0, 3, 1, 2)
    pixels = pixels if images.device.type == "cpu" else pixels.float()  # uint8 takes a fifth of the time, CPU only
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
