"""EpochAverages: training loss and accuracy of an epoch that is resumed in its middle are those of the whole epoch."""

from collections.abc import Mapping

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from lit_models import ResNet20Classifier

NAMES = ("loss", "acc")


class EpochAverages(Callback):
    """Keeps in checkpoints what the classifier's training metrics have summed up, of all processes."""

    def __init__(self) -> None:
        self._model: ResNet20Classifier | None = None
        self._world_size = 1
        self._saved: Mapping[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: ResNet20Classifier, stage: str) -> None:  # type: ignore[override]
        self._model, self._world_size = pl_module, trainer.world_size

    def state_dict(self) -> dict[str, Tensor]:
        """{"loss.value": (processes, ...), ...}: each process has counted its own images."""
        assert self._model is not None
        counts: dict[str, Tensor] = {}
        for name in NAMES:
            for state, value in self._model.metric("train", name).metric_state.items():
                every = self._model.all_gather(value) if self._world_size > 1 else torch.as_tensor(value)[None]
                assert isinstance(every, Tensor)
                counts[f"{name}.{state}"] = every
        return counts

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._saved = state

    def on_train_start(self, trainer: Trainer, pl_module: ResNet20Classifier) -> None:  # type: ignore[override]
        """Each process takes its own again, or the first all where there are not as many processes any more."""
        for key, counts in self._saved.items():
            name, state = key.split(".")
            if len(counts) == trainer.world_size:
                own = counts[trainer.global_rank]
            else:
                own = counts.sum(0) if trainer.global_rank == 0 else torch.zeros_like(counts[0])
            setattr(pl_module.metric("train", name), state, own.to(pl_module.device))
        self._saved = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ResNet20Classifier) -> None:  # type: ignore[override]
        # A checkpoint of an epoch's end holds that epoch's counts; Lightning leaves this hook out in mid-epoch.
        for name in NAMES:
            pl_module.metric("train", name).reset()
