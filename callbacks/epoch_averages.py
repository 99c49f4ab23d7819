"""EpochAverages: training loss and accuracy of an epoch that is resumed in its middle are those of the whole epoch."""

from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from lit_models import ResNet20Classifier


class EpochAverages(Callback):
    """Keeps in checkpoints what the classifier's training metrics have summed up, of all processes.

    Metrics that keep lists instead of sums, such as AUROC, begin anew where an epoch is resumed.
    """

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ResNet20Classifier, checkpoint: dict[str, Any]
    ) -> None:
        """Adds {"loss.value": (processes, ...), ...}: each process has counted its own images."""
        counts = checkpoint["epoch_averages"] = {}
        for name, metric in pl_module.train_metrics.items(keep_base=True):
            for state, value in metric.metric_state.items():
                if isinstance(value, Tensor):
                    counts[f"{name}.{state}"] = pl_module.all_gather(value) if trainer.world_size > 1 else value[None]

    def on_load_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ResNet20Classifier, checkpoint: dict[str, Any]
    ) -> None:
        """Each process takes its own again, or the first all where there are not as many processes any more."""
        counts: Tensor
        for key, counts in checkpoint.get("epoch_averages", {}).items():
            name, state = key.split(".")
            if len(counts) == trainer.world_size:
                own = counts[trainer.global_rank]
            else:
                own = counts.sum(0) if trainer.global_rank == 0 else torch.zeros_like(counts[0])
            setattr(pl_module.train_metrics[name], state, own.to(pl_module.device))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ResNet20Classifier) -> None:  # type: ignore[override]
        # A checkpoint of an epoch's end holds that epoch's counts; Lightning leaves this hook out in mid-epoch.
        pl_module.train_metrics.reset()
