"""ProgressLines: how far training is, and how long it will still take."""

import math
import time
from datetime import timedelta

from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks.classifier_record import WARM_UP
from callbacks.saving import steps_done


class ProgressLines(Callback):
    """Prints how long training will still take: soon after its start, and then once a minute where there is no bar.

    That is by the speed since the line before, and only where it is more than ten seconds and the last step is known.
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
            if self.minute / 6 < left < math.inf:
                duration = timedelta(seconds=round(left))
                pl_module.print(f"{done / self._last_step:.0%} trained; about {duration} left at this speed")
            self._since, self._steps = now, done
            self._pause = self.minute if trainer.progress_bar_callback is None else math.inf
