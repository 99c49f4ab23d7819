"""Schedules and files of a run."""

import json
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from callbacks import LRStep, tested_images
from callbacks.atomic import AtomicCheckpointIO, write_atomically, write_json
from callbacks.curve_answers import (
    does_more_training_hurt,
    held_out_choice,
    median_interval,
    medians,
    quartiles,
    sentence,
)
from callbacks.curve_record import CurveRecord
from callbacks.motion import Motion
from callbacks.one_cycle import OneCycle

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
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
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
        callbacks: list[Callback] = [OneCycle(peak=0.4, warm_up=0.2)]
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


@pytest.mark.parametrize(("peak", "warm_up"), [(0, 0.2), (math.nan, 0.2), (0.1, 0), (0.1, 1)])
def test_one_cycle_refuses_what_is_no_cycle(peak: float, warm_up: float) -> None:
    with pytest.raises(ValueError, match="cycle"):
        OneCycle(peak, warm_up)


# Motion


class Pushed(LightningModule):
    """Two weights; the gradient of each step is its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(2))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weights * batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# Four steps of length 0.1 * 5: straight on; to and fro; and round a right angle, 2 there and 2 here.
@pytest.mark.parametrize(
    ("gradients", "displacement", "mean_gradient"),
    [
        ([(3.0, 4.0)] * 4, 2.0, 5.0),
        ([(3.0, 4.0), (-3.0, -4.0)] * 2, 0.0, 0.0),
        ([(5.0, 0.0)] * 2 + [(0.0, 5.0)] * 2, 2**0.5, 2.5 * 2**0.5),
    ],
)
def test_motion_tells_a_straight_walk_from_one_to_and_fro(
    gradients: list[tuple[float, float]], displacement: float, mean_gradient: float
) -> None:
    trainer = Trainer(
        max_epochs=2, callbacks=[Motion()], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Pushed(), DataLoader(torch.tensor(gradients)))
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == pytest.approx(
        {
            "motion/path": 2.0,
            "motion/displacement": displacement,
            "motion/gradient": 5.0,
            "motion/mean_gradient": mean_gradient,
        },
        abs=1e-6,
    )


# Files


def test_write_atomically_creates_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"one", b"2"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_write_atomically_leaves_no_half_file(tmp_path: Path, error: BaseException, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def fails(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fails)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if old is None else {"file": old})


def test_write_json_is_standard_json(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": [1, 0.1, math.nan], "b": {"c": (math.inf, -math.inf)}, "d": None, "e": "nan"})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == {"a": [1, 0.1, None], "b": {"c": [None, None]}, "d": None, "e": "nan"}


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


# TestedImages


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
    monkeypatch.setattr("callbacks.tested_images.publish", lambda figure, name, *_: drawn.update({name: figure}))
    trainer = Trainer(
        callbacks=[tested_images.TestedImages(tmp_path)], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.test(Answers(), Pictures(), verbose=False)
    table = {text.get_position(): text.get_text() for text in drawn["confusion"].axes[0].texts}
    # (column, row): percent. A row is what it is: of 0 half is taken for 2, of 1 a third for 0, of 2 none.
    assert table == {(0, 0): "50", (2, 0): "50", (1, 1): "67", (0, 1): "33", (2, 2): "100"}
    titles = [axes.get_title() for axes in drawn["mistakes"].axes if axes.get_title()]
    # e^5 / (e^5 + 2) = 98.7 %, e^2 / (e^2 + 2) = 78.7 %
    assert titles == ["cat 98.7%\nis: dog", "fox 78.7%\nis: cat"]
    assert sum(bool(axes.images) for axes in drawn["filters"].axes) == 2


def test_interval_for_a_median() -> None:
    # Of 6 values, smallest to largest covers the median unless all fall on one side: 1 - 2 / 2**6.
    assert median_interval(np.array([3.0, 1, 2, 6, 5, 4])) == (1, 6, 1 - 2 / 64)
    # Of 9, the second from either end: 1 - 2 * (1 + 9) / 2**9 = 0.961; the third would cover 0.820.
    assert median_interval(np.arange(9.0)) == (1, 7, 1 - 20 / 512)
    assert median_interval(np.array([1.0, 2]))[2] == 0.5


def test_whether_more_training_hurts() -> None:
    epochs = np.array([1, 10, 100])
    bell = np.array([[9.0], [1], [3]]) * np.linspace(1, 1.5, 8)  # every seed: least at 10, three times that at 100
    answer = does_more_training_hurt(epochs, bell)
    assert (answer["verdict"], answer["best_epochs"]) == ("hurts", 10) and answer["ratio"] == pytest.approx(3)
    assert does_more_training_hurt(epochs, np.array([[9.0], [3], [1]]) * np.ones(8))["verdict"] == "helps"
    noise = np.where(np.arange(8) % 2, 1.1, 0.9)  # at 100 half of the seeds are better, half worse
    flat = np.stack([np.full(8, 9.0), np.full(8, 1.0), noise + 0.01])
    assert does_more_training_hurt(epochs, flat)["verdict"] == "no evidence"
    assert does_more_training_hurt(epochs, bell[:, :4])["verdict"] == "no evidence"  # 4 seeds cover only 87.5 %
    assert does_more_training_hurt(epochs, bell[:, :1])["verdict"] == "one seed"
    assert does_more_training_hurt(epochs, np.array([[1.0, 1], [np.nan, 1], [1, 1]]))["verdict"] == "diverged"
    text = sentence(0.1, answer, 8)
    assert "least at 10 epochs; at 100 a seed's is 3.00 times its own at the epochs that the other seeds choose" in text
    assert text.endswith("interval 3.00 to 3.00): past its best, more training hurts.")
    exact = does_more_training_hurt(epochs, np.array([[1.0, 1], [0, 0], [0, 0]]))  # no ratio, no division by it
    assert "falls to 0" in sentence(0.1, exact, 2)


def test_a_constant_function_has_no_r2() -> None:
    known = {"median": 0.5, "q25": 0.4, "q75": 0.6}
    answer = {"lr": 0.1, "epochs": 10, **dict.fromkeys(("train_mse", "true_mse", "true_max_abs_error"), known)}
    answer["r2"] = dict.fromkeys(known, -math.inf)
    assert CurveRecord._cells(answer, 4)[2:] == ["0.5 [0.4, 0.6]"] * 3 + ["-"]
    answer |= dict.fromkeys(("train_mse", "true_mse", "true_max_abs_error"), dict.fromkeys(known, math.inf))
    assert CurveRecord._cells(answer, 1)[2:] == ["diverged"] * 4


def test_a_diverged_seed_counts_as_the_worst() -> None:
    # Positions 0.25 * 2 and 0.75 * 2 lie between two values; the nearest is taken, of two as near the even one.
    assert quartiles(np.array([1.0, 2, 3])) == {"median": 2, "q25": 1, "q75": 3}
    one_bad = np.array([math.nan, 1.0, 2, 3, 4])
    assert quartiles(one_bad) == {"median": 3, "q25": 2, "q75": 4}  # in order: 1 2 3 4 inf
    assert quartiles(one_bad, worst=-math.inf) == {"median": 2, "q25": 1, "q75": 3}  # in order: -inf 1 2 3 4
    assert quartiles(np.array([math.inf, math.nan, 1.0]))["median"] == math.inf
    assert medians(np.array([[1.0, math.nan, math.nan], [5.0, 6, 7]])).tolist() == [math.inf, 6]


def test_what_a_held_out_sample_chooses() -> None:
    true, held_out = np.array([[4.0, 4], [1, 1], [2, 2]]), np.array([[14.0, 14], [11, 11], [10, 10]])
    assert held_out_choice(np.array([1, 10, 100]), true, held_out) == {
        "best_epochs": 10,
        "best_true_mse": 1,
        "held_out_epochs": 100,
        "held_out_true_mse": 2,
    }
    # Each seed by its own held-out points: 1, 10 and 100 epochs, true errors 4, 1 and 2.
    true, held_out = np.array([[4.0] * 3, [1] * 3, [2] * 3]), np.array([[1.0, 3, 3], [2, 1, 2], [3, 2, 1]])
    choice = held_out_choice(np.array([1, 10, 100]), true, held_out)
    assert (choice["held_out_epochs"], choice["held_out_true_mse"]) == (10, 2)
