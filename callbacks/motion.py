"""How the weights move in an epoch: far, or to and fro."""

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor


class Motion(Callback):
    """Logs, at the end of each training epoch, what tells a walk towards a goal from a random one.

    - ``motion/path``: the sum of the lengths of all steps, Euclidean over all parameters.
    - ``motion/displacement``: the distance between the weights at the epoch's start and at its end. After n steps of
      equal length in one direction it is the path; in independent random directions it is path / sqrt(n).
    - ``motion/gradient``: the root mean square length of the batches' gradients.
    - ``motion/mean_gradient``: the length of their mean over the epoch, in which the noise of n batches has shrunk by
      sqrt(n). Far below ``motion/gradient``, the steps' directions cancel; without momentum this says of the gradients
      what displacement and path say of the weights.

    It costs about a copy of the parameters a step, and its sums are in checkpoints.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.sums

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sums = {n: v.to(pl_module.device) if isinstance(v, Tensor) else v for n, v in self.sums.items()}
        if not self.sums:  # resumed inside an epoch from a checkpoint that knows nothing of motion
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = _vector(pl_module)
        zero = torch.zeros((), device=weights.device)
        self.sums = {
            "start": weights,
            "latest": weights,
            "gradient": torch.zeros_like(weights),
            "squared": zero,
            "path": zero.clone(),
            "steps": 0,
        }

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in pl_module.parameters()]
        gradient = _concatenate(gradients)
        self.sums["gradient"] = self.sums["gradient"] + gradient
        self.sums["squared"] = self.sums["squared"] + gradient.square().sum()
        self.sums["steps"] += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        weights = _vector(pl_module)
        self.sums["path"] = self.sums["path"] + (weights - self.sums["latest"]).norm()
        self.sums["latest"] = weights

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sums, steps = self.sums, self.sums["steps"]
        pl_module.log_dict(
            {
                "motion/path": sums["path"],
                "motion/displacement": (sums["latest"] - sums["start"]).norm(),
                "motion/gradient": (sums["squared"] / steps).sqrt(),
                "motion/mean_gradient": sums["gradient"].norm() / steps,
            }
        )


def _vector(pl_module: LightningModule) -> Tensor:
    return _concatenate(pl_module.parameters())


def _concatenate(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1).float() for part in parts])  # in whatever memory format they are
