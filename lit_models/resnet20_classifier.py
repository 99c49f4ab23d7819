"""ResNet-20 trained as a ten-class classifier by SGD."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lit_models.resnet20 import ResNet20

Batch = tuple[Tensor, Tensor]


class ResNet20Classifier(LightningModule):
    """Learns from batches of (N, 3, H, W) float images and (N,) int64 labels.

    A second validation loader, if there is one, is a probe: fixed training images, logged as ``probe/*``.
    Logs ``train/loss``, ``train/acc``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc`` (cross-entropy in nats,
    accuracy as a fraction of 1, each a mean over the images of the epoch and over all processes) and ``lr``.
    ``train/*`` is the running value: each batch is scored by the weights as they were before learning from it.

    Args:
        lr: learning rate of SGD until a callback changes it.
        momentum: momentum of SGD.
        nesterov: Nesterov's form of the momentum.
        weight_decay: L2 penalty on all parameters, as ``torch.optim.SGD`` adds it.
        he_init: He initialisation instead of PyTorch's default.
        compile: train through ``torch.compile``. Evaluation and an epoch's last batch, which may be smaller, go the
            uncompiled way, since each new shape or mode would cost a compilation of its own.
    """

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
        he_init: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Convolutions run fastest on every device when the channels of a pixel lie side by side.
        self.net = ResNet20(he_init=he_init).to(memory_format=torch.channels_last)
        self.compiled = torch.compile(self.net.forward, dynamic=False) if compile else None
        self.metrics: Any = nn.ModuleDict(
            {
                f"{stage}_{name}": metric
                for stage in ("train", "val", "probe", "test")
                for name, metric in (
                    # nan_strategy and validate_args would look at every value, which on a GPU stalls every step.
                    ("loss", MeanMetric(nan_strategy="disable")),
                    ("acc", MulticlassAccuracy(10, average="micro", validate_args=False)),
                )
            }
        )
        self.running: dict[str, Any] = {name: self.metrics[name] for name in ("train_loss", "train_acc")}

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, 10) logits."""
        return self.net(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        net: Callable[[Tensor], Tensor] = self.net
        if self.compiled is not None and batch_idx + 1 < self.trainer.num_training_batches:
            net = self.compiled
        return self._step("train", batch, net)[0]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._step("probe" if dataloader_idx else "val", batch, self.net)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the (N, 10) logits."""
        return self._step("test", batch, self.net)[1]

    def _step(self, stage: str, batch: Batch, net: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        for name, value in (("loss", (loss.detach(), len(labels))), ("acc", (logits.detach(), labels))):
            metric = self.metrics[f"{stage}_{name}"]
            metric.update(*value)
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, add_dataloader_idx=False)
        return loss, logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # So that an epoch resumed in its middle reports all of itself. Each process has counted its own images: the
        # checkpoint has the counts of them all, (processes, ...),
        checkpoint["running"] = {
            f"{name}.{state}": self.all_gather(value) if self.trainer.world_size > 1 else value[None]
            for name, metric in self.running.items()
            for state, value in metric.metric_state.items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # and each takes its own again, or the first takes all when there are not as many processes any more.
        for key, counts in checkpoint["running"].items():
            name, state = key.split(".")
            if len(counts) == self.trainer.world_size:
                own = counts[self.trainer.global_rank]
            else:
                own = counts.sum(0) if self.trainer.global_rank == 0 else torch.zeros_like(counts[0])
            setattr(self.running[name], state, own)

    def on_train_start(self) -> None:
        # The optimizer of a checkpoint comes with the settings of its own run, which may be another recipe's.
        for group in self.trainer.optimizers[0].param_groups:
            group.update({name: self.hparams[name] for name in ("momentum", "nesterov", "weight_decay")})

    def on_train_epoch_start(self) -> None:
        # A checkpoint of an epoch's end holds that epoch's values; Lightning leaves this hook out in mid-epoch.
        for metric in self.running.values():
            metric.reset()

    def on_train_epoch_end(self) -> None:
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        hp = self.hparams
        return torch.optim.SGD(
            self.parameters(),
            hp["lr"],
            momentum=hp["momentum"],
            nesterov=hp["nesterov"],
            weight_decay=hp["weight_decay"],
            # Lightning clips no gradients for a fused optimizer in mixed precision.
            fused=not (self._trainer and self._trainer.gradient_clip_val),
        )
