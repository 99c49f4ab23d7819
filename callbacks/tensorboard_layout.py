"""TensorBoardLayout: what TensorBoard shows of a run beside its curves: charts, settings, versions; and pictures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from analysis.figures import pixels_of, save_png
from analysis.provenance import about


class TensorBoardLayout(Callback):
    """Writes once, as training starts: a layout for the custom scalars, the hyperparameters, and three texts.

    Args:
        charts: {title: tags that share the chart}.
        settings: the run's settings, by which TensorBoard's HParams page sorts the runs.
    """

    def __init__(self, charts: Mapping[str, Sequence[str]], settings: Mapping[str, object]) -> None:
        self.charts, self.settings = charts, settings

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for writer in tensorboard_writers(trainer.loggers):
            # TensorBoard takes each tag for a regular expression: "lr" alone would match every tag that begins so.
            lines = {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in self.charts.items()}
            writer.add_custom_scalars({"at a glance": lines})
            known = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.settings.items()}
            # The first part would say which metrics to show, but TensorBoard takes that of one run for all of them:
            # without it, it shows the scalars of every run.
            for part in hparams(known, {})[1:]:
                writer.file_writer.add_summary(part)  # type: ignore[attr-defined]
            for title, text in about(pl_module.device).items():
                writer.add_text(title, text)
            writer.flush()


def tensorboard_writers(loggers: Iterable[Logger]) -> list[SummaryWriter]:
    """The SummaryWriters of the loggers that have one."""
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def publish_figure(
    figure: Figure, name: str, run_dir: Path, loggers: Iterable[Logger], tag: str, step: int, card: Figure | None = None
) -> None:
    """Writes ``figure`` into ``run_dir`` as ``name``.png, and shows it, or ``card`` in its place, in TensorBoard."""
    pixels = pixels_of(figure)
    save_png(pixels, run_dir / f"{name}.png")
    show_pictures([(step, pixels if card is None else pixels_of(card))], tag, loggers)


def show_pictures(pictures: Iterable[tuple[int, np.ndarray]], tag: str, loggers: Iterable[Logger]) -> None:
    """Shows pictures, each a step and (H, W, 3) uint8 pixels, in TensorBoard, which has a slider over a tag's steps."""
    writers = tensorboard_writers(loggers)
    for step, pixels in pictures if writers else ():  # drawn for nobody else
        for writer in writers:
            writer.add_image(tag, pixels, step, dataformats="HWC")
            writer.flush()  # training is over, and nobody else will
