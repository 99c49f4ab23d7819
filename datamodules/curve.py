"""CurveDataModule: noisy samples of a curve, exercise 1 of the lab, or given points."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.expression import LARGEST, finite_values
from datamodules.points import read_columns, split_points
from datamodules.spelling import standard

FUNCTION = "x**2 + 2*sin(x) + cos(x-1) - 5"
GRID_POINTS = 1001


class CurveDataModule(LightningDataModule):
    """``num_samples`` points for each seed: x uniform on [x_min, x_max], y = f(x) + noise_std * N(0, 1).

    A training epoch is one batch of all points, (x, y), each (S, num_samples) float64, a row a seed. Validation and
    test are one batch of (x, f(x)), each (1001,) float64, evenly spaced and free of noise, and of a validation sample
    (x, y), drawn like the training one; prediction is of the evenly spaced x. Raises ValueError where f cannot be read
    or is not finite on the interval, or an argument is out of range, and OSError for a file that cannot be read.

    Given points, ``csv`` or ``x`` and ``y``, take the place of drawn ones: each seed holds out a fifth of them, one at
    least, as its validation sample; f(x) is nan, ``self.function`` None, and the interval is that of the points.

    Args:
        function: f(x), as in "2*x**2 + sin(x)", "x if x > 0 else 0" or "2x^2"; ``self.function`` is in Python's syntax.
        x_min: x is drawn uniformly from x_min ...
        x_max: ... to x_max.
        num_samples: training points (for each seed).
        noise_std: standard deviation of the Gaussian noise on y, in units of y.
        seeds: one seed a sample.
        csv: fit the points of this CSV file instead: its columns x and y, else its first two.
        columns: the names of two other columns in its header.
        x, y: (N,) numbers each, of points to fit instead; checkpoints do not hold them.
    """

    def __init__(
        self,
        function: str | None = FUNCTION,
        x_min: float = -5.0,
        x_max: float = 5.0,
        num_samples: int = 200,
        noise_std: float = 3.0,
        seeds: Sequence[int] = (0,),
        csv: str | Path | None = None,
        columns: Sequence[str] | None = None,
        x: ArrayLike | None = None,
        y: ArrayLike | None = None,
    ) -> None:
        super().__init__()
        x_min, x_max, noise_std, seeds = float(x_min), float(x_max), float(noise_std), [int(seed) for seed in seeds]
        csv, columns, points = csv and str(csv), columns and [*map(str, columns)], None
        titles = ["x", "y"]
        if csv is not None:
            titles, points = read_columns(csv, columns, titles)
        elif x is not None or y is not None or columns or function is None:
            points = torch.from_numpy(np.stack([np.asarray(values, dtype=np.float64) for values in (x, y)]))
            if points.ndim != 2 or not (points.abs() < LARGEST).all():
                raise ValueError("give csv (with columns), or both x and y: (N,) finite numbers each")
        if points is not None:
            if function not in (None, FUNCTION) or (x_min, x_max, num_samples, noise_std) != (-5, 5, 200, 3):
                raise ValueError("given points are not drawn: leave out function, x_min, x_max, num_samples, noise_std")
        function = standard(str(function)) if points is None else None
        self.save_hyperparameters(ignore=["x", "y"])  # checkpoints hold the others, as plain values
        if num_samples < 1 or not 0 <= noise_std < 1e150:
            raise ValueError(f"num_samples is {num_samples}, noise_std {noise_std:g}; from 1, and from 0 and finite")
        if points is not None:
            x_min, x_max, noise_std = points[0].min().item(), points[0].max().item(), math.nan
        if not -1e150 < x_min < x_max < 1e150:
            raise ValueError(f"{csv or 'x'}: from x_min {x_min:g} to x_max {x_max:g} is no finite interval of x")
        self.function, self.x_min, self.x_max, self.noise_std = function, x_min, x_max, noise_std
        self.grid = torch.linspace(x_min, x_max, GRID_POINTS, dtype=torch.float64)
        if points is None:
            self._draw(str(function), seeds, num_samples)
        else:
            self.checksum, self.truth = hashlib.sha256(points.numpy().tobytes()).hexdigest(), self.grid * math.nan
            self.x, self.y, self.held_out_x, self.held_out_y = split_points(points, seeds)
            self.title = f"{titles[1]} over {titles[0]}, {points.shape[1]:,} points" + f" of {csv}" * (csv is not None)

    def _draw(self, function: str, seeds: Sequence[int], num_samples: int) -> None:
        self.title, self.checksum, self.truth = function, "", finite_values(function, self.grid)
        self.x, self.y, self.held_out_x, self.held_out_y = torch.empty(4, len(seeds), num_samples).double()
        for s, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for xs, ys in ((self.x, self.y), (self.held_out_x, self.held_out_y)):
                uniform = torch.rand(num_samples, generator=generator, dtype=torch.float64)
                noise = torch.randn(num_samples, generator=generator, dtype=torch.float64)
                xs[s] = self.x_min + (self.x_max - self.x_min) * uniform
                ys[s] = finite_values(function, xs[s]) + self.noise_std * noise

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

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.checksum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses to train on points other than those that the checkpoint was trained on."""
        if self.trainer is not None and self.trainer.training and state["points"] != self.checksum:
            raise MisconfigurationException("the points are not those of the checkpoint: restore them, or train anew")

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
