"""Schedules and files of a run."""

import math
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.checkpointing import AtomicCheckpointIO, SaveLast
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from callbacks import LRStep, OneCycle, test_pictures
from callbacks.weight_trajectory import WeightTrajectory

# LRStep


class TwoGroups(LightningModule):
    """A line fitted by SGD, weight and bias in parameter groups of their own; records the rates of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.rates: dict[int, list[float]] = {}
        self.step_rates: dict[int, float] = {}

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        optimizer: Any = self.optimizers()
        self.rates[self.current_epoch] = [group["lr"] for group in optimizer.param_groups]
        self.step_rates[self.global_step] = optimizer.param_groups[0]["lr"]
        return (self.line(batch) - 2 * batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [self.line.weight]}, {"params": [self.line.bias], "lr": 0.2}], lr=0.1)


def train(epochs: int, *callbacks: Callback, resume: Path | None = None, save: Path | None = None) -> dict:
    model = TwoGroups()
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, SaveLast) for callback in callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(torch.linspace(-1, 1, 8)[:, None], batch_size=4), ckpt_path=resume, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return model.rates


MILESTONES = {2: 0.05, 5: 0.01}
STEPS = {0: [0.1, 0.2], 1: [0.1, 0.2], **{e: [0.05] * 2 for e in (2, 3, 4)}, **{e: [0.01] * 2 for e in (5, 6)}}


def test_lr_step_sets_every_group_from_each_milestone_on() -> None:
    assert train(7, LRStep(MILESTONES)) == STEPS


def test_lr_step_takes_milestones_in_any_order() -> None:
    assert train(7, LRStep({5: 0.01, 2: 0.05})) == STEPS


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 6])
def test_lr_step_goes_on_after_a_resume(stop: int, tmp_path: Path) -> None:
    before = train(stop, LRStep(MILESTONES), save=tmp_path / "a.ckpt")
    after = train(7, LRStep(MILESTONES), resume=tmp_path / "a.ckpt")
    assert before | after == STEPS and not before.keys() & after.keys()


def test_lr_step_depends_on_the_epoch_alone(tmp_path: Path) -> None:
    """The first epoch not before a milestone may be one that a resume begins with, the milestone long past."""
    train(4, save=tmp_path / "a.ckpt")
    assert train(7, LRStep(MILESTONES), resume=tmp_path / "a.ckpt") == {e: STEPS[e] for e in (4, 5, 6)}


def test_lr_step_without_milestones_leaves_the_rates_alone() -> None:
    assert train(3, LRStep({})) == {epoch: [0.1, 0.2] for epoch in range(3)}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_lr_step_counted_in_steps_falls_inside_an_epoch_and_after_a_resume(stop: int, tmp_path: Path) -> None:
    def rates(steps: int, **flags: Any) -> dict[int, float]:
        model = TwoGroups()
        trainer = Trainer(
            max_steps=steps,
            callbacks=[LRStep({3: 0.05, 7: 0.01}, unit="step")],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(torch.linspace(-1, 1, 8)[:, None], batch_size=4), weights_only=True, **flags)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        return model.step_rates

    expected = {step: 0.1 if step < 3 else 0.05 if step < 7 else 0.01 for step in range(10)}
    before = rates(stop)
    after = rates(10, ckpt_path=tmp_path / "a.ckpt")
    assert before | after == expected and not before.keys() & after.keys()


@pytest.mark.parametrize("milestones", [{-1: 0.1}, {3: -0.1}, {3: math.nan}, {3: math.inf}])
def test_lr_step_refuses_what_is_no_schedule(milestones: Mapping[int, float]) -> None:
    with pytest.raises(ValueError, match="milestone"):
        LRStep(milestones)


# OneCycle


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_one_cycle_rises_and_falls_over_the_whole_training_and_after_a_resume(tmp_path: Path) -> None:
    def rates(stop: int | None = None, **flags: Any) -> dict[int, float]:
        model = TwoGroups()
        callbacks: list[Callback] = [OneCycle(lr=0.4, warmup_fraction=0.2)]
        if stop is not None:
            callbacks.append(StopAfter(stop))
        trainer = Trainer(
            max_epochs=5, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, DataLoader(torch.linspace(-1, 1, 8)[:, None], batch_size=4), weights_only=True, **flags)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        return model.step_rates

    # 10 steps, each at its middle 0.05, 0.15, ...: up to 0.4 at 0.2 of the training, then down to 0 at its end.
    expected = [0.4 * x for x in (0.25, 0.75, 15 / 16, 13 / 16, 11 / 16, 9 / 16, 7 / 16, 5 / 16, 3 / 16, 1 / 16)]
    whole = rates()
    assert [whole[step] for step in range(10)] == pytest.approx(expected)
    before = rates(stop=4)
    after = rates(ckpt_path=tmp_path / "a.ckpt")
    assert before | after == whole and not before.keys() & after.keys()


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


@pytest.mark.parametrize(("lr", "warmup_fraction"), [(0, 0.2), (math.nan, 0.2), (0.1, 0), (0.1, 1)])
def test_one_cycle_refuses_what_is_no_cycle(lr: float, warmup_fraction: float) -> None:
    with pytest.raises(ValueError, match="cycle"):
        OneCycle(lr, warmup_fraction)


# WeightTrajectory


class Pushed(LightningModule):
    """Two weights; the gradient of each step is its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(2))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weights * batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# Four steps of length 0.1 * 5: straight on; oscillating; and round a right angle, 2 there and 2 here.
@pytest.mark.parametrize(
    ("gradients", "displacement", "mean_gradient"),
    [
        ([(3.0, 4.0)] * 4, 2.0, 5.0),
        ([(3.0, 4.0), (-3.0, -4.0)] * 2, 0.0, 0.0),
        ([(5.0, 0.0)] * 2 + [(0.0, 5.0)] * 2, 2**0.5, 2.5 * 2**0.5),
    ],
)
def test_trajectory_distinguishes_a_straight_walk_from_oscillation(
    gradients: list[tuple[float, float]], displacement: float, mean_gradient: float
) -> None:
    trainer = Trainer(
        max_epochs=2, callbacks=[WeightTrajectory()], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Pushed(), DataLoader(torch.tensor(gradients)))
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == pytest.approx(
        {
            "trajectory/path": 2.0,
            "trajectory/displacement": displacement,
            "trajectory/gradient": 5.0,
            "trajectory/mean_gradient": mean_gradient,
        },
        abs=1e-6,
    )


# Files


def test_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 3, "w": torch.arange(4.0)}, path)
    assert list(path.parent.iterdir()) == [path]
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["epoch"] == 3 and torch.equal(loaded["w"], torch.arange(4.0))


class Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_checkpoints_run_no_code(tmp_path: Path, weights_only: bool | None) -> None:
    path, crater = tmp_path / "bomb.ckpt", tmp_path / "crater"
    torch.save({"state_dict": {}, "x": Bomb(crater)}, path)
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not crater.exists()
    torch.load(path, weights_only=False)  # the bomb is live
    assert crater.exists()


class Killed(BaseException):
    pass


def test_a_branch_is_kept_before_the_checkpoint_from_which_it_would_not_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before last.ckpt of the epoch's end is in place, the branch is there: a resume makes both again."""
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "last.ckpt" and torch.load(source, weights_only=True)["epoch"] == 1:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        train(3, SaveLast(tmp_path, branches=[2]))
    epochs = {path.name: torch.load(path, weights_only=True)["epoch"] for path in tmp_path.glob("*.ckpt")}
    assert epochs == {"end_of_epoch1.ckpt": 1, "last.ckpt": 0}
    monkeypatch.undo()
    train(3, SaveLast(tmp_path, branches=[2]), resume=tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2


# TestPictures


class Answers(LightningModule):
    """Says of each picture the class and, for logits of 0 elsewhere, how sure it is: both stand in its first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(OrderedDict(conv1=torch.nn.Conv2d(3, 2, 3)))

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        pixel = batch[0][:, :, 0, 0]
        return torch.nn.functional.one_hot(pixel[:, 0].long(), 3) * pixel[:, 1:2]


class Pictures(LightningDataModule):
    """Two of class 0, three of class 1, one of class 2; of class 1 one is taken for 0, and of class 0 one for 2."""

    answers, sureness = torch.tensor([0, 2, 1, 1, 0, 2]), torch.tensor([1.0, 2, 3, 4, 5, 6])

    def test_dataloader(self) -> DataLoader:
        images = torch.zeros(6, 3, 4, 4)
        images[:, 0, 0, 0], images[:, 1, 0, 0] = self.answers, self.sureness
        return DataLoader(TensorDataset(images, torch.tensor([0, 0, 1, 1, 1, 2])), batch_size=4)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": [0.0] * 3, "std": [1.0] * 3, "classes": ["cat", "dog", "fox"]}


def test_the_pictures_of_a_test_show_who_was_taken_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr("callbacks.test_pictures.publish_figure", lambda figure, name, *_: drawn.update({name: figure}))
    trainer = Trainer(
        callbacks=[test_pictures.TestPictures(tmp_path)], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.test(Answers(), Pictures(), verbose=False)
    table = {text.get_position(): text.get_text() for text in drawn["confusion"].axes[0].texts}
    # (column, row): percent. A row is what it is: of 0 half is taken for 2, of 1 a third for 0, of 2 none.
    assert table == {(0, 0): "50", (2, 0): "50", (1, 1): "67", (0, 1): "33", (2, 2): "100"}
    titles = [axes.get_title() for axes in drawn["confident_errors"].axes if axes.get_title()]
    # e^5 / (e^5 + 2) = 98.7 %, e^2 / (e^2 + 2) = 78.7 %
    assert titles == ["cat 98.7%\ntrue: dog", "fox 78.7%\ntrue: cat"]
    assert sum(bool(axes.images) for axes in drawn["filters"].axes) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_the_peak_of_memory_is_this_processs_own_not_that_of_the_one_that_started_it() -> None:
    peak = "import torch; from callbacks import classifier_record as r; print(r.peak_memory_mb(torch.device('cpu')))"
    large = f"import subprocess, sys; ballast = b'x' * 2_500_000_000; subprocess.run([sys.executable, '-c', {peak!r}])"
    done = subprocess.run([sys.executable, "-c", large], capture_output=True, text=True, check=True)
    assert 50 < float(done.stdout) < 2_000
