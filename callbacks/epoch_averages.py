"""EpochAverages: training loss and accuracy of an epoch that is resumed in its middle are those of the whole epoch."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torchmetrics import MetricCollection


class EpochAverages(Callback):
    """Keeps in checkpoints what ``train_metrics`` of the LightningModule have summed up, in all processes."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds {"loss": {"value": (processes, ...), ...}, ...}: each process has counted its own images."""
        metrics: MetricCollection = pl_module.train_metrics
        checkpoint["epoch_averages"] = {
            name: {
                state: pl_module.all_gather(value) if trainer.world_size > 1 else value[None]
                for state, value in metric.metric_state.items()
            }
            for name, metric in metrics.items(keep_base=True)
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Each process takes its own sums again, or the first one all of them if the number of processes differs."""
        metrics: MetricCollection = pl_module.train_metrics
        for name, states in checkpoint.get("epoch_averages", {}).items():
            for state, sums in states.items():
                if len(sums) == trainer.world_size:
                    own = sums[trainer.global_rank]
                else:
                    own = sums.sum(0) if trainer.global_rank == 0 else torch.zeros_like(sums[0])
                setattr(metrics[name], state, own.to(pl_module.device))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint of an epoch's end holds that epoch's sums; Lightning leaves this hook out in mid-epoch.
        metrics: MetricCollection = pl_module.train_metrics
        metrics.reset()
