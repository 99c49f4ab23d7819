"""WeightTrajectory: how far the weights get in an epoch, and how long their path is."""

from collections.abc import Iterable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class WeightTrajectory(Callback):
    """Logs, at the end of each training epoch, what distinguishes a walk towards a goal from a random one.

    - ``trajectory/path``: the sum of the lengths of all steps, Euclidean over all parameters.
    - ``trajectory/displacement``: the distance between the weights at the epoch's start and at its end. After n steps
      of equal length in one direction it is the path; in independent random directions it is path / sqrt(n).
    - ``trajectory/gradient``: the root mean square length of the batches' gradients.
    - ``trajectory/mean_gradient``: the length of their mean over the epoch, in which the noise of n batches has shrunk
      by sqrt(n). Far below ``trajectory/gradient``, the steps' directions cancel; without momentum this says of the
      gradients what displacement and path say of the weights.

    It costs about a copy of the parameters a step, and its sums are in checkpoints.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return self.sums

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sums = {name: value.to(pl_module.device) for name, value in self.sums.items()}
        if not self.sums:  # resumed inside an epoch from a checkpoint that knows nothing of this
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = as_vector(pl_module.parameters())
        zeros = dict.fromkeys(("squared", "path", "steps"), torch.zeros((), device=weights.device))
        self.sums = {"start": weights, "latest": weights, "gradient": torch.zeros_like(weights), **zeros}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradient = as_vector(p.grad if p.grad is not None else torch.zeros_like(p) for p in pl_module.parameters())
        self.sums["gradient"] = self.sums["gradient"] + gradient
        self.sums["squared"] = self.sums["squared"] + gradient.square().sum()
        self.sums["steps"] = self.sums["steps"] + 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        weights = as_vector(pl_module.parameters())
        self.sums["path"] = self.sums["path"] + (weights - self.sums["latest"]).norm()
        self.sums["latest"] = weights

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sums, steps = self.sums, self.sums["steps"]
        pl_module.log_dict(
            {
                "trajectory/path": sums["path"],
                "trajectory/displacement": (sums["latest"] - sums["start"]).norm(),
                "trajectory/gradient": (sums["squared"] / steps).sqrt(),
                "trajectory/mean_gradient": sums["gradient"].norm() / steps,
            }
        )


def as_vector(parts: Iterable[Tensor]) -> Tensor:
    """One float32 vector of them all, in whatever memory format they are."""
    return torch.cat([part.detach().reshape(-1).float() for part in parts])
