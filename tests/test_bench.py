"""benchmarks/: the table's ratios follow from its values, and the baselines train the networks of the project."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import ROOT

from lit_models import ResNet20

BENCHMARKS = ROOT / "benchmarks"


def output_of(script: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, BENCHMARKS / script, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_baselines_learn_the_curve_and_have_the_same_network() -> None:
    assert json.loads(output_of("plain_fit.py", "--epochs", "500"))["true_mse"] < 3  # f itself has a variance of 57.8
    ours, baseline = ResNet20().eval(), runpy.run_path(str(BENCHMARKS / "plain_cifar.py"))["resnet20"]().eval()
    baseline.load_state_dict(dict(zip(baseline.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(baseline(images), ours(images))


@pytest.mark.slow
def test_bench(cifar10_root: Path) -> None:
    tiny = "--repeats 1 --epochs 50 --steps 7 --fast_steps 3".split()
    fit = json.loads(output_of("bench.py", "fit", *tiny, "--json"))
    assert [row["times_as_fast"] for row in fit["rows"]] == [row["baseline"] / row["litlab"] for row in fit["rows"]]
    table = output_of("bench.py", "cifar", *tiny, "--data_root", str(cifar10_root)).splitlines()
    assert "torch" in table[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[4:]]
    _, plain, ours, speedup, time = next(row for row in rows if "lab, 32-true: throughput" in row[0])
    plain_speed, our_speed = (float(cell.removesuffix(" images/s").replace(",", "")) for cell in (plain, ours))
    assert float(speedup) == pytest.approx(our_speed / plain_speed, abs=0.02)
    assert float(time) == pytest.approx(plain_speed / our_speed, abs=0.02)
