"""What a user sees who opens TensorBoard over the runs: in a real browser, and by its HTTP interface."""

import csv
import io
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest
from matplotlib.image import imread
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SCRIPTS = Path(__file__).parents[1] / "scripts"
FIT = ("--epochs", "30", "100", "--num_samples", "50", "--run_dir", "runs/fit/curve")
CIFAR = (
    *("--data", "synthetic", "--max_epochs", "3", "--milestones", "{2: 0.01}", "--accelerator", "cpu"),
    *("--limit_train_batches", "8", "--limit_val_batches", "4", "--limit_test_batches", "4", "--batch_size", "32"),
    *("--run_dir", "runs/cifar/images"),
)
CHROMIUM = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    "--window-size=1500,1300",
)
TAGS = ("lr", "train/loss", "val/acc")
NAMES = {
    "fit/curve": ["train/loss", "val/loss"],
    "cifar/images": [f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc")] + ["lr"],
}
PICTURES = {
    "fit/curve": {"val/curve", "val/errors"},
    "cifar/images": {"val/training", "test/confusion", "test/confident_errors", "train/filters"},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard")
    for script, args, shorter in (
        ("fit.py", FIT, ("--epochs", "30", "60")),
        ("cifar.py", CIFAR, ("--max_epochs", "2")),
    ):
        for more in (shorter, ("--ckpt_path", "last")):  # a resumed run: no point twice, none missing
            subprocess.run([sys.executable, SCRIPTS / script, *args, *more], cwd=folder, check=True, timeout=300)
    return folder / "runs"


def get(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as response:
        return json.load(response)


def points_of(address, run, tag):
    """(step, value) of every point."""
    query = urlencode({"run": run, "tag": tag})
    return [(step, value) for _, step, value in get(f"{address}data/plugin/scalars/scalars?{query}")]


def has_read_all(address):
    tags = {kind: get(f"{address}data/plugin/{kind}/tags") for kind in ("scalars", "images")}
    scalars = all(set(NAMES[run]) <= set(tags["scalars"].get(run, ())) for run in NAMES)
    return scalars and all(PICTURES[run] <= set(tags["images"].get(run, ())) for run in NAMES)


@pytest.fixture(scope="module")
def address(runs):
    """The address of a TensorBoard over the runs."""
    log = runs.parent / "tensorboard.log"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--host", "127.0.0.1", "--port", "0"]
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=runs.parent, stdout=file, stderr=file)
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
            with pytest.raises(subprocess.TimeoutExpired):  # it lives
                process.wait(0.1)
        until = time.monotonic() + 60
        while not has_read_all(found[0]) and time.monotonic() < until:
            time.sleep(0.1)
        yield found[0]
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser(browser_binaries, tmp_path_factory):
    chromium, chromedriver = browser_binaries
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*CHROMIUM, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(executable_path=chromedriver))
    yield driver
    driver.quit()


def shows_a_line(chart):
    """Lines have a hue, all else is grey."""
    rgb = imread(io.BytesIO(chart.screenshot_as_png))[..., :3]
    return (rgb.max(-1) - rgb.min(-1) > 0.1).sum() > 100


def drawn_lines(browser):
    """{tag: whether its chart shows a line} of the cards on the page."""
    found = {}
    for card in browser.find_elements(By.CSS_SELECTOR, "scalar-card"):
        tag = card.find_element(By.CSS_SELECTOR, ".tag").get_attribute("title")
        found[tag] = shows_a_line(card.find_element(By.CSS_SELECTOR, "line-chart .series-view"))
    return found


# [[title, chart], ...] of the custom scalars' page, which keeps them in shadow trees
CUSTOM_CHARTS = """
function* walk(root) {
    for (const element of root.querySelectorAll("*")) {
        yield element;
        if (element.shadowRoot) yield* walk(element.shadowRoot);
    }
}
const inside = (card, tag) => [...walk(card.shadowRoot || card)].find((e) => e.tagName === tag);
return [...walk(document)]
    .filter((e) => e.tagName === "TF-CUSTOM-SCALAR-MULTI-LINE-CHART-CARD")
    .map((card) => [inside(card, "TF-CARD-HEADING").displayName, inside(card, "VZ-LINE-CHART2")]);
"""


@pytest.mark.browser
def test_a_browser_shows_the_curves(browser, address, tmp_path):
    query = urlencode({"tagFilter": f"^({'|'.join(TAGS)})$"})
    browser.get(f"{address}?{query}#timeseries")
    wait = WebDriverWait(browser, 120, ignored_exceptions=[WebDriverException])  # the page redraws itself
    wait.until(lambda browser: drawn_lines(browser) == dict.fromkeys(TAGS, True))
    page = browser.find_element(By.TAG_NAME, "body").text
    assert "fit/curve" in page and "cifar/images" in page
    assert browser.save_screenshot(str(tmp_path / "tensorboard.png"))


@pytest.mark.browser
def test_a_browser_shows_what_belongs_together_in_one_chart(browser, address, tmp_path):
    browser.get(f"{address}#custom_scalars")
    wait = WebDriverWait(browser, 120, ignored_exceptions=[WebDriverException])
    titles = ("accuracy", "loss", "learning rate", "images per second", "median error")

    def lines(browser):
        return {title: shows_a_line(chart) for title, chart in browser.execute_script(CUSTOM_CHARTS)}

    wait.until(lambda browser: lines(browser) == dict.fromkeys(titles, True))
    assert browser.save_screenshot(str(tmp_path / "custom_scalars.png"))


@pytest.mark.parametrize("run", NAMES)
def test_tensorboard_holds_every_point_of_metrics_csv(address, runs, run):
    with open(runs / run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for tag in NAMES[run]:
        expected = [(int(row["step"]), float(row[tag])) for row in rows if row[tag]]
        points = points_of(address, run, tag)
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected])


def test_points_lie_at_their_epochs_and_show_the_lr_step(address):
    assert [value for _, value in points_of(address, "cifar/images", "lr")] == pytest.approx([0.1, 0.1, 0.01])
    assert len(points_of(address, "cifar/images", "val/acc")) == 3
    assert len(points_of(address, "cifar/images", "test/acc")) == 1
    epochs = [epoch for epoch, _ in points_of(address, "fit/curve", "train/loss")]
    assert epochs[0] == 1 and epochs[-1] == 100


def test_the_pictures_are_there(address):
    tags = get(f"{address}data/plugin/images/tags")
    assert {run: set(tags[run]) for run in PICTURES} == PICTURES


def test_a_slider_shows_how_the_curve_grows(address):
    query = urlencode({"run": "fit/curve", "tag": "val/curve", "sample": 0})
    epochs = [picture["step"] for picture in get(f"{address}data/plugin/images/images?{query}")]
    assert epochs[0] == 1 and epochs[-1] == 100 and 30 in epochs  # which was asked for
    assert epochs == sorted(set(epochs)) and 8 <= len(epochs) <= 10  # TensorBoard takes ten, of more a random choice


def test_charts_that_belong_together_share_one(address):
    layout = get(f"{address}data/plugin/custom_scalars/layout")
    (category,) = [c for c in layout["category"] if c["title"] == "at a glance"]
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
    assert {"^train/acc$", "^test/acc$", "^val/acc$"} <= set(charts["accuracy"])
    assert {"^train/loss$", "^test/loss$", "^val/loss$"} <= set(charts["loss"])
    assert charts["learning rate"] == ["^lr$"] and charts["images per second"] == ["^train/images_per_second$"]
    assert "^val/loss$" in charts["median error"]
    for tags in charts.values():
        for tag in tags:
            query = urlencode({"run": "cifar/images", "tag": tag})
            found = get(f"{address}data/plugin/custom_scalars/scalars?{query}")
            assert found["regex_valid"] and set(found["tag_to_events"]) <= {tag.strip("^$")}


def test_the_command_the_versions_and_the_machine_are_told(address):
    tags = get(f"{address}data/plugin/text/tags")
    for run in NAMES:
        names = {name.split("/")[0] for name in tags[run]}
        assert {"command", "versions", "machine"} <= names
        for tag, word in (("command", "--run_dir"), ("versions", "pytorch-lightning"), ("machine", "CPU cores")):
            full = next(name for name in tags[run] if name.startswith(tag))
            assert word in get(f"{address}data/plugin/text/text?{urlencode({'run': run, 'tag': full})}")[0]["text"]


def test_runs_can_be_sorted_by_accuracy(address):
    request = urllib.request.Request(
        f"{address}data/plugin/hparams/experiment",
        json.dumps({"experimentName": ""}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        experiment = json.load(response)
    metrics = {metric["name"]["tag"] for metric in experiment["metricInfos"]}
    assert {"test/acc", "test/loss", "val/loss"} <= metrics
    assert {"recipe", "lr", "seed", "function", "hidden"} <= {info["name"] for info in experiment["hparamInfos"]}


def test_the_network_is_drawn(address):
    query = urlencode({"run": "cifar/images", "large_attrs_key": "_too_large_attrs", "limit_attr_size": 1024})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"{address}data/plugin/graphs/graph?{query}", timeout=60
    ) as response:
        graph = response.read().decode()
    assert "layer3" in graph and "Conv2d[conv1]" in graph
