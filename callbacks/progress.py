"""Live progress: a bar with the current loss on a terminal, plain lines where the output goes to a file."""

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm


class EpochBar(TQDMProgressBar):
    """Lightning's bar for each epoch, with the latest batch's loss, the epoch's accuracy so far, and images/s."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._should_update(batch_idx + 1, self.train_progress_bar.total):
            accuracy = pl_module.metrics["train_acc"]  # its sums here: compute() would wait for other processes
            right, wrong = accuracy.tp.sum().item(), accuracy.fn.sum().item()
            rate = self.train_progress_bar.format_dict["rate"] or 0
            self._shown = {
                "loss": f"{outputs['loss'].item():.3f}",
                "acc": f"{right / max(1, right + wrong):.3f}",
                "images/s": f"{rate * len(batch[1]) * trainer.world_size:.0f}",
            }
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        return getattr(self, "_shown", {})


class TrajectoryBar(TQDMProgressBar):
    """One bar over all epochs of a curve fit, moved at each measurement."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.bar = Tqdm(
            desc="Fitting",
            total=pl_module.measure_at[-1],
            initial=pl_module.epochs_done,
            unit=" epochs",
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bar.set_postfix_str(f"train mse {outputs['train_mse'].median():.4g}", refresh=False)
        self.bar.update(outputs["epochs"] - self.bar.n)

    def on_train_end(self, *args: Any) -> None:
        self.bar.close()

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own bars count measurements, which say nothing to a reader."""

    on_train_epoch_start = on_train_epoch_end = _nothing
    on_validation_start = on_validation_batch_start = on_validation_batch_end = on_validation_end = _nothing
    on_sanity_check_start = on_sanity_check_end = on_validation_epoch_end = _nothing
