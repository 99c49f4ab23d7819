"""The built-in stand-in for CIFAR-10: pictures of ten shapes, each class leaning to a hue.

Place, size, tilt, ground, faint colors, a bar in front and noise are nuisances: a network needs several epochs.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32

# About the signed distance to each shape's outline, negative inside; x goes right, y down, the radius is 1.
# No shape turns into another when mirrored or tilted.
SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ball": lambda x, y: x.hypot(y) - 0.9,
    "ring": lambda x, y: (x.hypot(y) - 0.75).abs() - 0.25,
    "square": lambda x, y: x.abs().maximum(y.abs()) - 0.8,
    "triangle": lambda x, y: (math.sqrt(0.75) * x.abs() + 0.5 * y).maximum(-y) - 0.55,
    "star": lambda x, y: x.hypot(y) - 0.75 - 0.3 * torch.cos(5 * x.atan2(-y)),
    "cross": lambda x, y: (x.abs().minimum(y.abs()) - 0.28).maximum(x.abs().maximum(y.abs()) - 1),
    "crescent": lambda x, y: (x.hypot(y) - 1).maximum(0.8 - (x - 0.55).hypot(y)),
    "heart": lambda x, y: x.hypot(1.25 * y - 0.25 + x.abs().sqrt()) - 0.95,
    "bars": lambda x, y: (((x.abs() - 0.375).abs() - 0.375).abs() - 0.2).maximum(y.abs() - 0.95),  # three upright ones
    "checks": lambda x, y: (x.abs().maximum(y.abs()) - 0.95).maximum(-x * y.sign()),  # two opposite quarters
}


def synthetic_images(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """(num, 32, 32, 3) uint8 images and (num,) int64 labels, shuffled, as evenly many of each as ``num`` allows."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randperm(num, generator=rng) % len(SHAPES)
    # 1,000 at once: that bounds the memory, and keeps the arrays close to the cache.
    images = [draw(part, rng).to(torch.uint8).permute(0, 2, 3, 1) for part in labels.split(1000)]
    return torch.cat(images), labels


def draw(labels: Tensor, rng: torch.Generator) -> Tensor:
    """A picture for each of n labels: (n, 3, 32, 32) floats from 0 to 255."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(labels), *shape, generator=rng) * (high - low) + low

    # Where each pixel lies in the frame of its image's shape: moved, scaled, tilted.
    x = torch.arange(SIZE) - (SIZE - 1) / 2
    y = x[:, None]
    tilt, radius = uniform(-0.6, 0.6, 1, 1), uniform(7, 12, 1, 1)
    dx, dy = (x - uniform(-4, 4, 1, 1)) / radius, (y - uniform(-4, 4, 1, 1)) / radius
    u, v = tilt.cos() * dx + tilt.sin() * dy, tilt.cos() * dy - tilt.sin() * dx
    distance = torch.empty_like(u)
    for label, shape in enumerate(SHAPES.values()):
        mine = labels == label
        distance[mine] = shape(u[mine], v[mine])
    inside = (0.5 - distance * radius).clamp(0, 1).unsqueeze(1)  # an edge one pixel soft

    # A blotchy ground; the shape is a change of its color, so it can be faint.
    blotches = F.interpolate(uniform(-1, 1, 3, 5, 5), size=SIZE, mode="bilinear", align_corners=True)
    image = uniform(80, 175, 1, 1, 1) + uniform(-30, 30, 3, 1, 1) + 35 * blotches
    hue = labels.view(-1, 1, 1, 1) * (2 * math.pi / len(SHAPES)) + uniform(-1, 1, 1, 1, 1)
    primaries = torch.arange(3).view(3, 1, 1) * (2 * math.pi / 3)  # red, green, blue on the circle of hues
    color = torch.cos(hue - primaries) + uniform(-0.7, 0.7, 1, 1, 1)
    image += inside * color * uniform(30, 120, 1, 1, 1)

    # In front of both a bar of any color and noise.
    way, place, width = uniform(-math.pi, math.pi, 1, 1), uniform(-16, 16, 1, 1), uniform(0.5, 2, 1, 1)
    bar = (width + 0.5 - (way.cos() * x + way.sin() * y - place).abs()).clamp(0, 1).unsqueeze(1)
    image = image.lerp(uniform(0, 255, 3, 1, 1), bar)
    return (image + uniform(-15, 15, 3, SIZE, SIZE)).clamp(0, 255)
