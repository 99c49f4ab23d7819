"""What TensorBoard shows of a run beside its curves: charts of what belongs together, settings, versions, machine."""

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

PACKAGES = ("pytorch-lightning", "torch", "torchvision", "torchmetrics", "tensorboard")


class RunPage(Callback):
    """Writes once, as training starts: a layout for the custom scalars, the hyperparameters, and three texts.

    Args:
        charts: {title: tags that share the chart}.
        settings: the hyperparameters, by which TensorBoard's HParams page sorts the runs.
    """

    def __init__(self, charts: Mapping[str, Sequence[str]], settings: Mapping[str, Any]) -> None:
        self.charts, self.settings = charts, settings

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for writer in tensorboard_writers(trainer.loggers):
            # TensorBoard takes each tag for a regular expression: "lr" alone would match every tag that begins so.
            lines = {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in self.charts.items()}
            writer.add_custom_scalars({"at a glance": lines})
            known = {name: _plain(value) for name, value in self.settings.items()}
            # The first part would tell which metrics to show, but TensorBoard takes that of one run for all of them:
            # without it, it shows the scalars of every run.
            for part in hparams(known, {})[1:]:
                writer.file_writer.add_summary(part)
            for title, text in about(pl_module.device).items():
                writer.add_text(title, text)
            writer.flush()


def tensorboard_writers(loggers: Iterable[Any]) -> list[Any]:
    """The SummaryWriters of the loggers that have one."""
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def command_line() -> str:
    """The command of this process, to be typed again."""
    script, here = Path(sys.argv[0]), Path.cwd()
    return shlex.join(
        ["python", str(script.relative_to(here) if script.is_relative_to(here) else script), *sys.argv[1:]]
    )


def about(device: torch.device) -> dict[str, str]:
    """{"command", "versions", "machine"} of this process, as Markdown."""
    versions = ["Python " + platform.python_version(), *(f"{name} {version(name)}" for name in PACKAGES)]
    machine = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPU cores"]
    machine += [f"{torch.get_num_threads()} threads of PyTorch, {torch.backends.cpu.get_cpu_capability()}"]
    if device.type == "cuda":
        machine.append(torch.cuda.get_device_name(device))
    return {
        "command": f"`{command_line()}`",
        "versions": "\n".join(f"- {line}" for line in versions),
        "machine": "\n".join(f"- {line}" for line in machine),
    }


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
