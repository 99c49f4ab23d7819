"""EpochAverages: keeps the metric sums of an unfinished epoch in checkpoints, so that its averages are of all of it."""

from typing import Any

from pytorch_lightning import Callback, Trainer
from torch import Tensor


class EpochAverages(Callback):
    """Keeps in checkpoints what ``train_metrics`` of the LightningModule have summed up, in all processes."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds {"loss": {"value": (processes, ...), ...}, ...}: each process has counted its own images."""
        checkpoint["epoch_averages"] = {
            name: {
                state: pl_module.all_gather(value) if trainer.world_size > 1 else value[None]
                for state, value in metric.metric_state.items()
                if isinstance(value, Tensor)
            }
            for name, metric in pl_module.train_metrics.items(keep_base=True)
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Each process takes its own sums again, and those of processes that are no more are taken by others."""
        for name, states in checkpoint.get("epoch_averages", {}).items():
            for state, sums in states.items():
                own = sums[trainer.global_rank :: trainer.world_size].sum(0)
                setattr(pl_module.train_metrics[name], state, own.to(pl_module.device))
