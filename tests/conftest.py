"""Real images and a real browser for the tests that need them; under CI=true their absence is a failure."""

import os
import shutil
from pathlib import Path

import pytest
from launch import run_anew, succeed
from short_runs import CIFAR

NEEDS = {"cifar10_root": "cifar10", "browser_binaries": "browser"}  # fixture -> mark
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


@pytest.fixture(scope="session")
def browser_binaries() -> tuple[str, str]:
    """Paths of chromium and chromedriver."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        absent("needs chromium and chromedriver on the PATH")
    return str(chromium), str(chromedriver)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run that was left alone; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(folder, *CIFAR, "--run_dir", "run", run=run_anew)
    return folder / "run"
