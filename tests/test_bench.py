"""scripts/bench.py prints one JSON object whose ratios follow from its seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench.py"


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
