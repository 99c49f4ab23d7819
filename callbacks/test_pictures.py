"""TestPictures: the test in pictures: confusion matrix and most confident errors."""

import math
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from analysis.figures import confusion_figure, pictures_figure, save_png, show_pictures

NUM_ERRORS = 20


class TestPictures(Callback):
    """After the test writes ``confusion.png`` and ``confident_errors.png`` into ``run_dir`` and TensorBoard.

    The LightningModule's ``test_step`` returns the (N, C) logits of its batch (images, labels); the DataModule's
    ``state_dict`` holds ``mean``, ``std`` and ``classes``. The errors are those that the first process has seen.
    """

    __test__ = False  # pytest takes the name for a test's

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.per_class_acc: dict[str, float] = {}  # of the classes that were in the test

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._facts = trainer.datamodule.state_dict()  # type: ignore[attr-defined]
        num_classes = len(self._facts["classes"])
        self._confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(pl_module.device)
        self._wrong: list[tuple[Tensor, ...]] = []  # probability, prediction, label, image of each batch's errors

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
        counts = self._confusion.compute().cpu()  # over all processes, so before the others leave
        matrix = (counts / counts.sum(1, keepdim=True)).numpy()  # nan for a class without images
        classes = self._facts["classes"]
        accuracies = zip(classes, matrix.diagonal().tolist(), strict=True)
        self.per_class_acc = {name: accuracy for name, accuracy in accuracies if not math.isnan(accuracy)}
        if not trainer.is_global_zero:
            return
        figures = {"confusion": confusion_figure(matrix, classes)}
        confidence, predicted, true, images = (torch.cat(part).cpu() for part in zip(*self._wrong, strict=True))
        order = confidence.argsort(descending=True)[:NUM_ERRORS]
        order = order[confidence[order] > 0]
        if len(order):
            mean, std = (torch.tensor(self._facts[name])[:, None, None] for name in ("mean", "std"))
            shown = list((images[order].float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy())
            titles = [f"{classes[predicted[i]]} {confidence[i]:.1%}\ntrue: {classes[true[i]]}" for i in order.tolist()]
            figures["confident_errors"] = pictures_figure(shown, titles, "most confident errors")
        for name, figure in figures.items():
            pixels = save_png(figure, self.run_dir / f"{name}.png")
            show_pictures([(trainer.global_step, pixels)], f"test/{name}", trainer.loggers)
