"""The built-in stand-in for CIFAR-10: pictures of ten shapes, for machines where CIFAR-10 is not at hand.

Place, size, tilt, ground, faint colors, a bar in front and noise are nuisances, so that a network needs several epochs
to see through them. Color is a hint, as with photographs: each class leans to a hue.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32
CHUNK = 1000  # images drawn at once: bounds the memory, and keeps the arrays close to the cache

# About the signed distance to each shape's outline, negative inside; x goes right, y down, the radius is 1.
# No shape turns into another when mirrored or tilted.
SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ball": lambda x, y: torch.hypot(x, y) - 0.9,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.75).abs() - 0.25,
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.8,
    "triangle": lambda x, y: torch.maximum(math.sqrt(0.75) * x.abs() + 0.5 * y, -y) - 0.55,
    "star": lambda x, y: torch.hypot(x, y) - 0.75 - 0.3 * torch.cos(5 * torch.atan2(x, -y)),
    "cross": lambda x, y: torch.maximum(torch.minimum(x.abs(), y.abs()) - 0.28, torch.maximum(x.abs(), y.abs()) - 1),
    "crescent": lambda x, y: torch.maximum(torch.hypot(x, y) - 1, 0.8 - torch.hypot(x - 0.55, y)),
    "heart": lambda x, y: torch.hypot(x, 1.25 * y - 0.25 + x.abs().sqrt()) - 0.95,
    # Three upright bars, at x = -0.75, 0 and 0.75.
    "bars": lambda x, y: torch.maximum(((x.abs() - 0.375).abs() - 0.375).abs() - 0.2, y.abs() - 0.95),
    # Two opposite quarters of a square: those where x and y have the same sign.
    "checks": lambda x, y: torch.maximum(torch.maximum(x.abs(), y.abs()) - 0.95, -x * y.sign()),
}
CLASSES: tuple[str, ...] = tuple(SHAPES)


def synthetic_images(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws ``num`` pictures; the same ``num`` and ``seed`` give the same ones.

    Returns (num, 32, 32, 3) uint8 images and (num,) int64 labels, shuffled, as evenly many of each as ``num`` allows.
    """
    rng = torch.Generator().manual_seed(seed)  # our own: the caller's random numbers stay as they are
    labels = torch.randperm(num, generator=rng) % len(CLASSES)
    images = [draw(chunk, rng).to(torch.uint8).permute(0, 2, 3, 1) for chunk in labels.split(CHUNK)]
    return torch.cat(images), labels


def draw(labels: Tensor, rng: torch.Generator) -> Tensor:
    """A picture for each of n labels: (n, 3, 32, 32) floats in 0..255."""
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        """Random numbers of this shape for each image; by default one that broadcasts against (n, y, x)."""
        return torch.rand(n, *(shape or (1, 1)), generator=rng) * (high - low) + low

    # Where each pixel lies in the frame of its image's shape: moved, scaled, tilted.
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    x, y = axis.view(1, 1, -1), axis.view(1, -1, 1)
    tilt, radius = uniform(-0.6, 0.6), uniform(7, 12)
    dx, dy = (x - uniform(-4, 4)) / radius, (y - uniform(-4, 4)) / radius
    u, v = tilt.cos() * dx + tilt.sin() * dy, tilt.cos() * dy - tilt.sin() * dx
    distance = torch.empty(n, SIZE, SIZE)
    for label, shape in enumerate(SHAPES.values()):
        mine = labels == label
        distance[mine] = shape(u[mine], v[mine])
    inside = (0.5 - distance * radius).clamp(0, 1).unsqueeze(1)  # an edge one pixel soft

    # A blotchy ground; the shape is a change of its color, so it can be faint.
    blotches = F.interpolate(uniform(-1, 1, 3, 5, 5), size=SIZE, mode="bilinear", align_corners=True)
    image = uniform(80, 175, 1, 1, 1) + uniform(-30, 30, 3, 1, 1) + 35 * blotches
    hue = labels.view(n, 1, 1, 1) * (2 * math.pi / len(CLASSES)) + uniform(-1, 1, 1, 1, 1)
    primaries = torch.arange(3).view(3, 1, 1) * (2 * math.pi / 3)  # red, green, blue on the circle of hues
    color = torch.cos(hue - primaries) + uniform(-0.7, 0.7, 1, 1, 1)
    image += inside * color * uniform(30, 120, 1, 1, 1)

    # In front of both a bar of any color and noise.
    way, place, width = uniform(-math.pi, math.pi), uniform(-16, 16), uniform(0.5, 2)
    bar = (width + 0.5 - (way.cos() * x + way.sin() * y - place).abs()).clamp(0, 1).unsqueeze(1)
    image = image.lerp(uniform(0, 255, 3, 1, 1).expand_as(image), bar)
    return (image + uniform(-15, 15, 3, SIZE, SIZE)).clamp(0, 255)
