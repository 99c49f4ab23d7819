"""What TensorBoard shows of a run: its event files read back, and its page in a real browser."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import launch
import pytest
from matplotlib.image import imread
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
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
TAGS = ("lr", "train/loss", "val/acc")


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


def drawn_lines(browser: webdriver.Chrome) -> dict[str, bool]:
    """{tag: whether its chart shows a line} of the cards on the page; lines have a hue, all else is gray."""
    lines = {}
    for card in browser.find_elements(By.CSS_SELECTOR, "scalar-card"):
        tag = card.find_element(By.CSS_SELECTOR, ".tag").get_attribute("title")
        chart = card.find_element(By.CSS_SELECTOR, "line-chart .series-view")
        rgb = imread(io.BytesIO(chart.screenshot_as_png))[..., :3]
        lines[tag] = (rgb.max(-1) - rgb.min(-1) > 0.1).sum() > 100
    return lines


@pytest.mark.slow
def test_a_browser_shows_the_curves(folder: Path, browser: webdriver.Chrome) -> None:
    command = [sys.executable, *"-m tensorboard.main --logdir runs --host 127.0.0.1 --port 0".split()]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as tensorboard:
        try:
            line = next(line for line in tensorboard.stderr or () if "http://" in line)
            query = urlencode({"tagFilter": f"^({'|'.join(TAGS)})$"})
            browser.get(f"{re.findall(r'http://[^ ]+/', line)[0]}?{query}#timeseries")
            wait = WebDriverWait(browser, 120, ignored_exceptions=[WebDriverException])  # the page redraws itself
            wait.until(lambda browser: drawn_lines(browser) == dict.fromkeys(TAGS, True))
            page = browser.find_element(By.TAG_NAME, "body").text
            assert "fit/curve" in page and "cifar/images" in page
        finally:
            tensorboard.terminate()
