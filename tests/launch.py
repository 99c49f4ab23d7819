"""Runs command lines for the tests, without the seconds that each would spend on the same imports.

On Linux a server that has imported torch, Lightning and the like, and drawn the synthetic images, forks for each
command. What it forks is as good as a new process, with its own arguments, folder, environment, output, exit code and
exit, but for the hash seed, and for what Python and OpenMP read as they start: a test of that, or one that compares bit
for bit, uses ``run_anew``, which starts Python as users do.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTED = "torch torch._dynamo torch.utils.tensorboard torchvision.datasets torchmetrics.classification".split()
IMPORTED += "pytorch_lightning jsonargparse matplotlib.figure matplotlib.backends.backend_agg jinja2 PIL.Image".split()
ROOT = Path(__file__).parents[1]
Done = subprocess.CompletedProcess[str]


def run_anew(args: Sequence[str], cwd: Path, env: Mapping[str, str] = os.environ, timeout: int = 300) -> Done:
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def run(args: Sequence[str], cwd: Path, env: Mapping[str, str] = os.environ, timeout: int = 300) -> Done:
    """``python`` with these arguments, of which the first is a script."""
    if sys.platform != "linux":
        return run_anew(args, cwd, env, timeout)
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        print(json.dumps([args, str(cwd), dict(env), timeout, out.name, err.name]), file=server().stdin, flush=True)
        code = int(server().stdout.readline())
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(args, timeout, out.read(), err.read())
        return subprocess.CompletedProcess(args, code, out.read(), err.read())


def command(folder: Path, script: str, *flags: str, run: Callable[..., Done] = run, **env: str) -> Done:
    """A command of ``scripts/``, or a script by its whole path, in ``folder``, whose modules it can import.

    Without a GPU, and without CIFAR-10.
    """
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
def server() -> subprocess.Popen[str]:
    """It ends when this process does, whose end of the pipe is closed then."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> str:
    """Returns in the process of a command only: its script."""
    while request := sys.stdin.readline():
        if (pid := os.fork()) == 0:
            break
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    else:
        sys.exit()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    sys.argv, folder, env, timeout, *outputs = json.loads(request)
    for stream, path in enumerate((os.devnull, *outputs)):
        os.dup2(os.open(path, os.O_RDWR), stream)
    signal.alarm(timeout)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:1] = [os.path.dirname(sys.argv[0]), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    return sys.argv[0]


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    torch = sys.modules["torch"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # other threads would be lost, and waited for, in what is forked
    sys.path.insert(1, str(ROOT))
    read_images = importlib.import_module("datamodules.cifar10").read_images
    for train in (True, False):  # they stay in its cache, for what is forked with the default --data_root
        read_images("synthetic", Path("data"), train, torch.device("cpu"))
    gc.freeze()  # shared with all that it forks, which need not look through it when they end
    script = serve()
    torch.set_num_threads(threads)  # now, since the first call after a fork, which renews a pool, is not thread-safe
    code: Any = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # Python's own end, but for taking apart what the server has imported, which takes longer than many a command
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
