"""TestPictures: the test in pictures: confusion matrix, most confident errors, the first layer's filters, the graph."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from analysis.figures import confusion_figure, pictures_figure
from callbacks.tensorboard_layout import publish_figure, tensorboard_writers

NUM_ERRORS, NUM_ERRORS_ON_CARD = 20, 10  # on a card of TensorBoard's there is room for few


class TestPictures(Callback):
    """After the test writes ``confusion.png``, ``confident_errors.png`` and ``filters.png``, to TensorBoard too.

    The LightningModule's ``test_step`` returns the (N, C) logits of its batch (images, labels); the DataModule's
    ``state_dict`` holds ``mean``, ``std`` and ``classes``. The confusion matrix is of all processes' images, the errors
    are the most confident that the first process has seen.

    Args:
        run_dir: where the pictures go.
    """

    __test__ = False  # not a test of pytest's

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._facts = trainer.datamodule.state_dict()  # type: ignore[attr-defined]
        num_classes = len(self._facts["classes"])
        self._confusion = MulticlassConfusionMatrix(num_classes, normalize="true", validate_args=False)
        self._confusion.to(pl_module.device)
        self._wrong: list[tuple[Tensor, ...]] = []  # probability, prediction, label, pixels of each batch's errors

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: tuple[Tensor, Tensor], *args: object
    ) -> None:
        images, labels = batch
        confidence, predictions = outputs.float().softmax(1).max(1)
        self._confusion.update(predictions, labels)
        most = torch.where(predictions == labels, -1.0, confidence).topk(min(NUM_ERRORS, len(labels)))
        at = most.indices
        self._wrong.append((most.values, predictions[at], labels[at], images[at]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._wrong:
            return
        matrix = self._confusion.compute().cpu().numpy()  # over all processes, so before the others leave
        if not trainer.is_global_zero:
            return
        classes, loggers, step = self._facts["classes"], trainer.loggers, trainer.global_step
        publish_figure(confusion_figure(matrix, classes), "confusion", self.run_dir, loggers, "test/confusion", step)

        confidence, predicted, true, images = (torch.cat(part).cpu() for part in zip(*self._wrong, strict=True))
        order = confidence.argsort(descending=True)[:NUM_ERRORS]
        order = order[confidence[order] > 0]
        mean, std = (torch.tensor(self._facts[name])[:, None, None] for name in ("mean", "std"))
        pixels = (images[order].float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        titles = [f"{classes[predicted[i]]} {confidence[i]:.1%}\ntrue: {classes[true[i]]}" for i in order.tolist()]
        if titles:
            name = "most confident errors"
            figure = pictures_figure(list(pixels), titles, name)
            card = pictures_figure(list(pixels[:NUM_ERRORS_ON_CARD]), titles[:NUM_ERRORS_ON_CARD], name)
            publish_figure(figure, "confident_errors", self.run_dir, loggers, "test/confident_errors", step, card)

        filters: Tensor = pl_module.state_dict()["net.conv1.weight"].float().cpu()
        scaled = 0.5 + filters / (2 * filters.abs().max().clamp(min=1e-9))  # zero is grey
        figure = pictures_figure(
            list(scaled.permute(0, 2, 3, 1).numpy()), title="filters of the first layer", columns=8
        )
        publish_figure(figure, "filters", self.run_dir, loggers, "train/filters", step)
        for writer in tensorboard_writers(loggers):
            writer.add_graph(pl_module.net, torch.zeros_like(images[:1], device=pl_module.device))
            writer.flush()
