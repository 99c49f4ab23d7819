"""Every command and every Python block of the README, run as it stands there but shortened."""

import json
import os
import re
import shlex
import statistics
from pathlib import Path

import launch
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
SHORT = {
    "fit.py": "--max_epochs 20",
    "cifar.py": "--max_epochs 1 --limit_train_batches 2 --limit_val_batches 1 --limit_test_batches 1",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def commands(text: str) -> list[str]:
    lines = "".join(blocks(text, "sh")).splitlines()
    return [re.split(r"\s+# ", line)[0].strip() for line in lines if line.strip()]


COMMANDS = commands(README)
RUNS = list(dict.fromkeys(c.replace(".venv/bin/python", "python") for c in COMMANDS if "scripts/" in c))
USES = [c for c in RUNS if any(name in c for name in ("predict.py", "evaluate.py", "report.py"))]


def succeed(folder: Path, script: str, *flags: str, **env: str) -> str:
    done = launch.run([str(ROOT / script), *flags], folder, os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_its_commands() -> None:
    assert len(RUNS) > 8
    assert {"make demo", "make test", "make test-all"} <= set(COMMANDS)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert {c.split()[1] for c in COMMANDS if c.startswith("make")} <= set(targets)


def test_the_chinese_readme_keeps_step() -> None:
    assert commands(CHINESE) == COMMANDS
    assert blocks(CHINESE, "python") == blocks(README, "python")
    tables = [re.findall(r"^\|.*\| `.*` \|$", text, flags=re.M) for text in (README, CHINESE)]
    numbers = [[re.findall(r"[+±]?\d[\d.,/]*", row) for row in table] for table in tables]
    assert len(numbers[0]) > 4 and [sorted(row) for row in numbers[1]] == [sorted(row) for row in numbers[0]]
    assert CHINESE.count("\n## ") == README.count("\n## ")


def test_what_the_readme_links_to_is_there() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"\]\((?!https?:|#)(.*?)(?:#.*?)?\)", text):
            assert (page.parent / path).exists(), path
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
            assert (page.parent / picture).read_bytes().startswith((b"\x89PNG", b"GIF8"))


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
        assert line in RESULTS
    final = [100 * run[-1]["val_acc"] for run in with_it]
    assert f"{statistics.mean(final):.2f} % ± {statistics.stdev(final):.2f}" in README


@pytest.mark.parametrize("line", [c for c in RUNS if c not in USES])
def test_command(line: str, tmp_path: Path, cifar10_root: Path) -> None:
    _, script, *flags = shlex.split(line)
    if "--data_root" in flags:
        flags[flags.index("--data_root") + 1] = str(cifar10_root)
    if "--num_seeds 3" in line:
        flags += ["--num_seeds", "2"]
    flags += SHORT[Path(script).name].split()
    if "gpu" in flags and not torch.cuda.is_available():
        done = launch.run([str(ROOT / script), *flags], tmp_path)
        assert done.returncode == 2 and "no GPU" in done.stderr
        return
    printed = succeed(tmp_path, script, *flags, CIFAR10_ROOT=str(cifar10_root))
    if "--print_config" in flags:
        assert "\nrecipe: fast\n" in printed and "\nlr: 0.3\n" in printed
        return
    (summary,) = (tmp_path / "runs").glob("*/*/summary.json")
    assert summary.parent.joinpath("config.yaml").is_file()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cifar10_root: Path) -> Path:
    """A folder with runs/cifar/mine, runs/fit/mine, and pictures of one's own."""
    folder = tmp_path_factory.mktemp("readme")
    short = [*SHORT["cifar.py"].split(), "--data_root", str(cifar10_root)]
    succeed(folder, "scripts/cifar.py", *short, "--run_dir", "runs/cifar/mine")
    succeed(folder, "scripts/fit.py", *SHORT["fit.py"].split(), "--run_dir", "runs/fit/mine")
    (folder / "holiday").mkdir()
    for picture in ("cat.jpg", "holiday/beach.png"):
        Image.new("RGB", (64, 48), "orange").save(folder / picture)
    return folder


@pytest.mark.parametrize("line", USES)
def test_a_command_on_finished_runs(line: str, finished: Path, cifar10_root: Path) -> None:
    _, script, *flags = shlex.split(line)
    if Path(script).name == "report.py":  # five minutes of runs: here, of those that are there
        flags += ["runs/fit/mine", "runs/cifar/mine"]
    succeed(finished, script, *flags, CIFAR10_ROOT=str(cifar10_root))


def printed_by(folder: Path, block: str, expression: str) -> object:
    """What an expression is after a block of Python."""
    script = folder / "block.py"
    script.write_text(f"{block}import json\nprint(json.dumps({expression}))\n", encoding="utf-8")
    return json.loads(succeed(folder, str(script)).splitlines()[-1])


def test_the_classifier_from_python(tmp_path: Path, cifar10_root: Path) -> None:
    block = blocks(README, "python")[0]
    few = "limit_train_batches=2, limit_val_batches=1, limit_test_batches=1"
    for whole, short in (("max_epochs=10", f"max_epochs=2, {few}"), ("{5: 0.01}", "{1: 0.01}")):
        assert block.count(whole) == 1
        block = block.replace(whole, short)
    (tmp_path / "data").symlink_to(cifar10_root)
    expression = "[type(model).__name__, dict(model.hparams)['lr'], trainer.optimizers[0].param_groups[0]['lr'], "
    expression += "sorted(trainer.callback_metrics)]"
    known = ["ResNet20Classifier", 0.1, 0.01, ["test/acc", "test/loss"]]
    assert printed_by(tmp_path, block, expression) == known


def test_the_curve_from_python(tmp_path: Path) -> None:
    expression = "[*curves.shape, (curves - data.truth).square().mean().item()]"
    *shape, error = printed_by(tmp_path, blocks(README, "python")[1], expression)
    assert shape == [6, 1001] and error < 0.5  # the noise on the points has variance 1
