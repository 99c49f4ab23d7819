"""What the test says in pictures: the confusion matrix, the surest mistakes, the first layer's filters, the graph."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from callbacks.figures import confusion_figure, filters_figure, mistakes_figure, publish
from callbacks.run_page import tensorboard_writers

MISTAKES = 20


class TestedImages(Callback):
    """After the test writes ``confusion.png``, ``mistakes.png`` and ``filters.png`` into ``run_dir`` and TensorBoard.

    The LightningModule's ``test_step`` returns the (N, C) logits of its batch (images, labels); the DataModule's
    ``state_dict`` holds ``mean``, ``std`` and ``classes``. With several processes the pictures are of the images that
    the first has tested.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._labels: list[Tensor] = []
        self._answers: list[Tensor] = []
        self._wrong: list[tuple[Tensor, ...]] = []  # probability, answer, label and pixels of the surest mistakes

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        images, labels = batch
        sure, answers = outputs.float().softmax(1).max(1)
        self._labels.append(labels)
        self._answers.append(answers)
        surest = torch.where(answers == labels, -1.0, sure).topk(min(MISTAKES, len(labels)))
        at = surest.indices
        self._wrong.append((surest.values, answers[at], labels[at], images[at]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not self._labels:
            return
        facts = trainer.datamodule.state_dict()  # type: ignore[attr-defined]
        classes = facts["classes"]
        labels, answers = torch.cat(self._labels).cpu(), torch.cat(self._answers).cpu()
        counts = multiclass_confusion_matrix(answers, labels, len(classes))  # a row for each label
        publish(confusion_figure(counts.numpy(), classes), "confusion", self.run_dir, trainer.loggers)

        sure, wrong, right, images = (torch.cat(part).cpu() for part in zip(*self._wrong, strict=True))
        order = sure.argsort(descending=True)[:MISTAKES]
        order = order[sure[order] > 0]
        mean, std = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "std"))
        pixels = (images[order].float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        titles = [f"{classes[wrong[i]]} {sure[i]:.1%}\nis: {classes[right[i]]}" for i in order.tolist()]
        if titles:
            publish(mistakes_figure(list(pixels), titles), "mistakes", self.run_dir, trainer.loggers)

        filters: Tensor = pl_module.state_dict()["net.conv1.weight"].float().cpu()
        publish(filters_figure(filters.permute(0, 2, 3, 1).numpy()), "filters", self.run_dir, trainer.loggers)
        for writer in tensorboard_writers(trainer.loggers):
            writer.add_graph(pl_module.net, torch.zeros_like(images[:1], device=pl_module.device))
            writer.flush()
