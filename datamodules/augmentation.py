"""From uint8 pixels to what the network sees: normalize, crop and flip, resize. All on the pixels' own device."""

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)  # over all pixels; the common (0.2023, 0.1994, 0.2010) is the mean over images
PADDING = 4


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


def resize(images: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) float32 -> (N, 3, size, size), each smaller pixel a mean over those that it covers."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
