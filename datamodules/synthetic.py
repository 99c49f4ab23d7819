"""The built-in stand-in for CIFAR-10: drawn pictures of ten shapes, each class leaning to a hue.

Place, size, tilt, ground, faint colors, a bar in front and noise are nuisances: a network needs several epochs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32
PETALS = {"disc": 0, "peanut": 2, "clover": 3, "cross": 4, "star": 5}
CLASSES = (*PETALS, *(f"hollow {name}" for name in PETALS))


def synthetic_images(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """(num, 32, 32, 3) uint8 images and (num,) int64 labels, shuffled, as evenly many of each as ``num`` allows."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randperm(num, generator=rng) % len(CLASSES)
    # 1,000 at once: that bounds the memory, and keeps the arrays close to the cache.
    images = [draw(part, rng).to(torch.uint8).permute(0, 2, 3, 1) for part in labels.split(1000)]
    return torch.cat(images), labels


def draw(labels: Tensor, rng: torch.Generator) -> Tensor:
    """A picture for each of n labels: (n, 3, 32, 32) floats from 0 to 255."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(labels), *shape, generator=rng) * (high - low) + low

    # How far each pixel lies outside its image's shape, in pixels; the shape is moved, scaled, tilted.
    x = torch.arange(SIZE) - (SIZE - 1) / 2
    y = x[:, None]
    radius, dx, dy = uniform(7, 12, 1, 1), x - uniform(-4, 4, 1, 1), y - uniform(-4, 4, 1, 1)
    petals = torch.tensor([*PETALS.values()] * 2)[labels, None, None]
    outline = 0.75 + 0.25 * torch.cos(petals * (dy.atan2(dx) + uniform(-0.6, 0.6, 1, 1)))
    distance = dx.hypot(dy) - radius * outline
    is_hollow = (labels >= len(PETALS))[:, None, None]
    distance = torch.where(is_hollow, (distance + 0.2 * radius).abs() - 0.2 * radius, distance)
    inside = (0.5 - distance).clamp(0, 1).unsqueeze(1)  # an edge one pixel soft

    # A blotchy ground; the shape is a change of its color, so it can be faint.
    blotches = F.interpolate(uniform(-1, 1, 3, 5, 5), size=SIZE, mode="bilinear", align_corners=True)
    image = uniform(80, 175, 1, 1, 1) + uniform(-30, 30, 3, 1, 1) + 35 * blotches
    hue = labels.view(-1, 1, 1, 1) * (2 * math.pi / len(CLASSES)) + uniform(-1, 1, 1, 1, 1)
    primaries = torch.arange(3).view(3, 1, 1) * (2 * math.pi / 3)  # red, green, blue on the circle of hues
    color = torch.cos(hue - primaries) + uniform(-0.7, 0.7, 1, 1, 1)
    image += inside * color * uniform(30, 120, 1, 1, 1)

    # In front of both a bar of any color and noise.
    way, place, width = uniform(-math.pi, math.pi, 1, 1), uniform(-16, 16, 1, 1), uniform(0.5, 2, 1, 1)
    bar = (width + 0.5 - (way.cos() * x + way.sin() * y - place).abs()).clamp(0, 1).unsqueeze(1)
    image = image.lerp(uniform(0, 255, 3, 1, 1), bar)
    return (image + uniform(-15, 15, 3, SIZE, SIZE)).clamp(0, 255)
