"""TensorBoardTexts: what TensorBoard shows of a run beside its curves: settings, command, machine; pictures."""

from collections.abc import Iterable, Mapping

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from analysis.provenance import about


class TensorBoardTexts(Callback):
    """Writes once, as training starts, the hyperparameters and three texts.

    ``settings`` are those by which TensorBoard's HParams page sorts the runs.
    """

    def __init__(self, settings: Mapping[str, object]) -> None:
        self.settings = settings

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for writer in tensorboard_writers(trainer.loggers):
            known = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.settings.items()}
            # The first part would say which metrics to show, but TensorBoard takes one run's choice for all of them:
            # without it, it shows the scalars of every run.
            for part in hparams(known, {})[1:]:
                writer.file_writer.add_summary(part)  # type: ignore[attr-defined]
            for title, text in about(pl_module.device).items():
                writer.add_text(title, text)
            writer.flush()


def tensorboard_writers(loggers: Iterable[Logger]) -> list[SummaryWriter]:
    """The SummaryWriters of the loggers that have one."""
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def show_pictures(pictures: Iterable[tuple[int, np.ndarray]], tag: str, loggers: Iterable[Logger]) -> None:
    """Shows pictures, each a step and (H, W, 3) uint8 pixels, in TensorBoard, which has a slider over a tag's steps."""
    writers = tensorboard_writers(loggers)
    for step, pixels in pictures if writers else ():  # nothing is drawn for nobody
        for writer in writers:
            writer.add_image(tag, pixels, step, dataformats="HWC")
            writer.flush()  # training is over, and nobody else will
