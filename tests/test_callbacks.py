"""The learning-rate schedules, the progress lines, the pictures of a test."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from callbacks import LRStep, OneCycle, test_pictures
from callbacks.progress import ProgressLines


def make_trainer(*callbacks: Callback, **flags: Any) -> Trainer:
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    return Trainer(callbacks=list(callbacks), enable_checkpointing=saves, **quiet, **flags)


# The learning rate


class TwoGroups(LightningModule):
    """A line fitted by SGD, weight and bias in parameter groups of their own, in two steps an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.rates: dict[int, tuple[float, ...]] = {}  # of both groups in each step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.rates[self.global_step] = tuple(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        return (self.line(batch) - 2 * batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [self.line.weight]}, {"params": [self.line.bias], "lr": 0.2}], lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.linspace(-1, 1, 8)[:, None], batch_size=4)


def rates(*callbacks: Callback, ckpt_path: Path | None = None, **flags: Any) -> dict[int, tuple[float, ...]]:
    """The learning rates of each step of a run."""
    model = TwoGroups()
    make_trainer(*callbacks, **flags).fit(model, ckpt_path=ckpt_path, weights_only=True)
    return model.rates


def saving(folder: Path) -> ModelCheckpoint:
    """Saves after each step, as step=<n>.ckpt."""
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.mark.parametrize(
    ("milestones", "unit", "steps"),
    [
        ({2: 0.05, 5: 0.01}, "epoch", [4, 10]),  # two steps an epoch
        ({5: 0.01, 2: 0.05}, "epoch", [4, 10]),
        ({3: 0.05, 7: 0.01}, "step", [3, 7]),
        ({}, "epoch", [14, 14]),
    ],
)
def test_lr_step(milestones: dict[int, float], unit: Any, steps: list[int], tmp_path: Path) -> None:
    """It sets the rate of every parameter group from each milestone on, after any resume."""
    first, second = steps
    expected = {i: (0.1, 0.2) if i < first else (0.05, 0.05) if i < second else (0.01, 0.01) for i in range(14)}
    assert rates(LRStep(milestones, unit), saving(tmp_path), max_epochs=7) == expected
    for stop in (2, 3, 4, 8, 10, 11):  # some inside an epoch
        resumed = rates(LRStep(milestones, unit), max_epochs=7, ckpt_path=tmp_path / f"step={stop}.ckpt")
        assert resumed == {step: expected[step] for step in range(stop, 14)}


def test_one_cycle_rises_and_falls_over_the_whole_run_and_after_a_resume(tmp_path: Path) -> None:
    # 10 steps, each at its middle 0.05, 0.15, ...: up to 0.4 at 0.2 of the run, then down to 0 at its end.
    expected = [0.4 * x for x in (0.25, 0.75, 15 / 16, 13 / 16, 11 / 16, 9 / 16, 7 / 16, 5 / 16, 3 / 16, 1 / 16)]
    whole = rates(OneCycle(lr=0.4, warmup_fraction=0.2), saving(tmp_path), max_epochs=5)
    assert whole == {step: (pytest.approx(rate),) * 2 for step, rate in enumerate(expected)}
    resume = {"ckpt_path": tmp_path / "step=3.ckpt"}
    assert rates(OneCycle(0.4, 0.2), max_epochs=5, **resume) == {step: whole[step] for step in range(3, 10)}
    with pytest.raises(MisconfigurationException, match="needs an end"):
        rates(OneCycle(0.4, 0.2), max_epochs=-1)


def test_what_is_no_schedule_is_refused() -> None:
    for milestones in ({-1: 0.1}, {1.5: 0.1}, {3: -0.1}, {3: math.nan}, {3: math.inf}):
        with pytest.raises(ValueError, match="milestones"):
            LRStep(milestones)
    for lr, warmup_fraction in ((0, 0.2), (math.nan, 0.2), (0.1, 0), (0.1, 1)):
        with pytest.raises(ValueError, match="warmup_fraction"):
            OneCycle(lr, warmup_fraction)
    with pytest.raises(ValueError, match="unit"):
        LRStep({1: 0.01}, unit="epochs")  # type: ignore[arg-type]


# ProgressLines


def test_what_takes_longer_prints_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    for minute, printed in ((0.0, ["60", "70", "80", "90"]), (60.0, [])):  # of ten steps the first five show no speed
        rates(ProgressLines(minute), max_epochs=5)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("% trained; about ")[0] for line in lines] == printed


# TestPictures


class Answers(LightningModule):
    """Predicts the class in a picture's first pixel, with the logit there for it and 0 for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pixel = batch[0][:, :, 0, 0]
        return torch.nn.functional.one_hot(pixel[:, 0].long(), 3) * pixel[:, 1:2]


class Pictures(LightningDataModule):
    """Two of class 0, three of class 1, one of class 2; one of class 1 is predicted as 0, and one of class 0 as 2."""

    def test_dataloader(self) -> DataLoader:
        images = torch.zeros(6, 3, 4, 4)
        images[:, 0, 0, 0], images[:, 1, 0, 0] = torch.tensor([0, 2, 1, 1, 0, 2]), torch.tensor([1.0, 2, 3, 4, 5, 6])
        return DataLoader(TensorDataset(images, torch.tensor([0, 0, 1, 1, 1, 2])), batch_size=4)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": [0.0] * 3, "std": [1.0] * 3, "classes": ["cat", "dog", "fox"]}


def test_the_pictures_of_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    confusion, errors = Mock(wraps=test_pictures.confusion_figure), Mock(wraps=test_pictures.pictures_figure)
    monkeypatch.setattr(test_pictures, "confusion_figure", confusion)
    monkeypatch.setattr(test_pictures, "pictures_figure", errors)
    make_trainer(test_pictures.TestPictures(tmp_path)).test(Answers(), Pictures(), verbose=False)
    # A row is a true label: of 0 half is predicted as 2, of 1 a third as 0, of 2 none.
    rows = [[1 / 2, 0, 1 / 2], [1 / 3, 2 / 3, 0], [0, 0, 1]]
    assert confusion.call_args.args[0].tolist() == [pytest.approx(row) for row in rows]
    # e^5 / (e^5 + 2) = 98.7 %, e^2 / (e^2 + 2) = 78.7 %
    assert errors.call_args_list[0].args[1] == ["cat 98.7%\ntrue: dog", "fox 78.7%\ntrue: cat"]
    for name in ("confusion", "confident_errors"):
        assert Image.open(tmp_path / f"{name}.png").width > 300
