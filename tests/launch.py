"""Runs command lines for the tests, without the seconds that each would spend on the same imports.

On Linux a server that has imported torch, Lightning and the like, and drawn the synthetic images, forks for each
command. What it forks is as good as a new process, with its own arguments, folder, environment, output, exit code and
exit, but for the hash seed: what is compared bit for bit is compared with a run of ``run_anew``, which starts Python as
users do.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTED = "torch torch._dynamo torch.utils.tensorboard torchvision.datasets torchmetrics.classification".split()
IMPORTED += "pytorch_lightning jsonargparse matplotlib.figure matplotlib.backends.backend_agg jinja2 PIL.Image".split()
ROOT = Path(__file__).parents[1]
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "MKL_")  # with others of these a command is run anew
ONE_AT_A_TIME = threading.Lock()
Done = subprocess.CompletedProcess[str]


def run_anew(args: Sequence[str], cwd: Path, env: Mapping[str, str] = os.environ, timeout: int = 300) -> Done:
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def run(args: Sequence[str], cwd: Path, env: Mapping[str, str] = os.environ, timeout: int = 300) -> Done:
    """``python`` with these arguments, of which the first is a script."""
    if sys.platform != "linux":
        return run_anew(args, cwd, env, timeout)
    with ONE_AT_A_TIME, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        channel, its_env, _ = server()
        others = {name for name, _ in env.items() ^ its_env.items()} - {"PYTHONPATH"}
        if any(name.startswith(READ_AT_START) for name in others):
            return run_anew(args, cwd, env, timeout)
        request = json.dumps([args, str(cwd), dict(env), timeout]).encode()
        socket.send_fds(channel, [request], [out.fileno(), err.fileno()])
        code = int(channel.recv(100))
        out.seek(0), err.seek(0)
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(args, timeout, out.read(), err.read())
        return subprocess.CompletedProcess(args, code, out.read(), err.read())


def command(folder: Path, script: str, *flags: str, run: Callable[..., Done] = run, **env: str) -> Done:
    """A command of ``scripts/`` in ``folder``, whose modules it can import; without a GPU, and without CIFAR-10."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    others = {name: value for name, value in os.environ.items() if name != "CIFAR10_ROOT"}
    env = {**others, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, **env}
    return run([str(ROOT / "scripts" / script), *flags], folder, env)


def succeed(folder: Path, *command_line: str, **options: Any) -> Done:
    done = command(folder, *command_line, **options)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


def assert_refused(done: Done, *words: str, code: int = 2) -> None:
    """One line on stderr that has these words."""
    assert done.returncode == code and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@functools.cache
def server() -> tuple[socket.socket, dict[str, str], subprocess.Popen]:
    """Where to ask it, and its environment. It ends when this process does, whose end of the socket is closed then."""
    mine, its = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, __file__, str(its.fileno())]
        return mine, dict(os.environ), subprocess.Popen(command, pass_fds=[its.fileno()], stdout=subprocess.DEVNULL)


def serve(channel: socket.socket) -> str:
    """Returns in the process of a command only: its script."""
    while True:
        request, files, *_ = socket.recv_fds(channel, 1 << 20, 2)
        if not request:
            sys.exit()
        if (pid := os.fork()) == 0:
            break
        for file in files:
            os.close(file)
        channel.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    channel.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    os.dup2(files[0], 1), os.dup2(files[1], 2)
    sys.argv, folder, env, timeout = json.loads(request)
    signal.alarm(timeout)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:1] = [os.path.dirname(sys.argv[0]), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    return sys.argv[0]


def draw_images() -> None:
    """They stay in the cache of ``read_images``, for what is forked with the default ``--data_root``."""
    import torch

    sys.path.insert(1, str(ROOT))
    from datamodules.cifar10 import read_images

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # other threads would be lost, and waited for, in what is forked
    for train in (True, False):
        read_images("synthetic", Path("data"), train, torch.device("cpu"))
    torch.set_num_threads(threads)


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    draw_images()
    gc.freeze()  # shared with all that it forks, which need not look through it when they end
    runpy.run_path(serve(socket.socket(fileno=int(sys.argv[1]))), run_name="__main__")
