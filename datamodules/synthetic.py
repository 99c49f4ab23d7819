"""The built-in stand-in for CIFAR-10: pictures of ten shapes, for machines where CIFAR-10 is not at hand.

Nearly everything but the shape is a nuisance (place, size, tilt, stretch, ground, faint colors, a bar in
front, light, noise), so a network needs several epochs to see through it, as it does with photographs. As
there, color is a hint that is found early and does not suffice: each class leans to a hue, its neighbors to
almost the same.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32
_CHUNK = 1000  # images drawn at once: bounds the memory, and keeps the arrays close to the cache

# About the signed distance to each shape's outline, negative inside; x goes right, y down, the radius is 1.
# No shape turns into another when mirrored or tilted.
_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
    # Two opposite quarters of a chessboard of four: those where x and y have the same sign.
    "checks": lambda x, y: torch.maximum(
        torch.maximum(x.abs(), y.abs()) - 0.95, -torch.minimum(x.abs(), y.abs()) * (x * y).sign()
    ),
}
CLASSES: tuple[str, ...] = tuple(_SHAPES)


def synthetic_images(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `num` pictures and their classes; the same `num` and `seed` give the same ones.

    Returns the images, (num, 32, 32, 3) uint8 in 0..255 (NHWC, as torchvision's `CIFAR10.data`), and the
    labels, (num,) int64 in 0..9, indices into `CLASSES`, shuffled, as evenly many of each as `num` allows.
    """
    rng = torch.Generator().manual_seed(seed)  # our own: the caller's random numbers stay as they are
    labels = torch.randperm(num, generator=rng) % len(CLASSES)
    images = torch.empty(num, SIZE, SIZE, 3, dtype=torch.uint8)
    for chunk, out in zip(labels.split(_CHUNK), images.split(_CHUNK), strict=True):
        out.copy_(_draw(chunk, rng).permute(0, 2, 3, 1))
    return images, labels


def _draw(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Draw one picture of each of these n classes: (n, 3, 32, 32) floats in 0..255."""
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        """Random numbers of this shape for each image; by default one that broadcasts against (n, y, x)."""
        return torch.rand(n, *(shape or (1, 1)), generator=rng) * (high - low) + low

    def blobs(cells: int) -> Tensor:
        """Smooth random colors in -1..1, with this many features across."""
        return F.interpolate(uniform(-1, 1, 3, cells, cells), size=SIZE, mode="bilinear", align_corners=True)

    # Where each pixel lies in the frame of its image's shape: moved, tilted, stretched.
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    x, y = axis.view(1, 1, -1), axis.view(1, -1, 1)
    tilt, radius, stretch = uniform(-0.6, 0.6), uniform(7, 12), uniform(-0.15, 0.15).exp()
    dx, dy = x - uniform(-4, 4), y - uniform(-4, 4)
    u = (tilt.cos() * dx + tilt.sin() * dy) / radius * stretch
    v = (tilt.cos() * dy - tilt.sin() * dx) / radius / stretch
    distance = torch.empty(n, SIZE, SIZE)
    for label, shape in enumerate(_SHAPES.values()):
        mine = (labels == label).nonzero().squeeze(1)
        distance[mine] = shape(u[mine], v[mine])
    inside = (0.5 - distance * radius).clamp(0, 1).unsqueeze(1)  # an edge one pixel soft

    # The ground, blotchy and streaky; the shape is a change of its color, so it can be faint.
    way, pitch, phase = uniform(-math.pi, math.pi), uniform(0.4, 1.6), uniform(-math.pi, math.pi)
    streaks = torch.sin((way.cos() * x + way.sin() * y) * pitch + phase).unsqueeze(1)
    ground = uniform(80, 175, 1, 1, 1) + uniform(-30, 30, 3, 1, 1)
    image = ground + 25 * blobs(5) + uniform(-15, 15, 3, 1, 1) * streaks
    hue = labels.view(n, 1, 1, 1) * (2 * math.pi / len(CLASSES)) + uniform(-1, 1, 1, 1, 1)
    primaries = torch.arange(3).view(3, 1, 1) * (2 * math.pi / 3)  # red, green, blue on the circle of hues
    color = torch.cos(hue - primaries) + uniform(-0.7, 0.7, 1, 1, 1)
    image += inside * (color * uniform(30, 120, 1, 1, 1) + 25 * blobs(7))

    # In front of both: a bar of any color, light from one side, noise.
    way, place, width = uniform(-math.pi, math.pi), uniform(-16, 16), uniform(0.5, 2)
    bar = (width + 0.5 - (way.cos() * x + way.sin() * y - place).abs()).clamp(0, 1).unsqueeze(1)
    image = image.lerp(uniform(0, 255, 3, 1, 1).expand_as(image), bar)
    light = 1 + uniform(-0.02, 0.02) * x + uniform(-0.02, 0.02) * y
    return (image * light.unsqueeze(1) + uniform(-15, 15, 3, SIZE, SIZE)).clamp(0, 255)
