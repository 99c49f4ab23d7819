"""ProgressLines and TrajectoryBar: how far training is, and how long it will still take."""

import math
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm  # type: ignore[import-untyped]

from callbacks.classifier_record import WARM_UP
from callbacks.saving import steps_done
from lit_models import FunctionRegressor


class ProgressLines(Callback):
    """Prints how long training will still take: soon after its start, and then once a minute where there is no bar.

    That is by the speed since the line before, and only where it is more than a minute and the last step is known.
    """

    def __init__(self, minute: float = 60.0) -> None:
        self.minute = minute

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = getattr(pl_module, "measure_at", [trainer.estimated_stepping_batches])[-1]
        self._batches, self._pause = 0, self.minute / 12

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        now, done = time.monotonic(), steps_done(trainer)
        self._batches += 1
        if self._batches <= WARM_UP:
            self._since, self._steps = now, done
        elif now - self._since >= self._pause:
            left = (self._last_step - done) * (now - self._since) / max(1, done - self._steps)
            if self.minute < left < math.inf:
                duration = f"{left / 60:.0f} min" if left < 7200 else f"{left / 3600:.1f} h"
                pl_module.print(f"{done / self._last_step:.0%} trained; about {duration} left at this speed")
            self._since, self._steps = now, done
            self._pause = self.minute if trainer.progress_bar_callback is None else math.inf


class TrajectoryBar(ProgressBar):
    """One bar over all epochs of a curve fit, moved at each measurement; Lightning's own bars count measurements."""

    is_enabled = True
    print = staticmethod(tqdm.write)  # above the bar

    def on_train_start(self, trainer: Trainer, pl_module: FunctionRegressor) -> None:  # type: ignore[override]
        total, done = pl_module.measure_at[-1], pl_module.epochs_done
        self.bar = tqdm(desc="Fitting", total=total, initial=done, unit=" epochs", dynamic_ncols=True, mininterval=0.2)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: object) -> None:
        self.bar.set_postfix_str(f"train mse {outputs['train_mse'].median():.4g}", refresh=False)
        self.bar.update(outputs["epochs"] - self.bar.n)

    def on_train_end(self, *args: object) -> None:
        self.bar.close()
