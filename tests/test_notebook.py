"""docs/lab.ipynb runs from top to bottom, and has the outputs of a whole run."""

import json
import os
from pathlib import Path

import launch
import pytest

NOTEBOOK = launch.ROOT / "docs" / "lab.ipynb"
CODE = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """As a script of its cells in their order, in its own folder; with fewer batches, and epochs of the curve."""
    script = "\n".join("".join(cell["source"]) for cell in CODE)
    shorter = [("limit_train_batches=100", "limit_train_batches=4"), ("limit_val_batches=10,", "limit_val_batches=1,")]
    shorter += [("10_000, 20_000, 50_000]", "10_000]"), ("10_000, 50_000]", "10_000]")]
    for whole, short in shorter:
        assert script.count(whole) == 1
        script = script.replace(whole, short)
    (tmp_path / "lab.py").write_text(script, encoding="utf-8")
    env = {"MPLBACKEND": "agg", "CIFAR10_ROOT": str(tmp_path), "PYTHONPATH": str(launch.ROOT)}
    done = launch.run([str(tmp_path / "lab.py")], tmp_path, os.environ | env)
    assert done.returncode == 0, done.stderr
    for words in ("SYNTHETIC images", "at 10,000 it is", "At the end: training"):
        assert words in done.stdout


def test_it_is_saved_with_what_it_prints_and_draws() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    printed = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert "CIFAR-10\n" in printed and "The error is lowest at" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 7
    assert not any(output.get("name") == "stderr" or output["output_type"] == "error" for output in outputs)
    assert NOTEBOOK.stat().st_size < 1_000_000
