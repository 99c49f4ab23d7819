"""Every command and every Python block of the README, and docs/lab.ipynb, run as they stand there but shortened."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from launch import ROOT, assert_refused, command, succeed
from PIL import Image

README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
SHORT = {
    "fit.py": "--max_epochs 20",
    "cifar.py": "--max_epochs 1 --limit_train_batches 2 --limit_val_batches 1 --limit_test_batches 1",
}
# Commands that take longer than others, or differ little from one that is run anyway.
SLOW = "evaluate|report|onnx|num_seeds|epochs 100 |lr 1 |data_root ~|run_dir runs/cifar|paper|fast$|fast --max_epochs"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def commands(text: str) -> list[str]:
    lines = "".join(blocks(text, "sh")).splitlines()
    return [re.split(r"\s+# ", line)[0].strip() for line in lines if line.strip()]


COMMANDS = commands(README)
RUNS = list(dict.fromkeys(c.replace(".venv/bin/python", "python") for c in COMMANDS if "scripts/" in c))
PARAMS = [pytest.param(c, marks=[pytest.mark.slow] if re.search(SLOW, c) else [], id=c) for c in RUNS]
NOTEBOOK = ROOT / "docs" / "lab.ipynb"
CODE = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
USES = ("predict.py", "evaluate.py", "report.py")  # of finished runs


def test_the_readme_has_its_commands_in_both_languages() -> None:
    assert len(RUNS) > 8
    assert {"make demo", "make test", "make test-all"} <= set(COMMANDS)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert {c.split()[1] for c in COMMANDS if c.startswith("make")} <= set(targets)
    assert commands(CHINESE) == COMMANDS
    assert blocks(CHINESE, "python") == blocks(README, "python")
    tables = [re.findall(r"^\|.*\| `.*` \|$", text, flags=re.M) for text in (README, CHINESE)]
    numbers = [[sorted(re.findall(r"[+±]?\d(?:[\d.,/]*\d)?", row)) for row in table] for table in tables]
    assert len(numbers[0]) > 4 and numbers[0] == numbers[1]


def test_what_the_documents_link_to_is_there() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for path in re.findall(r"\]\((?!https?:|#)(.*?)(?:#.*?)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), path
            if path.endswith((".png", ".gif")):
                assert (page.parent / path).read_bytes().startswith((b"\x89PNG", b"GIF8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cifar10_root: Path) -> Path:
    """A folder with runs/cifar/mine, runs/fit/mine, and pictures of one's own."""
    folder = tmp_path_factory.mktemp("readme")
    for script in ("cifar", "fit"):
        flags = SHORT[f"{script}.py"].split()
        succeed(folder, f"{script}.py", *flags, "--run_dir", f"runs/{script}/mine", CIFAR10_ROOT=str(cifar10_root))
    (folder / "holiday").mkdir()
    for picture in ("cat.jpg", "holiday/beach.png"):
        Image.new("RGB", (64, 48), "orange").save(folder / picture)
    return folder


@pytest.mark.parametrize("line", PARAMS)
def test_command(line: str, tmp_path: Path, cifar10_root: Path, request: pytest.FixtureRequest) -> None:
    _, path, *flags = shlex.split(line)
    script, root = Path(path).name, str(cifar10_root)
    if script in USES:
        succeed(request.getfixturevalue("finished"), script, *flags, CIFAR10_ROOT=root)
        return
    if "own" in flags:
        for name in ("fruits/apple/1", "fruits/apple/2", "fruits/pear/1", "fruits/pear/2"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48), "orange").save(tmp_path / f"{name}.png")
    elif "--data_root" in flags:
        flags[flags.index("--data_root") + 1] = root
    if "--num_seeds 3" in line:
        flags += ["--num_seeds", "2"]
    (tmp_path / "points.csv").write_text("t,v\n1,2\n2,3\n3,5\n")
    flags += SHORT[script].split()
    if "gpu" in flags and not torch.cuda.is_available():
        assert_refused(command(tmp_path, script, *flags, CIFAR10_ROOT=root), "gpu")
        return
    printed = succeed(tmp_path, script, *flags, CIFAR10_ROOT=root).stdout
    if "--print_config" in flags:
        assert "\nrecipe: fast\n" in printed and "\nlr: 0.3\n" in printed
        return
    (summary,) = (tmp_path / "runs").glob("*/*/summary.json")
    assert summary.parent.joinpath("config.yaml").is_file()


def printed_by(folder: Path, block: str, expression: str) -> object:
    """What an expression is after a block of Python."""
    script = folder / "block.py"
    script.write_text(f"{block}import json\nprint(json.dumps({expression}))\n", encoding="utf-8")
    return json.loads(succeed(folder, str(script)).stdout.splitlines()[-1])


def test_the_classifier_from_python(tmp_path: Path, cifar10_root: Path) -> None:
    block = blocks(README, "python")[0]
    few = "limit_train_batches=2, limit_val_batches=1, limit_test_batches=1"
    for whole, short in (("max_epochs=10", f"max_epochs=2, {few}"), ("{5: 0.01}", "{1: 0.01}")):
        assert block.count(whole) == 1
        block = block.replace(whole, short)
    (tmp_path / "data").symlink_to(cifar10_root)
    expression = "[model.lr, trainer.optimizers[0].param_groups[0]['lr'], sorted(trainer.callback_metrics)]"
    assert printed_by(tmp_path, block, expression) == [0.1, 0.01, ["test/acc", "test/loss"]]


def test_another_network_from_python(tmp_path: Path) -> None:
    """Trained, saved, loaded and predicted with, on the built-in images."""
    block = blocks(README, "python")[1] + (
        "from pytorch_lightning import Trainer\nfrom callbacks import OneCycle\n"
        "from datamodules import CIFAR10DataModule\n"
        "data = CIFAR10DataModule(dataset='synthetic', batch_size=16)\n"
        "trainer = Trainer(accelerator='cpu', max_epochs=1, limit_train_batches=3, limit_val_batches=1,\n"
        "    limit_predict_batches=1, callbacks=[OneCycle(lr=0.1, warmup_fraction=0.2)])\n"
        "trainer.fit(model, data)\n"
        "again = ResNet18Classifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)\n"
        "(a,), (b,) = (trainer.predict(each, data) for each in (model, again))\n"
    )
    expression = "[type(again.net).__name__, *a.shape, bool((a == b).all())]"
    assert printed_by(tmp_path, block, expression) == ["ResNet", 16, 10, True]


def test_the_curve_from_python(tmp_path: Path) -> None:
    expression = "[*curves.shape, (curves - data.truth).square().mean().item()]"
    *shape, error = printed_by(tmp_path, blocks(README, "python")[2], expression)
    assert shape == [6, 1001] and error < 0.5  # the noise on the points has variance 1


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """As a script of its cells in their order, in its own folder; with fewer batches, and epochs of the curve."""
    script = "\n".join("".join(cell["source"]) for cell in CODE)
    shorter = [("limit_train_batches=100", "limit_train_batches=4"), ("limit_val_batches=10,", "limit_val_batches=1,")]
    shorter += [("10_000, 20_000, 50_000]", "10_000]"), ("10_000, 50_000]", "10_000]")]
    for whole, short in shorter:
        assert script.count(whole) == 1
        script = script.replace(whole, short)
    (tmp_path / "lab.py").write_text(script, encoding="utf-8")
    printed = succeed(tmp_path, str(tmp_path / "lab.py"), MPLBACKEND="agg", CIFAR10_ROOT=str(tmp_path)).stdout
    for words in ("SYNTHETIC images", "at 10,000 it is", "At the end: training"):
        assert words in printed


def test_the_notebook_is_saved_with_what_it_prints_and_draws() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    printed = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert "CIFAR-10\n" in printed and "The error is lowest at" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 7
    assert not any(output.get("name") == "stderr" or output["output_type"] == "error" for output in outputs)
    assert NOTEBOOK.stat().st_size < 1_000_000
