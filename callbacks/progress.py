"""TrajectoryBar: live progress of a curve fit on a terminal."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm  # type: ignore[import-untyped]

from lit_models import FunctionRegressor


class TrajectoryBar(ProgressBar):
    """One bar over all epochs of a curve fit, moved at each measurement; Lightning's own bars count measurements."""

    def disable(self) -> None:
        """Nothing: a curve fit is one process, and it has no second bar to give way to."""

    enable = disable

    def on_train_start(self, trainer: Trainer, pl_module: FunctionRegressor) -> None:  # type: ignore[override]
        total, done = pl_module.measure_at[-1], pl_module.epochs_done
        self.bar = tqdm(desc="Fitting", total=total, initial=done, unit=" epochs", dynamic_ncols=True, mininterval=0.2)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:
        self.bar.set_postfix_str(f"train mse {outputs['train_mse'].median():.4g}", refresh=False)
        self.bar.update(outputs["epochs"] - self.bar.n)

    def on_train_end(self, *args: object) -> None:
        self.bar.close()
