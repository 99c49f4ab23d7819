"""How a command runs, ends (in one line for a user's mistake, a traceback for a bug), and is typed again."""

import ctypes
import errno
import gc
import io
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import matplotlib
import torch
import yaml
from lightning_fabric.utilities.warnings import PossibleUserWarning
from matplotlib.font_manager import get_font_names
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from callbacks.finite_loss import NonFiniteLoss

gc.enable()  # the imports are done
print_once = rank_zero_only(print)
# On Linux, Windows or macOS. Matplotlib's own font lacks the letters of a Chinese class name.
CHINESE_FONTS = {"Noto Sans CJK SC", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC"}
LIBRARIES = ("pytorch_lightning", "lightning_fabric", "jsonargparse", "torch._inductor", "torch._dynamo")


class UsageError(Exception):
    """What the user asked for cannot be done; the message says why and, where known, what to do."""


USERS: tuple[type[Exception], ...] = (UsageError, MisconfigurationException, NonFiniteLoss, torch.OutOfMemoryError)
# A port that is taken; scontrol; a config.yaml that was damaged.
USERS += (torch.distributed.DistError, subprocess.CalledProcessError, yaml.YAMLError)


def main(run: Callable[[], None]) -> NoReturn:
    """Runs a command; a user's mistake becomes one line on stderr and exit code 2, a bug keeps its traceback.

    A signal ends it with 128 + its number, Ctrl-C with 130, wherever SaveLast does not listen.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # lines are live in a pipe or a file too, and a letter that the terminal lacks ends no run
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    for signum in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
            signal.signal(signum, lambda received, _: sys.exit(128 + received))
    threading.excepthook = excepthook
    gc.freeze()  # what is imported stays; looking through it when Python ends would take another second
    quiet()
    matplotlib.rcdefaults()  # the user's style may need LaTeX
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", *sorted(CHINESE_FONTS.intersection(get_font_names()))]
    keep_freed_memory()
    limit_threads()
    try:
        run()
    except BrokenPipeError:  # whoever read the output has gone, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would fail to flush
        sys.exit(1)
    except Exception as error:
        if not is_users(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1 if isinstance(error, NonFiniteLoss) else 2)
    sys.exit(0)


def excepthook(args: threading.ExceptHookArgs) -> None:
    """Silences TensorBoard's thread: what it reports, such as a full disk, the main thread reports too, in one line."""
    if not type(args.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(args)


def is_users(error: Exception) -> bool:
    """Whether the error is about what the user asked for: flags, files, memory. All others are bugs.

    What one of LIBRARIES raises, or a callback of Lightning's meets, is about the flags.
    """
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    by_callback = any(name.startswith("pytorch_lightning.callbacks.") for name in modules)
    by_library = modules[-1].startswith(LIBRARIES) or "can't allocate memory" in str(error)
    return isinstance(error, USERS) or by_callback or by_library


def is_rank_zero() -> bool:
    """Whether this is the process that prints and writes; the others of a run are silent."""
    return getattr(rank_zero_only, "rank", 0) == 0


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next step, which becomes up to 15 % shorter; the peak is no larger."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # other libcs lack it
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(option, 1 << 30)


def limit_threads() -> None:
    """Lowers PyTorch's number of threads to that of the processors, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ and (quota := cpu_quota()) <= torch.get_num_threads() - 1:
        threads = math.ceil(quota)
        print(f"Threads: {threads}, for this process may use {quota:g} processors", file=sys.stderr)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that Lightning starts


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), tree: Path = Path("/sys/fs/cgroup")) -> float:
    """The processors that a control group, such as a container's, leaves to this process; infinity without a limit."""
    quotas = [math.inf]
    with suppress(OSError):  # no Linux
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            root = tree / controllers  # in version 2 without a name
            for folder in (root / group[1:], root):  # a container's own is its root
                limits = [folder / name for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
                with suppress(ValueError):  # no limit is "max", or -1
                    quota, period = " ".join(file.read_text() for file in limits if file.is_file()).split()
                    quotas += [float(quota) / float(period)] if float(quota) > 0 else []
    return min(quotas)


def command_line(resumes: Path | None = None) -> str:
    """The command of this process, to be typed again; ``resumes`` makes it one that resumes the run in that folder."""
    script, here = Path(sys.argv[0]), Path.cwd()
    name = script.relative_to(here) if script.is_relative_to(here) else script
    if resumes is None:
        return quoted("python", name, *sys.argv[1:])
    own = {"--run_dir", "--ckpt_path"}
    others = [arg for before, arg in pairwise(sys.argv) if before not in own and arg.partition("=")[0] not in own]
    return quoted("python", name, *others, "--run_dir", resumes, "--ckpt_path", "last")


def quoted(*words: object) -> str:
    """Words as they are typed into a terminal."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def quiet() -> None:
    """Silences advice that a user of these commands cannot follow."""
    for kind in (PossibleUserWarning, FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", kind)
    others = "Total length of `list` across ranks is zero", "Glyph .* missing from font"  # such as a Chinese name's
    for message in ("overridden `transfer_batch_to_device`", *others):
        warnings.filterwarnings("ignore", f".*{message}")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
