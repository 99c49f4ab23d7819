"""ResNet20Classifier: ResNet-20 trained as a ten-class classifier by SGD or Muon."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_models.muon import Muon
from lit_models.onednn import faster
from lit_models.resnet20 import ResNet20

Batch = tuple[Tensor, Tensor]


class ResNet20Classifier(LightningModule):
    """Learns from batches of (N, 3, H, W) float images and (N,) int64 labels.

    Logs {train,val,test}/{loss,acc}, means over the images of an epoch (cross-entropy in nats, accuracy as a fraction
    of 1), and ``lr``, once an epoch; ``train/loss_step`` and ``lr_step`` every ``log_every_n_steps``. ``train/*`` are
    epoch averages: each batch is scored by the weights before learning from it. What a second validation loader holds
    is logged as ``probe/*``.

    Args:
        lr: learning rate, until a callback changes it.
        momentum: momentum of SGD.
        nesterov: Nesterov's form of the momentum.
        weight_decay: L2 penalty on all parameters, as torch.optim.SGD adds it; with muon on all but the filters.
        optimizer: sgd, or muon, which orthogonalizes the steps of its filters: all convolutions but the first.
        muon_lr_ratio: learning rate of the filters, as a fraction of lr.
        muon_momentum: momentum of the filters.
        he_init: He initialization of convolutions and linear layer instead of PyTorch's default.
        compile: train through torch.compile, but an epoch's last batch, whose shape may be another.

    Raises:
        ValueError: the optimizer is another, or torch.optim.SGD refuses the settings.
    """

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
        optimizer: Literal["sgd", "muon"] = "sgd",
        muon_lr_ratio: float = 0.5,
        muon_momentum: float = 0.6,
        he_init: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if optimizer not in ("sgd", "muon"):
            raise ValueError(f"optimizer is {optimizer!r}; it is 'sgd' or 'muon'")
        # A checkpoint holds plain values, whatever numbers these are, such as NumPy's.
        lr, momentum, weight_decay = float(lr), float(momentum), float(weight_decay)
        muon_lr_ratio, muon_momentum = float(muon_lr_ratio), float(muon_momentum)
        self.save_hyperparameters()
        # Not `self.hparams`: a subclass's hparams hold its own arguments, not those that it passes to `super()`.
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay
        self.optimizer, self.muon_lr_ratio, self.muon_momentum = optimizer, muon_lr_ratio, muon_momentum
        self.compiles = compile
        self.net = ResNet20(he_init=he_init)
        self.train_metrics, self.val_metrics = averages("train"), averages("val")
        self.probe_metrics, self.test_metrics = averages("probe"), averages("test")
        self._faster: Callable[[Tensor], Tensor] | None = None  # what trains ``net``, if not the network itself
        self._is_logged = False
        self._fused = True  # until setup knows the Trainer
        # Raises ValueError for what SGD refuses. Not a subclass's, which may need what it sets later.
        ResNet20Classifier.configure_optimizers(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        sgd: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), self.lr, **sgd, fused=self._fused)
        first, *filters = [p for p in self.parameters() if p.ndim == 4]
        others = [first, *(p for p in self.parameters() if p.ndim < 4)]
        sgd |= {"lr_ratio": self.muon_lr_ratio, "filter_momentum": self.muon_momentum}
        return Muon(filters, others, self.lr, **sgd, fused=self._fused)

    def setup(self, stage: str) -> None:
        # A fused optimizer unscales float16 gradients itself: before, Lightning cannot clip them, nor Muon use them.
        self._fused = not self.trainer.gradient_clip_val and self.trainer.precision != "16-mixed"

    def teardown(self, stage: str) -> None:
        self._faster = None  # neither copied nor pickled with the module

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalized images -> (N, 10) logits."""
        return self.net(x)

    def on_train_start(self) -> None:
        self.train_metrics.set_dtype(torch.float32)  # bf16-true converts them too, and their sums would saturate
        if self.compiles:
            self._faster = torch.compile(self.net.forward, dynamic=False)
        else:
            self._faster = faster(self.net, self.trainer.precision, self.device.type)
        self._is_logged = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]  # schedulers change it before the step is logged
        if batch_idx == 0:  # not where an epoch is resumed; Lightning may leave out on_train_epoch_start there
            self.train_metrics.reset()
        is_last = batch_idx + 1 == self.trainer.num_training_batches
        net = self.net if self._faster is None or (self.compiles and is_last) else self._faster
        loss, _ = self._step(self.train_metrics, batch, net, logs=batch_idx == 0 or not self._is_logged)
        self._is_logged = True
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)
        self.log("lr_step", self._lr, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._step(self.probe_metrics if dataloader_idx else self.val_metrics, batch, self.net, batch_idx == 0)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the (N, 10) logits."""
        return self._step(self.test_metrics, batch, self.net, batch_idx == 0)[1]

    def predict_step(self, batch: Tensor | Batch, batch_idx: int) -> Tensor:
        """(N, 3, H, W) images, with or without labels -> (N, 10) probabilities."""
        return self(batch if isinstance(batch, Tensor) else batch[0]).softmax(1)

    def _step(
        self, metrics: MetricCollection, batch: Batch, net: Callable[[Tensor], Tensor], logs: bool
    ) -> tuple[Tensor, Tensor]:
        images, labels = batch
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        # With `nan_strategy="disable"`, `MeanMetric` ignores `weight`, so the loss is repeated for each image.
        metrics.update(value=loss.detach().expand(len(labels)), preds=logits.detach(), target=labels)
        if logs:  # once an epoch, since each time costs 0.3 ms: Lightning computes the metrics at its end
            self.log_dict(metrics, on_step=False, on_epoch=True, add_dataloader_idx=False)
        return loss, logits

    def on_validation_start(self) -> None:
        # Trainer.validate and test leave tensors of inference mode in the metrics, to which Trainer.fit cannot add.
        for metrics in (self.val_metrics, self.probe_metrics, self.test_metrics):
            metrics.set_dtype(torch.float32)
            metrics.reset()

    on_test_start = on_validation_start

    def on_train_epoch_end(self) -> None:
        self.log("lr", self._lr)


def averages(stage: str) -> MetricCollection:
    """``<stage>/loss`` and ``<stage>/acc`` over an epoch's images; others of logits and labels can be added here."""
    return MetricCollection(
        {
            # nan_strategy and validate_args would look at every value, which on a GPU stalls every step.
            "loss": MeanMetric(nan_strategy="disable"),
            "acc": MulticlassAccuracy(10, average="micro", validate_args=False),
        },
        prefix=f"{stage}/",
        compute_groups=False,  # which would share states: these have none in common
    )
