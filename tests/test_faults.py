"""What goes wrong around a run: signals, a second process, full disks, broken and hostile files, a loss of nan."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import launch
import pytest
import torch

resource = pytest.importorskip("resource", reason="Windows has neither these signals nor these limits")

ROOT = Path(__file__).parents[1]
CIFAR = (
    *("scripts/cifar.py", "--data", "synthetic", "--accelerator", "cpu", "--max_epochs", "3", "--batch_size", "16"),
    *("--milestones", "{1: 0.05}", "--limit_train_batches", "8", "--limit_val_batches", "5"),
    *("--limit_test_batches", "0"),
)
ENDLESS = (*CIFAR, "--limit_train_batches", "1.0", "--save_every_n_steps", "2")
FIT = ("scripts/fit.py", "--epochs", "50")
SLOW = """
import pathlib, time
from pytorch_lightning import Callback

class Slow(Callback):
    def {hook}(self, *args, **kwargs):
        pathlib.Path("waiting").touch()
        time.sleep(60)
"""


def start(folder: Path, *args: str, **env: str) -> subprocess.Popen:
    script, *flags = args
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *flags],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # as in a terminal, also where the tests run in a shell's background, whose processes ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(folder: Path, *args: str, **env: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    script, *flags = args
    done = launch.run([str(ROOT / script), *flags], folder, os.environ | {"CUDA_VISIBLE_DEVICES": ""} | env)
    return done.returncode, done.stdout, done.stderr


def succeed(folder: Path, *args: str, **env: str) -> tuple[str, str]:
    code, out, err = run(folder, *args, **env)
    assert code == 0, err
    return out, err


def assert_mistake(outcome: tuple[int, str, str], *words: str, code: int = 2) -> None:
    assert outcome[0] == code, outcome
    assert len(outcome[2].strip().splitlines()) == 1, outcome[2]
    for word in words:
        assert word in outcome[2]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_same(run_dir: Path, expected: Path) -> None:
    mine, theirs = (load(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (run_dir, expected))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert (run_dir / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in ``run``; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    process = start(folder, *CIFAR, "--run_dir", "run")
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    return folder


def copy(run_dir: Path, to: Path) -> Path:
    for path in run_dir.rglob("*"):
        if path.is_file() and path.name != ".lock":
            (to / path.relative_to(run_dir)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(run_dir)).write_bytes(path.read_bytes())
    return to


# Signals


def test_a_second_ctrl_c_exits_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, *ENDLESS, "--run_dir", "run")
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGSTOP)  # so that both arrive before the next batch ends
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=20) in (130, 143)
    load(tmp_path / "run" / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_ctrl_c_in_one_of_several_seeds_tells_how_to_go_on_with_all(tmp_path: Path) -> None:
    flags = (*CIFAR, "--num_seeds", "2", "--run_dir", "all")
    process = start(tmp_path, *flags, "--max_epochs", "1000")
    wait_for(tmp_path / "all" / "seed0" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "repeat the command with --run_dir all --ckpt_path last" in out
    succeed(tmp_path, *flags, "--ckpt_path", "last")
    assert [run["seed"] for run in json.loads((tmp_path / "all" / "summary.json").read_text())["runs"]] == [0, 1]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("hook", "script"),
    [("setup", CIFAR), ("on_train_start", (*FIT, "--enable_checkpointing", "false"))],
    ids=["cifar's setup", "fit's training"],
)
def test_a_signal_where_nothing_is_saved(
    script: tuple[str, ...], hook: str, signum: int, code: int, tmp_path: Path
) -> None:
    """A callback of the user's, whose turn is before the one that saves, makes the moment last."""
    (tmp_path / "slow.py").write_text(SLOW.format(hook=hook))
    process = start(tmp_path, *script, "--callbacks", "slow.Slow", "--run_dir", "run", PYTHONPATH=f"{tmp_path}:{ROOT}")
    wait_for(tmp_path / "waiting", process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code and "Traceback" not in err, err
    assert not list(tmp_path.rglob("*.ckpt")) and not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_signal_during_validation_ends_it_and_the_resumed_run_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "signals.py").write_text("""
import os, signal
from pytorch_lightning import Callback

class TermInValidation(Callback):
    def on_validation_batch_start(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
""")
    two = (*CIFAR, "--max_epochs", "2", "--run_dir")
    succeed(tmp_path, *two, "whole")
    process = start(tmp_path, *two, "stopped", "--callbacks", "signals.TermInValidation", PYTHONPATH=str(tmp_path))
    assert process.wait(timeout=60) == 143
    # saved before the epoch's eighth and last batch
    assert load(tmp_path / "stopped" / "checkpoints" / "last.ckpt")["global_step"] == 7
    succeed(tmp_path, *two, "stopped", "--ckpt_path", "last", PYTHONPATH=str(tmp_path))  # its config names the callback
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_slurm_takes_the_job_back_and_starts_it_again(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/requeued"\n')
    (tools / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "PATH": f"{tools}:{os.environ['PATH']}"}
    settings = (*CIFAR, "--limit_train_batches", "40", "--save_every_n_steps", "2", "--run_dir", "run")
    process = start(tmp_path, *settings, **job)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    saved = load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert 2 <= saved < 120 and not (tmp_path / "run" / "summary.json").exists()
    succeed(tmp_path, *settings, **job, SLURM_RESTART_COUNT="1")  # the same command line
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 120


@pytest.mark.slow
def test_slurm_does_not_start_again_what_would_not_find_its_run(tmp_path: Path) -> None:
    """Without --run_dir a new folder is made each time."""
    settings = (*CIFAR, "--limit_train_batches", "40", "--save_every_n_steps", "2")
    process = start(tmp_path, *settings, SLURM_JOB_ID="4711", PATH="/nowhere")  # scontrol would not be found
    while not list(tmp_path.glob("runs/cifar/*/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 128 + signal.SIGUSR1


# The run directory


def test_a_run_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    process = start(tmp_path, *ENDLESS, "--run_dir", "run")
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    assert_mistake(run(tmp_path, *ENDLESS, "--run_dir", "run", "--ckpt_path", "last"), "in use", "run")
    assert process.poll() is None and (tmp_path / "run" / "config.yaml").read_bytes() == config
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143


def test_a_finished_run_is_not_overwritten(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert_mistake(run(finished, *CIFAR, "--run_dir", "run"), "holds a run already")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_run_killed_before_its_first_checkpoint_goes_on_at_its_beginning(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes((finished / "run" / "config.yaml").read_bytes())
    assert_mistake(run(tmp_path, *CIFAR, "--run_dir", "run"), "holds a run already")
    succeed(tmp_path, *CIFAR, "--run_dir", "run", "--ckpt_path", "last")
    assert_same(tmp_path / "run", finished / "run")


def test_resuming_with_other_settings_is_said(finished: Path, tmp_path: Path) -> None:
    copy(finished / "run", tmp_path / "run")
    again = (*CIFAR, "--run_dir", "run", "--ckpt_path", "last", "--max_epochs", "4")
    assert "other settings" not in succeed(tmp_path, *again)[1]
    other = succeed(tmp_path, *again, "--max_epochs", "5", "--seed", "1")[1]
    assert "Resumed with other settings: seed 0 -> 1" in other


@pytest.mark.parametrize("script", [CIFAR, FIT])
def test_a_run_directory_that_cannot_be_made(script: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert_mistake(run(tmp_path, *script, "--run_dir", "file/run"), "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("script", [CIFAR, FIT])
def test_a_full_disk(script: tuple[str, ...], tmp_path: Path) -> None:
    """No file may grow beyond 100 kB: config.yaml can be written, and pictures and checkpoints cannot."""
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "script = sys.argv.pop(1); sys.argv[0] = script; runpy.run_path(script, run_name='__main__')"
    )
    path, *flags = script
    flags += ["--hidden", "300", "300"] if script is FIT else []  # a checkpoint above the limit
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / path), *flags, "--run_dir", "run"],
        cwd=tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert_mistake((done.returncode, done.stdout, done.stderr), "space on the disk")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".tmp", ".ckpt") or p.name == "summary.json"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_the_letters(encoding: str, tmp_path: Path) -> None:
    """The files are in UTF-8; a usage error shows the letters by their numbers."""
    name = "試 \N{GRINNING FACE}"
    out, _ = succeed(tmp_path, *FIT, "--run_dir", name, PYTHONIOENCODING=encoding)
    assert "\\u8a66 \\U0001f600" in out and (tmp_path / name / "summary.json").exists()
    assert_mistake(run(tmp_path, *FIT, "--run_dir", name, PYTHONIOENCODING=encoding), "\\u8a66", "holds a run already")


@pytest.mark.parametrize("script", [CIFAR, FIT])
def test_a_name_that_is_no_utf8(script: tuple[str, ...], tmp_path: Path) -> None:
    assert_mistake(run(tmp_path, *script, "--run_dir", "run-\udcff"), "UTF-8", "rename")
    assert not list(tmp_path.iterdir())


def test_a_run_directory_that_is_deleted_during_the_run(tmp_path: Path) -> None:
    (tmp_path / "deleting.py").write_text("""
import shutil
from pytorch_lightning import Callback

class Delete(Callback):
    def on_validation_end(self, *args):
        shutil.rmtree("run")
""")
    outcome = run(tmp_path, *CIFAR, "--callbacks+=deleting.Delete", "--run_dir", "run", PYTHONPATH=str(tmp_path))
    assert_mistake(outcome, "No such file", "run", "--run_dir")
    assert not (tmp_path / "run").exists()


def test_an_archive_that_is_there_is_looked_at_without_a_download(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    flags = ("--data", "cifar10", "--data_root", ".", "--download", "false", "--run_dir", "run")
    assert_mistake(run(tmp_path, *CIFAR, *flags), "cifar-10-python.tar.gz is not the CIFAR-10 archive", "delete it")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-X", "utf8=0")])
def test_a_locale_without_utf8_and_a_path_with_spaces(flags: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "mit Ä, spaces 試"
    folder.mkdir()
    latin = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, *flags, str(ROOT / FIT[0]), *FIT[1:], "--run_dir", "läuft 1"]
    subprocess.run(command, cwd=folder, env=os.environ | latin, check=True, timeout=300)
    assert json.loads((folder / "läuft 1" / "summary.json").read_text())["results"]
    assert_mistake(run(folder, *FIT, "--function", "sin(ä試)", "--run_dir", "b", **latin), "error:")


# Checkpoints


def test_a_broken_checkpoint_is_skipped(finished: Path, tmp_path: Path) -> None:
    run_dir = copy(finished / "run", tmp_path / "run")
    last = run_dir / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # a bit somewhere in the weights
    last.write_bytes(content)
    again = (*CIFAR, "--run_dir", "run", "--ckpt_path")
    assert_mistake(run(tmp_path, *again, str(last)), "not a valid checkpoint")
    err = succeed(tmp_path, *again, "last")[1]
    assert "Skipped" in err and "end_of_epoch1.ckpt" in err
    assert_same(run_dir, finished / "run")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("script", [CIFAR, FIT])
def test_a_checkpoint_runs_no_code(script: tuple[str, ...], finished: Path, tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    bombs = {"zip.ckpt": tmp_path / "zip.ckpt", "plain.ckpt": tmp_path / "plain.ckpt"}
    torch.save({**load(finished / "run" / "checkpoints" / "last.ckpt"), "x": Bomb(crater)}, bombs["zip.ckpt"])
    bombs["plain.ckpt"].write_bytes(pickle.dumps(Bomb(crater)))
    for path in bombs.values():
        assert_mistake(run(tmp_path, *script, "--ckpt_path", str(path), "--run_dir", "new"), "not a valid checkpoint")
    assert not crater.exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize("script", [CIFAR, FIT])
def test_a_config_runs_no_code(script: tuple[str, ...], tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    (tmp_path / "bomb.yaml").write_text(f"seed: !!python/object/apply:pathlib.Path.touch [!!python/name:x '{crater}']")
    assert_mistake(run(tmp_path, *script, "--config", "bomb.yaml", "--run_dir", "new"), "config")
    assert not crater.exists() and not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", [CIFAR, FIT])
def test_a_config_imports_no_module_that_the_command_line_does_not_name(
    script: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "foreign.py").write_text("""
import pathlib
from pytorch_lightning import Callback

pathlib.Path("crater").touch()

class Foreign(Callback):
    pass
""")
    flags, env = ("--config", "config.yaml", "--run_dir", "new"), {"PYTHONPATH": str(tmp_path)}
    for content in (
        "callbacks: [{class_path: foreign.Foreign}]",
        "logger: [{class_path: foreign.Foreign}]",
        "callbacks: [{class_path: LambdaCallback, init_args: {on_train_start: foreign.pathlib}}]",
        "callbacks: [{class_path: LambdaCallback, init_args: {on_train_start: os.system}}]",
    ):
        (tmp_path / "config.yaml").write_text(content)
        assert_mistake(run(tmp_path, *script, *flags, **env), "command line")
        assert not (tmp_path / "crater").exists() and not (tmp_path / "new").exists()
    (tmp_path / "config.yaml").write_text("callbacks: [{class_path: foreign.Foreign}]")
    succeed(tmp_path, *script, *flags, "--callbacks", "foreign.Foreign", **env)
    assert (tmp_path / "crater").exists()


# The loss


def test_a_loss_of_nan_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    mad = (*CIFAR, "--milestones", "{1: 1e30}", "--save_every_n_steps", "1", "--run_dir", "run")
    outcome = run(tmp_path, *mad)
    assert_mistake(outcome, "non-finite loss at step 9", "epoch 1", code=1)  # 8 steps, then the first with the rate
    two_batches_a_step = (*mad[:-2], "--accumulate_grad_batches", "2", "--run_dir", "slower")
    assert_mistake(run(tmp_path, *two_batches_a_step), "non-finite loss at step 5", "epoch 1", code=1)  # 4 steps
    assert not (tmp_path / "run" / "summary.json").exists()
    saved = load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert saved["global_step"] in (8, 9)
    good = load(tmp_path / "run" / "checkpoints" / "end_of_epoch0.ckpt")
    assert all(value.isfinite().all() for value in good["state_dict"].values())
    succeed(tmp_path, *CIFAR, "--ckpt_path", "run/checkpoints/end_of_epoch0.ckpt", "--run_dir", "calm")
