"""WeightTrajectory: how far the weights get in an epoch, and how long their path is."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor


class WeightTrajectory(Callback):
    """Logs, at the end of each training epoch, what distinguishes a walk towards a goal from a random one.

    - ``trajectory/path``: the sum of the lengths of all steps, Euclidean over all parameters.
    - ``trajectory/displacement``: the distance between the weights at the epoch's start and at its end. After n steps
      of equal length in one direction it is the path; in independent random directions it is path / sqrt(n).
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return self.sums

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sums = {name: value.to(pl_module.device) for name, value in self.sums.items()}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = weights_of(pl_module)
        self.sums = {"start": weights, "latest": weights, "path": weights.new_zeros(())}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        weights = weights_of(pl_module)
        self.sums["path"] = self.sums["path"] + (weights - self.sums["latest"]).norm()
        self.sums["latest"] = weights

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        displacement = (self.sums["latest"] - self.sums["start"]).norm()
        pl_module.log_dict({"trajectory/path": self.sums["path"], "trajectory/displacement": displacement})


def weights_of(module: LightningModule) -> Tensor:
    """One float32 vector of all parameters, in whatever memory format they are."""
    return torch.cat([parameter.detach().reshape(-1).float() for parameter in module.parameters()])
