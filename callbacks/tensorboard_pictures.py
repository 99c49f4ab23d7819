"""A run's pictures: PNG files in its folder, and cards in TensorBoard."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from analysis.drawing import pixels_of, save_png


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
