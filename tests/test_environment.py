"""What the caller of a command leaves in its environment: styles, ranks, clusters."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from launch import assert_refused, command, run_anew, succeed
from short_runs import CIFAR

FIT = ("fit.py", "--epochs", "5", "--run_dir", "run")
NOT_ON_WINDOWS = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SLURM nor /proc")
JOB = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "job", "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SLURM_PROCID": "0"}
JOB |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}


@pytest.mark.slow
def test_a_style_of_the_caller_draws_no_figure(tmp_path: Path) -> None:
    """A notebook exports its backend; LaTeX is not installed here."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: absent\nfigure.figsize: 1, 1\n")
    style = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    for run_dir, env in (("plain", {}), ("inline", style | inline), ("tk", style | {"MPLBACKEND": "TkAgg"})):
        succeed(tmp_path, *FIT[:-1], run_dir, run=run_anew, **env)
        for name in ("curves.png", "errors.png"):
            assert (tmp_path / run_dir / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.slow
def test_ranks_without_a_world_and_packages_of_the_same_names_are_ignored(tmp_path: Path) -> None:
    for name in ("scripts", "analysis", "callbacks", "cli", "datamodules", "lit_models"):
        (tmp_path / name).mkdir()  # in the folder that comes first on PYTHONPATH
        (tmp_path / name / "__init__.py").write_text("raise ImportError('another package')\n")
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"), "1")
    done = succeed(tmp_path, *FIT, run=run_anew, **ranks)
    assert "Networks: 1" in done.stdout and (tmp_path / "run" / "summary.json").exists()
    assert_refused(command(tmp_path, *FIT, run=run_anew, **ranks), "run holds a run")


@pytest.mark.slow
@NOT_ON_WINDOWS
def test_a_port_that_is_taken_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        two = ("--devices", "2", "--strategy", "ddp", "--run_dir", str(tmp_path / "run"))
        done = command(tmp_path, *CIFAR, *two, run=run_anew, **port)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()
    time.sleep(1)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            assert str(tmp_path).encode() not in process.read_bytes()


@pytest.mark.slow
@NOT_ON_WINDOWS
def test_fewer_processes_than_asked_for_are_refused(tmp_path: Path) -> None:
    """In a job of one task, and in one of two tasks without srun."""
    two = ("--devices", "2", "--strategy", "ddp")
    alone = {name: value for name, value in JOB.items() if "NTASKS" not in name and "PROCID" not in name}
    for flags, job in ((two, JOB), ((), alone | {"SLURM_NTASKS": "2"})):
        assert_refused(command(tmp_path, *CIFAR, *flags, "--run_dir", "run", run=run_anew, **job), "error: ")
        assert not (tmp_path / "run").exists()
