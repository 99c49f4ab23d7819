"""FunctionRegressor: one small MLP for every (learning rate, seed), all trained together by full-batch Adam.

Its training step is no pattern to copy, ``ResNet20Classifier``'s is: it makes many optimizer steps at once, since one
of them takes 30 microseconds and a step of the Trainer 1,000.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lit_models.mlps import ElementwiseAdam, MLPs


class FunctionRegressor(LightningModule):
    """Learns y = f(x) from noisy points, for L learning rates times S seeds at once.

    Member ``l * S + s`` of the M = L * S members trains with ``lrs[l]``, initialized from ``seeds[s]``, on the points
    of that seed. Inputs and targets are shifted and scaled inside; errors are in the function's own units.

    An *epoch* is one optimizer step over all points. One training step of the Trainer runs all epochs up to the next
    entry of ``measure_at``, so the Trainer's epochs are measurements; training ends after the last of them, or after
    ``max_epochs`` of them. Logged values have epochs as their step.

    Batches are those of CurveDataModule. Logs ``train/loss`` (MSE on the noisy points) and ``val/loss``, ``test/loss``
    (MSE against f, or where f(x) is nan, on the validation sample): medians over the members, in squared units of y.

    Args:
        lrs: learning rates of Adam.
        seeds: seeds of the initializations, the same as the CurveDataModule's.
        measure_at: the epochs after which to measure, ascending; training ends at the last.
        x_mean, x_scale, y_mean, y_scale: ``CurveDataModule.scale``; of y one entry a seed, or one for all.
        hidden: widths of the hidden layers (ReLU).

    Raises ValueError where an argument is out of range, or they do not go together, and MisconfigurationException from
    a Trainer of several devices, or one that has reached the last epoch already.
    """

    def __init__(
        self,
        lrs: Sequence[float] = (0.01,),
        seeds: Sequence[int] = (0,),
        measure_at: Sequence[int] = (1000,),
        x_mean: float = 0.0,
        x_scale: float = 1.0,
        y_mean: Sequence[float] = (0.0,),
        y_scale: Sequence[float] = (1.0,),
        hidden: Sequence[int] = (32, 32),
    ) -> None:
        super().__init__()
        # A checkpoint holds plain values, whatever numbers these are, such as NumPy's.
        lrs, y_mean, y_scale = ([*map(float, values)] for values in (lrs, y_mean, y_scale))
        seeds, measure_at, hidden = ([*map(int, values)] for values in (seeds, measure_at, hidden))
        x_mean, x_scale = float(x_mean), float(x_scale)
        if not (lrs and all(0 < lr < math.inf for lr in lrs)):
            raise ValueError(f"lrs is {lrs}; learning rates are positive and finite")
        if not measure_at or measure_at != sorted({*measure_at}) or measure_at[0] < 1:
            raise ValueError(f"measure_at is {measure_at}; it must be ascending epochs from 1")
        if not {len(y_mean), len(y_scale)} <= {1, len(seeds)} - {0}:
            raise ValueError(f"{len(seeds)} seeds have {len(y_mean)} of y_mean and {len(y_scale)} of y_scale")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.lrs, self.seeds, self.measure_at = lrs, seeds, measure_at
        self.x_mean, self.x_scale = x_mean, x_scale
        # Python floats and CPU tensors in float64: a function may reach 1e43, and not every device has float64.
        self.y_mean = torch.tensor(y_mean, dtype=torch.float64).expand(len(seeds)).repeat(len(lrs))[:, None]
        self.y_scale = torch.tensor(y_scale, dtype=torch.float64).expand(len(seeds)).repeat(len(lrs))[:, None]
        self.epochs_done = 0
        self.net = MLPs(hidden, seeds * len(lrs))

    def configure_optimizers(self) -> ElementwiseAdam:
        lrs = torch.tensor(self.lrs).repeat_interleave(len(self.seeds))
        return ElementwiseAdam(self.net.theta, self.net.per_parameter(lrs).to(self.net.theta))

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            raise MisconfigurationException("FunctionRegressor is for one device: Trainer(devices=1)")

    def forward(self, x: Tensor) -> Tensor:
        """(N,) or (S, N) float64 inputs -> (M, N) float64 predictions on the CPU, both in the function's units."""
        z = self._scaled(x.expand(len(self.seeds), -1).cpu(), self.x_mean, self.x_scale)
        return self.net(z)[:, 0].cpu().double() * self.y_scale + self.y_mean

    def _scaled(self, values: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
        """(S, N) float64 in the function's units -> (M, 1, N), as the networks take it."""
        return ((values.repeat(len(self.lrs), 1) - mean) / scale).to(self.net.theta)[:, None, :]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves float64, which not every device has, on the CPU, where the steps read it."""
        return batch

    def on_train_start(self) -> None:
        # After some 800 epochs Adam's averages become subnormal numbers, with which a step takes up to twice as long.
        # They are too small to change a weight: the trajectory is the same to the last bit.
        torch.set_flush_denormal(True)

    def on_train_end(self) -> None:
        torch.set_flush_denormal(False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        """Trains to the next measured epoch. Returns {"loss": median, "epochs": int, "train_mse": (M,) float64}."""
        x = self._scaled(batch[0], self.x_mean, self.x_scale)
        y = self._scaled(batch[1], self.y_mean, self.y_scale)
        until = next((epoch for epoch in self.measure_at if epoch > self.epochs_done), None)
        if until is None:
            raise MisconfigurationException(f"{self.epochs_done:,} epochs are done: ask for more with measure_at")
        optimizer: Any = self.optimizers()
        with torch.no_grad():
            gradient, step = self.net.gradient_of_mse(x, y), optimizer.optimizer.prepare()
            for _ in range(until - self.epochs_done - 1):
                gradient()
                step()
            gradient()
            optimizer.step()  # through Lightning's wrapper, which counts steps and runs the hooks
            error = (self.net(x) - y)[:, 0].cpu().double()
        self.epochs_done = until
        self.trainer.should_stop |= until == self.measure_at[-1]
        mse = error.square().mean(1) * self.y_scale[:, 0].square()
        loss = median(mse)
        self._log("train/loss", loss)
        return {"loss": loss, "epochs": until, "train_mse": mse}

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Any]:
        """{"epochs", "curve": (M, G)} and, each (M,) float64, true_mse, true_max_abs_error, r2, val_mse."""
        x, truth, held_out_x, held_out_y = batch
        curve = self(x)
        error = curve - truth
        mse = error.square().mean(1)
        # A constant f has no variance, only rounding errors: r2 of a perfect fit is 1, of any other minus infinity.
        is_constant = truth.std(correction=0) <= 1e-12 * truth.abs().max()
        variance = torch.where(is_constant, 0.0, truth.var(correction=0))
        measured = {
            "epochs": self.epochs_done,
            "curve": curve,
            "true_mse": mse,
            "true_max_abs_error": error.abs().amax(1),
            "r2": torch.where(mse == 0, 1.0, 1 - mse / variance),
            "val_mse": (self(held_out_x) - held_out_y.repeat(len(self.lrs), 1)).square().mean(1),
        }
        loss = median(measured["val_mse" if truth.isnan().all() else "true_mse"])
        self._log("test/loss" if self.trainer.testing else "val/loss", loss)
        return measured

    test_step = validation_step

    def predict_step(self, batch: Tensor | tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """x, (N,) or (S, N) float64, alone or first in a tuple -> (M, N) float64."""
        return self(batch if isinstance(batch, Tensor) else batch[0])

    def _log(self, name: str, loss: Tensor) -> None:
        # Lightning counts measurements; the loggers' axes are to show epochs.
        epochs = float(self.epochs_done)
        self.log_dict({name: loss, "step": epochs, "epoch": epochs}, on_step=False, on_epoch=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epochs_done"] = self.epochs_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.epochs_done = checkpoint["epochs_done"]


def median(values: Tensor) -> Tensor:
    """The median over the members; a member that has diverged counts as infinitely bad."""
    bad = {"nan": torch.inf, "posinf": torch.inf}
    return values.nan_to_num(**bad).quantile(0.5).nan_to_num(**bad)  # between two infinities quantile gives nan
