"""What TensorBoard shows of a run: its event files, read back."""

import csv
from pathlib import Path

import launch
import pytest
from short_runs import CIFAR
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FIT = ("fit.py", "--num_samples", "50", "--run_dir", "runs/fit/curve", "--epochs", "30")
IMAGES = (*CIFAR, "--limit_test_batches", "4", "--run_dir", "runs/cifar/images", "--max_epochs")
NAMES = {
    "fit/curve": ["train/loss", "val/loss"],
    "cifar/images": [f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc")] + ["lr"],
}
PICTURES = {
    "fit/curve": {"val/curve", "val/errors"},
    "cifar/images": {"val/training", "test/confusion", "test/confident_errors"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curve fit and a classifier in runs/, each resumed once it had ended, with more epochs."""
    folder = tmp_path_factory.mktemp("tensorboard")
    for flags, first, second in ((FIT, "60", "100"), (IMAGES, "2", "3")):
        launch.succeed(folder, *flags, first)
        launch.succeed(folder, *flags, second, "--ckpt_path", "last")
    return folder


@pytest.fixture(scope="module")
def events(folder: Path) -> dict[str, EventAccumulator]:
    """What TensorBoard reads of each run; 0: without choosing from it."""
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    return {run: EventAccumulator(str(folder / "runs" / run), size_guidance=sizes).Reload() for run in NAMES}


@pytest.mark.parametrize("run", NAMES)
def test_a_resumed_run_is_one_curve(run: str, folder: Path, events: dict[str, EventAccumulator]) -> None:
    """With every point of metrics.csv."""
    with open(folder / "runs" / run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for tag in NAMES[run]:
        expected = [(int(row["step"]), pytest.approx(float(row[tag]))) for row in rows if row[tag]]
        points = [(event.step, event.value) for event in events[run].Scalars(tag)]
        assert points == expected and len({step for step, _ in points}) == len(points)
    lengths = {"val/loss": 3, "test/acc": 1} if run == "cifar/images" else {}
    assert all(len(events[run].Scalars(tag)) == length for tag, length in lengths.items())


def test_the_pictures_and_a_slider_over_the_growing_curve(events: dict[str, EventAccumulator]) -> None:
    assert {run: set(events[run].Tags()["images"]) for run in PICTURES} == PICTURES
    epochs = [picture.step for picture in events["fit/curve"].Images("val/curve")]
    resumed = epochs[epochs.index(epochs[0], 1) :]  # behind the pictures from the end of the first run
    assert resumed[-1] == 100 and resumed == sorted(set(resumed)) and 8 <= len(resumed) <= 10
