"""ResNet20Classifier: ResNet-20, or a network of your own, trained as a classifier by SGD or Muon."""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_models.growth import close, grow, to_train
from lit_models.muon import Muon
from lit_models.onednn import Forward, faster
from lit_models.resnet20 import ResNet20

Batch = tuple[Tensor, Tensor]
SHIPPED = Path(__file__).with_name("resnet20.safetensors")  # written by scripts/export.py


class ResNet20Classifier(LightningModule):
    """Learns from batches of (N, 3, H, W) float images and (N,) int64 labels.

    Logs {train,val,test}/{loss,acc}, means over the images of an epoch (cross-entropy in nats, accuracy as a fraction
    of 1), and ``lr``, once an epoch; ``train/loss_step`` and ``lr_step`` every ``log_every_n_steps``. ``train/*`` are
    epoch averages: each batch is scored by the weights before learning from it. What a second validation loader holds
    is logged as ``probe/*``. A subclass trains another network by overriding ``make_net``; he_init and the last three
    arguments are then without effect. Raises ValueError for settings that it or torch.optim.SGD refuses.

    Args:
        lr: learning rate, until a callback changes it.
        momentum: momentum of SGD.
        nesterov: Nesterov's form of the momentum.
        weight_decay: L2 penalty on all parameters, as torch.optim.SGD adds it; with muon on all but the filters.
        optimizer: sgd, or muon, which orthogonalizes the steps of its filters: all convolutions but the first, and but
            those with more channels out than weights for each; behind a filter comes a batch normalization.
        muon_lr_ratio: learning rate of the filters, as a fraction of lr.
        muon_momentum: momentum of the filters.
        he_init: He initialization of convolutions and linear layer instead of PyTorch's default.
        compile: train through torch.compile, but an epoch's last batch, whose shape may be another.
        num_classes: classes of the labels, and outputs of the network.
        depth: layers of the network, 6n + 2: 20, 32, 44, 56 or 110 in the paper.
        grow_at: fraction of the steps that train without each stage's last block (growth.py); without an end, all.
        pretrained: begin with the project's weights for CIFAR-10 (depth 20, grow_at 0), but for a new last layer.
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
        num_classes: int = 10,
        depth: int = 20,
        grow_at: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if optimizer not in ("sgd", "muon"):
            raise ValueError(f"optimizer is {optimizer!r}: 'sgd' or 'muon'")
        if not 0 <= grow_at < 1:
            raise ValueError(f"grow_at is {grow_at}: from 0 to below 1")
        # A checkpoint holds plain values, whatever numbers these are, such as NumPy's.
        lr, momentum, weight_decay = float(lr), float(momentum), float(weight_decay)
        muon_lr_ratio, muon_momentum, grow_at = float(muon_lr_ratio), float(muon_momentum), float(grow_at)
        self.save_hyperparameters()
        # Not `self.hparams`: a subclass's hparams hold its own arguments, not those that it passes to `super()`.
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay
        self.optimizer, self.muon_lr_ratio, self.muon_momentum = optimizer, muon_lr_ratio, muon_momentum
        self.num_classes, self.he_init, self.depth = num_classes, he_init, depth
        self.compiles, self.grow_at, self.pretrained = compile, grow_at, pretrained
        self.net = self.make_net()
        self.train_metrics, self.val_metrics = averages("train", num_classes), averages("val", num_classes)
        self.probe_metrics, self.test_metrics = averages("probe", num_classes), averages("test", num_classes)
        self._fused = True  # until setup knows the Trainer
        # Raises ValueError for what SGD refuses. Not a subclass's, which may need what it sets later.
        ResNet20Classifier.configure_optimizers(self)

    def make_net(self) -> nn.Module:
        """The network, (N, 3, H, W) float images -> (N, num_classes) logits; called once, by the constructor.

        For a subclass to override: ``self.num_classes`` is set, and ``self.hparams`` has the subclass's own arguments.
        """
        net = ResNet20(self.num_classes, self.he_init, self.depth)
        if self.pretrained:
            if self.depth != 20 or self.grow_at:
                raise ValueError(f"depth is {self.depth}, grow_at {self.grow_at}; pretrained needs 20 and 0")
            weights = load_file(SHIPPED)
            net.load_state_dict({**weights, **{f"linear.{name}": p for name, p in net.linear.named_parameters()}})
        elif self.grow_at:
            close(net)
        return net

    def configure_optimizers(self) -> torch.optim.Optimizer:
        sgd: dict[str, Any] = {"lr": self.lr, "momentum": self.momentum, "nesterov": self.nesterov}
        sgd |= {"weight_decay": self.weight_decay, "fused": self._fused}
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), **sgd)
        convolutions = [p for p in self.parameters() if p.ndim == 4]
        filters = [p for p in convolutions[1:] if len(p) <= p[0].numel()]
        others = [p for p in self.parameters() if p not in set(filters)]
        return Muon(filters, others, self.muon_lr_ratio, self.muon_momentum, **sgd)

    def setup(self, stage: str) -> None:
        # A fused optimizer unscales float16 gradients itself: before, Lightning cannot clip them, nor Muon use them.
        self._fused = not self.trainer.gradient_clip_val and self.trainer.precision != "16-mixed"

    def teardown(self, stage: str) -> None:
        self._eager = self._pass = self.net.__call__  # others cannot be copied or pickled with the module

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalized images -> (N, num_classes) logits."""
        return self.net(x)

    def on_train_start(self) -> None:
        self.train_metrics.set_dtype(torch.float32)  # bf16-true converts them too, and their sums would saturate
        self._choose_pass()
        self._is_logged = False

    def _choose_pass(self) -> None:
        net = to_train(self.net) if self.grow_at else self.net
        self._is_closed = net is not self.net
        self._eager = faster(net, self.trainer.precision, self.device.type)
        self._pass = torch.compile(net.forward, dynamic=False) if self.compiles else self._eager

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self._is_closed and self.trainer.global_step / self.trainer.estimated_stepping_batches >= self.grow_at:
            grow(self.net, self.trainer.optimizers[0])
            self._choose_pass()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]  # schedulers change it before the step is logged
        if batch_idx == 0:  # not where an epoch is resumed; Lightning may leave out on_train_epoch_start there
            self.train_metrics.reset()
        is_last = batch_idx + 1 == self.trainer.num_training_batches
        net = self._eager if is_last else self._pass
        loss, _ = self._step(self.train_metrics, batch, net, logs=batch_idx == 0 or not self._is_logged)
        if self._is_closed and self.trainer.world_size > 1:  # DDP waits for a gradient of every parameter
            loss = loss + 0 * sum(p.sum() for p in self.net.parameters())
        self._is_logged = True
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)
        self.log("lr_step", self._lr, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._step(self.probe_metrics if dataloader_idx else self.val_metrics, batch, self.net, batch_idx == 0)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the (N, num_classes) logits."""
        return self._step(self.test_metrics, batch, self.net, batch_idx == 0)[1]

    def predict_step(self, batch: Tensor | Batch, batch_idx: int) -> Tensor:
        """(N, 3, H, W) images, with or without labels -> (N, num_classes) probabilities."""
        return self(batch if isinstance(batch, Tensor) else batch[0]).softmax(1)

    def _step(self, metrics: MetricCollection, batch: Batch, net: Forward, logs: bool) -> tuple[Tensor, Tensor]:
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


def averages(stage: str, num_classes: int) -> MetricCollection:
    """``<stage>/loss`` and ``<stage>/acc`` over an epoch's images; others of logits and labels can be added here."""
    return MetricCollection(
        {
            # nan_strategy and validate_args would look at every value, which on a GPU stalls every step.
            "loss": MeanMetric(nan_strategy="disable"),
            "acc": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        },
        prefix=f"{stage}/",
        compute_groups=False,  # which would share states: these have none in common
    )
