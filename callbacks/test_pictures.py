"""TestPictures: the test in pictures: confusion matrix, most confident errors, the first layer's filters, the graph."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from analysis.figures import confusion_figure, pictures_figure, pixels_of, save_png
from callbacks.tensorboard_layout import show_pictures, tensorboard_writers

NUM_ERRORS, NUM_ERRORS_ON_CARD = 20, 10  # a card of TensorBoard's has room for few


class TestPictures(Callback):
    """After the test writes ``confusion.png``, ``confident_errors.png`` and ``filters.png``, to TensorBoard too.

    The LightningModule's ``test_step`` returns the (N, C) logits of its batch (images, labels), and its ``net`` begins
    with a convolution of RGB images; the DataModule's ``state_dict`` holds ``mean``, ``std`` and ``classes``. The
    confusion matrix is of all processes' images, the errors are the most confident that the first process has seen.

    Args:
        run_dir: where the pictures go.
    """

    __test__ = False  # pytest takes the name for a test's

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._facts = trainer.datamodule.state_dict()  # type: ignore[attr-defined]
        num_classes = len(self._facts["classes"])
        self._confusion = MulticlassConfusionMatrix(num_classes, normalize="true", validate_args=False)
        self._confusion.to(pl_module.device)
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
        if not self._wrong:
            return
        matrix = self._confusion.compute().cpu().numpy()  # over all processes, so before the others leave
        if not trainer.is_global_zero:
            return
        self._publish(trainer, confusion_figure(matrix, self._facts["classes"]), "confusion", "test/confusion")
        self._publish_errors(trainer)
        net: nn.Module = pl_module.net  # type: ignore[assignment]
        weights = next(p for p in net.parameters() if p.ndim == 4)
        filters = weights.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        scaled = 0.5 + filters / (2 * abs(filters).max() or 1)  # zero is grey
        self._publish(
            trainer,
            pictures_figure(list(scaled), title="filters of the first layer", columns=8),
            "filters",
            "train/filters",
        )
        for writer in tensorboard_writers(trainer.loggers):
            writer.add_graph(net, torch.zeros_like(weights[:1, :, :1, :1]).expand(1, 3, 32, 32))
            writer.flush()

    def _publish_errors(self, trainer: Trainer) -> None:
        classes = self._facts["classes"]
        confidence, predicted, true, images = (torch.cat(part).cpu() for part in zip(*self._wrong, strict=True))
        order = confidence.argsort(descending=True)[:NUM_ERRORS]
        order = order[confidence[order] > 0]
        if not len(order):
            return
        mean, std = (torch.tensor(self._facts[name])[:, None, None] for name in ("mean", "std"))
        pixels = list((images[order].float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy())
        titles = [f"{classes[predicted[i]]} {confidence[i]:.1%}\ntrue: {classes[true[i]]}" for i in order.tolist()]
        figure, card = (
            pictures_figure(pixels[:most], titles[:most], "most confident errors")
            for most in (NUM_ERRORS, NUM_ERRORS_ON_CARD)
        )
        self._publish(trainer, figure, "confident_errors", "test/confident_errors", card)

    def _publish(self, trainer: Trainer, figure: Figure, name: str, tag: str, card: Figure | None = None) -> None:
        """Writes the figure as a PNG file, and shows it, or ``card`` in its place, in TensorBoard."""
        pixels = pixels_of(figure)
        save_png(pixels, self.run_dir / f"{name}.png")
        shown = pixels if card is None else pixels_of(card)
        show_pictures([(trainer.global_step, shown)], tag, trainer.loggers)
