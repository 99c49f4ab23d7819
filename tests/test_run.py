"""The folder of a run, what is written there and when, and what a killed or extended run leaves."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import launch
import pytest
import torch
from filelock import FileLock
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from scripts.run_dir import _claims, claim, event_files_of_results, new_folder, run_directory, where_to_look
from scripts.trainer import MetricsRows, read_rows

from scripts.report import run_child

ROOT = Path(__file__).parents[1]
CIFAR = (
    *("scripts/cifar.py", "--data", "synthetic", "--accelerator", "cpu", "--batch_size", "16"),
    *("--limit_train_batches", "6", "--limit_val_batches", "2", "--limit_test_batches", "0", "--max_epochs"),
)
LOGGING = """
from pytorch_lightning import Callback

class Logging(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("mine/step", float(trainer.global_step))
        trainer.loggers[0].log_metrics({"mine/direct": float(batch_idx)}, trainer.global_step - 1)

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("mine/epoch", float(trainer.current_epoch))
"""


def run(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess:
    script, *flags = args
    return launch.run([str(ROOT / script), *flags], folder, os.environ | {"CUDA_VISIBLE_DEVICES": ""} | env)


def succeed(folder: Path, *args: str, **env: str) -> str:
    done = run(folder, *args, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


# Which folder


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "runs" / "now") for _ in range(4)]
    assert [path.name for path in folders] == ["now", "now_2", "now_3", "now_4"]
    assert all(path.is_dir() for path in folders)


def test_two_runs_in_one_process_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LITLAB_RUN_DIR", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with run_directory(None, str(tmp_path)) as first, run_directory(None, str(tmp_path)) as second:
        assert first != second
    monkeypatch.setenv("LOCAL_RANK", "1")  # a process that Lightning has started for another device
    with run_directory(None, str(tmp_path)) as shared:
        assert shared == second


def test_a_folder_that_an_error_left_empty_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), run_directory(None, str(tmp_path)):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_name_is_of_the_home_folder_where_it_says_so_and_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    with run_directory("~/mine", "runs") as run_dir:
        assert run_dir == Path("/home/me/mine")
    with pytest.raises(MisconfigurationException, match="--run_dir is empty"), run_directory("", "runs"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="quotes as a POSIX shell")
def test_where_to_look_can_be_typed() -> None:
    assert where_to_look(Path("runs/cifar/mine")).endswith("tensorboard --logdir runs")
    assert where_to_look(Path("my runs/a")).endswith("tensorboard --logdir 'my runs/a'")


def test_event_files_of_results_where_every_process_has_the_same_number(tmp_path: Path) -> None:
    training = ["1000.pod.local.1.0", "2000.pod.local.1.0", "3000.pod.local.1.0", "3000.pod.local.8.3"]
    results = ["1090.pod.local.1.1", "1095.pod.local.1.2", "3050.pod.local.1.1", "3060.pod.local.8.4"]
    for name in (*training, *results):
        (tmp_path / f"events.out.tfevents.{name}").touch()
    assert sorted(path.name.split("tfevents.")[1] for path in event_files_of_results(tmp_path)) == sorted(results)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_who_interrupts_the_report_lets_the_run_save(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text("""
import os, signal, sys, time
from pathlib import Path

os.chdir(sys.argv[1])

def save(*args):
    time.sleep(1)  # the step that is running
    Path("saved").touch()
    raise SystemExit(143)

signal.signal(signal.SIGTERM, save)
Path("started").touch()
time.sleep(60)
""")

    def stop(*args: object) -> None:
        raise SystemExit(143)

    def stop_once_started() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        threading.Thread(target=stop_once_started).start()
        with pytest.raises(SystemExit):
            run_child([sys.executable, str(tmp_path / "child.py"), str(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("env", [{"TORCHELASTIC_RUN_ID": "none"}, {"SLURM_NTASKS": "2"}])
def test_processes_started_one_by_one_need_a_name_for_their_folder(env: dict[str, str], tmp_path: Path) -> None:
    done = run(tmp_path, "scripts/fit.py", "--epochs", "5", **env)
    assert done.returncode == 2 and "--run_dir" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_disk_without_locks_is_used_without(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(getattr(errno, number), "no locks")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    before = len(_claims)
    claim(tmp_path / "run")
    assert (tmp_path / "run").is_dir() and len(_claims) == before
    assert "without file locks" in capsys.readouterr().err


HELD = """
import os, pathlib
from pytorch_lightning import Callback

replace, unlink = os.replace, pathlib.Path.unlink

def replace_but_those(source, target):
    if pathlib.Path(target).exists() and pathlib.Path(target).name in ("last.ckpt", "training.png", "metrics.csv"):
        raise PermissionError(13, "The process cannot access the file", str(target))
    return replace(source, target)

def unlink_but_those(path, **options):
    if "events" in path.name:
        raise PermissionError(13, "The process cannot access the file", str(path))
    return unlink(path, **options)

os.replace, pathlib.Path.unlink = replace_but_those, unlink_but_those

class Held(Callback):
    pass
"""


@pytest.mark.slow
def test_files_that_windows_keeps_for_a_viewer_cost_no_run(tmp_path: Path) -> None:
    """No run can replace or delete what another program has open there: it writes beside it, and resumes from there."""
    (tmp_path / "windows.py").write_text(HELD)
    args, env = ("--run_dir", "run", "--ckpt_path", "last"), {"PYTHONPATH": str(tmp_path)}
    succeed(tmp_path, *CIFAR, "3", "--run_dir", "whole")
    succeed(tmp_path, *CIFAR, "1", "--run_dir", "run")
    held = run(tmp_path, *CIFAR, "2", *args, "--callbacks+=windows.Held", **env)
    assert held.returncode == 0 and "Traceback" not in held.stderr, held.stderr
    for name in ("last_new.ckpt", "training_new.png", "metrics_new.csv", "remove it later"):
        assert name in held.stderr
    assert (tmp_path / "run" / "training_new.png").exists() and len(summary(tmp_path / "run")["epochs"]) == 2
    resumed = run(tmp_path, *CIFAR, "3", *args)
    assert resumed.returncode == 0 and "last_new.ckpt, the latest valid" in resumed.stderr, resumed.stderr
    mine, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("run", "whole")
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert (tmp_path / "run" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


# metrics.csv


def test_a_resumed_file_keeps_what_is_older_than_the_checkpoint_and_no_half_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = MetricsRows(path, [])
    for step in range(4):
        rows.log_metrics({"loss": torch.tensor(0.5 + step)}, step)
        rows.save()
    rows.log_metrics({"loss": 9.0, "acc": 0.25}, 4)  # a new column: the file as a whole
    rows.save()
    assert path.read_text().splitlines()[0] == "acc,loss,step"
    with open(path, "a", newline="") as file:
        file.write("0.5,7.")  # killed here
    assert read_rows(path, 3) == [{"loss": f"{0.5 + step}", "step": f"{step}"} for step in range(3)]
    assert read_rows(path, 5)[-1] == {"acc": "0.25", "loss": "9.0", "step": "4"}
    resumed = MetricsRows(path, read_rows(path, 3))
    resumed.log_metrics({"loss": 3.5}, 3)
    resumed.save()
    assert path.read_text().splitlines() == ["loss,step", "0.5,0", "1.5,1", "2.5,2", "3.5,3"]


@pytest.mark.slow
def test_a_resume_loses_no_row_that_anything_has_logged(tmp_path: Path) -> None:
    """Steps and epochs, by Lightning's log or straight to a logger; stopped inside an epoch and at its end."""
    (tmp_path / "logging_callback.py").write_text(LOGGING)
    flags = ("--callbacks+=logging_callback.Logging", "--log_every_n_steps", "1", "--save_every_n_steps", "1")
    env = {"PYTHONPATH": str(tmp_path)}
    succeed(tmp_path, *CIFAR, "3", *flags, "--run_dir", "whole", **env)
    succeed(tmp_path, *CIFAR, "1", *flags, "--run_dir", "parts", **env)
    resume = ("--run_dir", "parts", "--ckpt_path", "last")
    interrupted = (
        LOGGING
        + """
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        import os, signal
        if trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
"""
    )
    (tmp_path / "logging_callback.py").write_text(interrupted)
    assert run(tmp_path, *CIFAR, "3", *flags, *resume, **env).returncode == 143
    (tmp_path / "logging_callback.py").write_text(LOGGING)
    succeed(tmp_path, *CIFAR, "3", *flags, *resume, **env)
    assert (tmp_path / "parts" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    with open(tmp_path / "whole" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = {name: sum(bool(row[name]) for row in rows) for name in ("mine/step", "mine/direct", "mine/epoch")}
    assert counts == {"mine/step": 18, "mine/direct": 18, "mine/epoch": 3}
    assert sum(bool(row["train/loss_step"]) for row in rows) == sum(bool(row["lr_step"]) for row in rows) == 18


# What an extended or killed run leaves


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    succeed(folder, *CIFAR, "1", "--num_seeds", "2", "--milestones", "{1: 0.01}", "--run_dir", "seeds")
    return folder


def test_an_extended_run_has_no_results_until_it_ends_again(finished: Path, tmp_path: Path) -> None:
    """Two seeds; the first is killed in its second epoch, and then both are resumed: nothing of before is taken."""
    shutil.copytree(finished / "seeds", tmp_path / "seeds", ignore=shutil.ignore_patterns(".lock"))
    longer = (*CIFAR, "2", "--num_seeds", "2", "--milestones", "{1: 0.01}", "--run_dir", "seeds", "--ckpt_path", "last")
    (tmp_path / "kill.py").write_text(
        "import os, signal\nfrom pytorch_lightning import Callback\n\nclass Kill(Callback):\n"
        "    def on_train_batch_end(self, trainer, *args):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = run(tmp_path, *longer, "--callbacks+=kill.Kill", PYTHONPATH=str(tmp_path))
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "seeds" / "summary.json").exists()
    assert not (tmp_path / "seeds" / "seed0" / "summary.json").exists()
    assert summary(tmp_path / "seeds" / "seed1")["epochs"] == summary(finished / "seeds" / "seed1")["epochs"]
    succeed(tmp_path, *longer)
    top = summary(tmp_path / "seeds")
    assert [len(one["epochs"]) for one in top["runs"]] == [2, 2]
    for one in top["runs"]:
        assert one["epochs"] == summary(tmp_path / "seeds" / f"seed{one['seed']}")["epochs"]


def test_a_finished_run_takes_no_other_seeds_or_settings_and_no_less(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "seeds", tmp_path / "seeds", ignore=shutil.ignore_patterns(".lock"))
    shutil.copytree(finished / "seeds" / "seed0", tmp_path / "one", ignore=shutil.ignore_patterns(".lock"))
    shutil.copytree(finished / "seeds" / "seed0", tmp_path / "bare", ignore=shutil.ignore_patterns(".lock", "*.ckpt"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for args, words in (
        (("--num_seeds", "2", "--run_dir", "one"), "holds a single run"),
        (("--run_dir", "seeds"), "by the same --num_seeds"),
        (("--num_seeds", "2", "--lr", "0.2", "--run_dir", "seeds"), "with another lr"),
        (("--num_seeds", "2", "--max_steps", "3", "--run_dir", "seeds"), "with another max_steps"),
        (("--max_steps", "3", "--run_dir", "one"), "has 1 epochs and 6 steps behind it"),
        (("--run_dir", "bare"), "bare is finished and has no checkpoint"),
    ):
        done = run(tmp_path, *CIFAR, "1", "--milestones", "{1: 0.01}", *args, "--ckpt_path", "last")
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("flags", ["--recipe paper --max_steps 12", "--data cifar10 --download false"])
def test_a_run_resumes_by_its_own_recipe_and_data_only(flags: str, finished: Path, tmp_path: Path) -> None:
    run_dir = finished / "seeds" / "seed1"
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    args = (*CIFAR, "2", "--seed", "1", "--milestones", "{1: 0.01}", "--run_dir", str(run_dir), "--ckpt_path", "last")
    done = run(tmp_path, *args, *flags.split())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"was trained with {flags.split()[0]} " in done.stderr and "--run_dir" in done.stderr
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_summary_names_the_settings_the_seed_and_the_origin(finished: Path, tmp_path: Path) -> None:
    branch = finished / "seeds" / "seed1" / "checkpoints" / "end_of_epoch0.ckpt"
    args = (*CIFAR, "2", "--seed", "1", "--milestones", "{}", "--ckpt_path", str(branch), "--run_dir", "branch")
    succeed(tmp_path, *args)
    parent, child = summary(finished / "seeds" / "seed1"), summary(tmp_path / "branch")
    assert parent["origin"] is None and (parent["seed"], child["seed"]) == (1, 1)
    assert child["origin"] == {"settings": parent["settings"], "epochs": 1}
    assert (parent["settings"]["milestones"], child["settings"]["milestones"]) == ({"1": 0.01}, {})
    assert child["epochs"][0] == parent["epochs"][0] and len(child["epochs"]) == 2


def test_one_cycle_of_another_length_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    fast = (*CIFAR, "2", "--recipe", "fast", "--val_size", "100", "--run_dir", "fast")
    succeed(tmp_path, *fast)
    before = {path: path.read_bytes() for path in (tmp_path / "fast").rglob("*") if path.is_file()}
    done = run(tmp_path, *fast, "--max_epochs", "3", "--ckpt_path", "last")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "12 steps, not 18" in done.stderr and "--max_epochs" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "fast").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        # it trains an epoch more, of which only the checkpoint knows when the run is resumed
        ("--callbacks+=StochasticWeightAveraging --callbacks.swa_lrs 0.01", 3),
        # an epoch's last step is of fewer batches
        pytest.param("--limit_train_batches 10 --accumulate_grad_batches 3 --max_epochs 3", 3, id="accumulated"),
    ],
)
@pytest.mark.slow
def test_one_cycle_is_resumed_whatever_else_counts_its_steps(flags: str, epochs: int, tmp_path: Path) -> None:
    fast = (*CIFAR, "2", "--recipe", "fast", "--run_dir", "fast", *flags.split())
    (tmp_path / "stop.py").write_text(STOP)
    stopped = run(tmp_path, *fast, "--callbacks+=stop.Stop", PYTHONPATH=str(tmp_path))
    assert stopped.returncode == 143, stopped.stderr
    succeed(tmp_path, *fast, "--ckpt_path", "last")
    assert len(summary(tmp_path / "fast")["epochs"]) == epochs
    succeed(tmp_path, *fast, "--ckpt_path", "last")  # finished; with averaging after an epoch more than asked


# Resuming with other settings

STOP = """
import os, signal
from pytorch_lightning import Callback

class Stop(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``run`` was stopped inside its second epoch, after 10 steps of 12."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "stop.py").write_text(STOP)
    done = run(folder, *CIFAR, "2", "--callbacks+=stop.Stop", "--run_dir", "run", PYTHONPATH=str(folder))
    assert done.returncode == 143, done.stderr
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 32",
        "--seed 3 --overfit_batches 6 --alternate_flips true --limit_train_batches 8",
        "--callbacks+=LearningRateFinder",
        *(
            pytest.param(flags, marks=pytest.mark.slow)
            for flags in ("--val_size 1000", "--accumulate_grad_batches 2", "--callbacks+=BatchSizeFinder")
        ),
    ],
)
def test_inside_an_epoch_no_other_batches_are_resumed_with(flags: str, stopped: Path, tmp_path: Path) -> None:
    done = run(tmp_path, *CIFAR, "2", "--run_dir", str(stopped / "run"), "--ckpt_path", "last", *flags.split())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    words = ["finder"] if "Finder" in flags else ["inside epoch 1", flags, "an epoch's end"]
    assert all(part in done.stderr for word in words for part in word.split())
    assert not (stopped / "run" / "summary.json").exists() and not list(tmp_path.rglob("*.*"))


def test_inside_an_epoch_the_length_may_change_and_a_cut_epoch_is_said(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped / "run", tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    again = ("--run_dir", "run", "--ckpt_path", "last")
    succeed(tmp_path, *CIFAR, "-1", "--max_steps", "16", *again)
    done = run(tmp_path, *CIFAR, "4", *again)
    assert done.returncode == 0 and "ended inside an epoch" in done.stderr
    assert [row["epoch"] for row in summary(tmp_path / "run")["epochs"]] == [0, 1, 2, 3]


# Signals


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize(("handler", "code"), [(signal.SIG_DFL, 129), (signal.SIG_IGN, 0)])
def test_a_lost_terminal_ends_a_run_but_not_under_nohup(handler: signal.Handlers, code: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / CIFAR[0]), *CIFAR[1:], "3", "--save_every_n_steps", "1", "--run_dir", "run"],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
    )
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == code
    assert (tmp_path / "run" / "summary.json").exists() == (code == 0)
