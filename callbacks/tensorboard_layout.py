"""TensorBoardLayout: what TensorBoard shows of a run beside its curves: charts, settings, versions, machine."""

from collections.abc import Mapping, Sequence

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from analysis.provenance import about
from callbacks.tensorboard_pictures import tensorboard_writers


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
