"""Every command of the README, run as it stands there but shortened."""

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))


def commands(text: str) -> list[str]:
    return [
        re.split(r"\s+# ", line)[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S)
        for line in block.splitlines()
        if line.strip()
    ]


COMMANDS = commands(README)
RUNS = [c.replace(".venv/bin/python", "python") for c in COMMANDS if "scripts/" in c]
SHORT = {
    "fit.py": "--max_epochs 20",
    "cifar.py": "--max_epochs 1 --limit_train_batches 2 --limit_val_batches 1 --limit_test_batches 1",
}


def test_the_readme_has_its_commands() -> None:
    assert len(RUNS) > 8
    assert "make demo" in COMMANDS and "make test" in COMMANDS
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert {c.split()[1] for c in COMMANDS if c.startswith("make")} <= set(targets)


def test_the_chinese_readme_keeps_step() -> None:
    assert commands(CHINESE) == COMMANDS
    tables = [re.findall(r"^\|(?: [\d.,% -]+ \|)+$", text, flags=re.M) for text in (README, CHINESE)]
    assert len(tables[0]) > 14 and tables[1] == tables[0]  # rows of numbers
    assert CHINESE.count("\n## ") == README.count("\n## ")


def test_the_epochs_of_the_lab_recipe_are_those_of_the_reported_runs() -> None:
    with_it, without = (
        [
            json.loads(path.read_text())["epochs"]
            for path in sorted((ROOT / "docs" / "report").glob(f"{name}_*/summary.json"))
        ]
        for name in ("with", "without")
    )
    assert len(with_it) == len(without) == 3
    for epoch, rows in enumerate(zip(*with_it, strict=True)):
        mean = {name: statistics.mean(row[name] for row in rows) for name in rows[0] if rows[0][name] is not None}
        percent = {name: f"{100 * mean[name]:.1f} %" for name in ("train_acc", "probe_acc", "val_acc")}
        stayed = f"{100 * statistics.mean(run[epoch]['val_acc'] for run in without):.1f} %" if epoch > 4 else "-"
        cells = [str(epoch), f"{rows[0]['lr']:g}", f"{mean['train_loss']:.3f}", percent["train_acc"]]
        cells += [percent["probe_acc"], f"{mean['val_loss']:.3f}", percent["val_acc"], stayed]
        line = f"\n| {' | '.join(cells)} |\n"
        assert line in README and line in CHINESE
    final = [100 * run[-1]["val_acc"] for run in with_it]
    assert f"{statistics.mean(final):.2f} % ± {statistics.stdev(final):.2f}" in README


@pytest.mark.parametrize("line", [c for c in dict.fromkeys(RUNS) if "predict.py" in c or "report.py" in c])
def test_a_command_on_finished_runs(line: str, finished: Path) -> None:
    _, script, *flags = shlex.split(line)
    if Path(script).name == "report.py":  # five minutes of runs: here, of those that are there
        flags += ["runs/fit/mine", "runs/cifar/mine"]
    done = subprocess.run([sys.executable, str(ROOT / script), *flags], cwd=finished, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/cifar/mine, runs/fit/mine, and pictures of one's own."""
    folder = tmp_path_factory.mktemp("readme")
    few = SHORT["cifar.py"].split()[2:]
    for name, flags in (
        ("cifar", ["--data", "synthetic", "--max_epochs", "2", "--milestones", "{1: 0.01}", *few]),
        ("fit", ["--epochs", "10", "20"]),
    ):
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *flags, "--run_dir", f"runs/{name}/mine"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (folder / "holiday").mkdir()
    for picture in ("cat.jpg", "holiday/beach.png"):
        Image.new("RGB", (64, 48), "orange").save(folder / picture)
    return folder


@pytest.mark.parametrize("line", [c for c in dict.fromkeys(RUNS) if "fit.py" in c or "cifar.py" in c])
def test_command(line: str, tmp_path: Path, cifar10_root: Path) -> None:
    _, script, *flags = shlex.split(line)
    if "--data_root" in flags:
        flags[flags.index("--data_root") + 1] = str(cifar10_root)
    if "--num_seeds 3" in line:
        flags += ["--num_seeds", "2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *flags, *SHORT[Path(script).name].split()],
        cwd=tmp_path,
        env=os.environ | {"CIFAR10_ROOT": str(cifar10_root)},
        capture_output=True,
        text=True,
    )
    if "gpu" in flags and not torch.cuda.is_available():
        assert done.returncode == 2 and "no GPU" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    (summary,) = (tmp_path / "runs").glob("*/*/summary.json")
    assert summary.parent.joinpath("config.yaml").is_file()


def test_pictures_are_there() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README + CHINESE):
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
