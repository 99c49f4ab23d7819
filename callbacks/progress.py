"""EpochBar and TrajectoryBar: live progress on a terminal, of a classifier's epochs and of a curve fit's."""

import time
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar
from tqdm import tqdm  # type: ignore[import-untyped]

from lit_models import FunctionRegressor, ResNet20Classifier


class EpochBar(TQDMProgressBar):
    """Lightning's bar for each epoch, with the latest batch's loss, the epoch's accuracy so far, and images/s."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, Any] = {}
        self._shown_at = 0.0

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ResNet20Classifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar = self.train_progress_bar
        # To look at each batch would let a GPU wait each time.
        if time.monotonic() - self._shown_at > 0.2 or batch_idx + 1 == bar.total:
            self._shown_at = time.monotonic()
            counts = pl_module.train_metrics["acc"].metric_state  # compute() would wait for other processes
            right, wrong = (int(torch.as_tensor(counts[name]).sum()) for name in ("tp", "fn"))
            self._shown = {
                "loss": f"{outputs['loss'].item() * trainer.accumulate_grad_batches:.3f}",  # Lightning has divided it
                "acc": f"{right / max(1, right + wrong):.3f}",
                "images/s": f"{(bar.format_dict['rate'] or 0) * len(batch[1]) * trainer.world_size:.0f}",
            }
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return self._shown


class TrajectoryBar(ProgressBar):
    """One bar over all epochs of a curve fit, moved at each measurement; Lightning's own bars count measurements."""

    def disable(self) -> None:
        """Nothing: a curve fit is one process, and it has no second bar to give way to."""

    enable = disable

    def on_train_start(self, trainer: Trainer, pl_module: FunctionRegressor) -> None:  # type: ignore[override]
        self.bar = tqdm(
            desc="Fitting",
            total=pl_module.measure_at[-1],
            initial=pl_module.epochs_done,
            unit=" epochs",
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:
        self.bar.set_postfix_str(f"train mse {outputs['train_mse'].median():.4g}", refresh=False)
        self.bar.update(outputs["epochs"] - self.bar.n)

    def on_train_end(self, *args: object) -> None:
        self.bar.close()
