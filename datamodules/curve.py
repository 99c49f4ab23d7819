"""CurveDataModule: noisy samples of a curve, exercise 1 of the lab."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.expression import finite_values
from datamodules.spelling import standard

GRID_POINTS = 1001


class CurveDataModule(LightningDataModule):
    """``num_samples`` points for each seed: x uniform on [x_min, x_max], y = f(x) + noise_std * N(0, 1).

    A training epoch is one batch of all points, (x, y), each (S, num_samples) float64, a row a seed. Validation and
    test are one batch of (x, f(x)), each (1001,) float64, evenly spaced and free of noise, and of a validation sample
    (x, y), drawn like the training one; prediction is of the evenly spaced x. Raises ValueError where f cannot be read
    or is not finite on the interval, or an argument is out of range.

    Args:
        function: f(x), as in "2*x**2 + sin(x)", "x if x > 0 else 0" or "2x^2"; ``self.function`` is in Python's syntax.
        x_min: x is drawn uniformly from x_min ...
        x_max: ... to x_max.
        num_samples: training points (for each seed).
        noise_std: standard deviation of the Gaussian noise on y, in units of y.
        seeds: one seed a sample.
    """

    def __init__(
        self,
        function: str = "x**2 + 2*sin(x) + cos(x-1) - 5",
        x_min: float = -5.0,
        x_max: float = 5.0,
        num_samples: int = 200,
        noise_std: float = 3.0,
        seeds: Sequence[int] = (0,),
    ) -> None:
        super().__init__()
        x_min, x_max, noise_std, seeds = float(x_min), float(x_max), float(noise_std), [int(seed) for seed in seeds]
        function = standard(function)
        self.save_hyperparameters()  # checkpoints hold them, as plain values: what they were trained on
        self.function, self.x_min, self.x_max, self.noise_std = function, x_min, x_max, noise_std
        if not -1e150 < x_min < x_max < 1e150:
            raise ValueError(f"the interval from x_min {x_min:g} to x_max {x_max:g} is empty or not finite")
        if num_samples < 1 or not 0 <= noise_std < 1e150:
            raise ValueError(f"num_samples is {num_samples}, noise_std {noise_std:g}; from 1, and from 0 and finite")
        self.grid = torch.linspace(x_min, x_max, GRID_POINTS, dtype=torch.float64)
        self.truth = finite_values(function, self.grid)

        self.x, self.y, self.held_out_x, self.held_out_y = torch.empty(4, len(seeds), num_samples).double()
        for s, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for xs, ys in ((self.x, self.y), (self.held_out_x, self.held_out_y)):
                uniform = torch.rand(num_samples, generator=generator, dtype=torch.float64)
                noise = torch.randn(num_samples, generator=generator, dtype=torch.float64)
                xs[s] = x_min + (x_max - x_min) * uniform
                ys[s] = finite_values(function, xs[s]) + noise_std * noise

    @property
    def scale(self) -> dict[str, Any]:
        """Center and scale of x and of each seed's y, such that a learning rate means what it does in the lab."""
        half = (self.x_max - self.x_min) / 2
        std = self.y.std(1, correction=0)
        return {
            "x_mean": self.x_min + half,
            "x_scale": half / 5,  # the lab's x is from -5 to 5
            "y_mean": self.y.mean(1).tolist(),
            "y_scale": torch.where(std > 0, std / 8, 1.0).tolist(),  # the lab's y has deviation 8, a constant none
        }

    def setup(self, stage: str | None = None) -> None:
        """Nothing: the points are drawn when it is made."""

    def train_dataloader(self) -> DataLoader:
        return one_batch(self.x, self.y)

    def val_dataloader(self) -> DataLoader:
        return one_batch(self.grid, self.truth, self.held_out_x, self.held_out_y)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return one_batch(self.grid)


def one_batch(*tensors: Tensor) -> DataLoader:
    return DataLoader([tensors], batch_size=None)  # type: ignore[arg-type]
