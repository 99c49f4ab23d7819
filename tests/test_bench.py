"""scripts/bench.py prints one JSON object whose ratios follow from its seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.hardware import has_native_bfloat16

BENCH = Path(__file__).parents[1] / "scripts" / "bench.py"


@pytest.mark.slow
def test_bench_fit(tmp_path: Path) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text("""import sys; print('{"seconds": %f}' % (int(sys.argv[2]) / 1000))""")  # 1 ms an epoch
    command = [sys.executable, str(BENCH), "fit", "--plain", str(plain), "--repeats", "1", "--epochs", "50"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    seconds = result["seconds"]
    assert (seconds["plain_1000"]["train"], seconds["plain_50"]["train"]) == (1, 0.05)
    assert result["train_speedup_1000"] == pytest.approx(1 / seconds["fit_1000"]["train"])
    assert result["grid_time_over_one_plain_run"] == pytest.approx(seconds["grid_4x8_50"]["train"] / 0.05)


@pytest.mark.slow
def test_bench_cifar(tmp_path: Path, cifar10_root: Path) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text(
        """import sys; print('{"images_per_second": %f}' % (100 + int(sys.argv[-1])))"""
    )  # 102 with workers
    command = [sys.executable, str(BENCH), "cifar", "--plain", str(plain), "--repeats", "1", "--steps", "4"]
    # Without this flag cifar.py would be compiled too, and once more from an empty cache: half a minute each.
    command += ["--data_root", str(cifar10_root.resolve()), "--compile", "false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["compiled"] is False
    plains = result["plain_images_per_second"]
    assert (plains["plain_0_workers"], plains["plain_2_workers"]) == (100, 102)
    assert ("bf16-mixed" in result["precisions"]) == has_native_bfloat16(torch.device("cpu"))
    for measured in result["precisions"].values():
        speeds = measured["images_per_second"]
        assert measured["trainer_over_better_plain"] == pytest.approx(speeds["trainer"] / 102)
        assert measured["trainer_over_bare_compiled"] == pytest.approx(
            speeds["trainer_in_turn"] / speeds["bare_compiled"]
        )
        assert 0 < measured["trainer_fraction_of_peak"] < 1
    # 40.55 million multiply-adds forward, and twice that backward but for the images' own gradient (0.44 million):
    # 2 * (3 * 40.55 - 0.44) = 242.4 million operations
    assert result["flops_per_image"] == pytest.approx(242.4e6, rel=1e-3)
    assert all(len(values) == 5 and min(values) > 0 for values in result["fast_over_epochs"].values())
