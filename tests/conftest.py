"""Real images and a real browser for the tests that need them; under CI=true their absence is a failure."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch import run_anew, succeed
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from short_runs import CIFAR

NEEDS = {"cifar10_root": "cifar10", "browser": "browser"}  # fixture -> mark
CHROMIUM = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-sync "
CHROMIUM += "--disable-background-networking --disable-component-update --disable-quic --window-size=1500,1300"
# the longest file first
LONGEST = "cifar kill trainer_flags faults readme report bench predict fit run tensorboard".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-m "not cifar10"`` and ``-m "not browser"`` leave out the tests that use these fixtures.

    The longest files come first, so that of several processes, which get a file each (``make test``), none is left
    with a long one at the end.
    """
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            if name in NEEDS:
                item.add_marker(NEEDS[name])


def absent(what: str) -> None:
    """Skips the test, or under CI=true fails it."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder that holds ``cifar-10-batches-py``."""
    root = Path(os.environ.get("CIFAR10_ROOT") or Path(__file__).parents[1] / "data")
    if not (root / "cifar-10-batches-py").is_dir():
        absent(f"needs CIFAR-10, which is not in {root}: set CIFAR10_ROOT")
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        absent("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (*CHROMIUM.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=Service(executable_path=chromedriver)) as browser:
        yield browser


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run that was left alone; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(folder, *CIFAR, "--run_dir", "run", run=run_anew)
    return folder / "run"
