"""As many threads as processors: PyTorch counts those of the machine, of which a container may have a share."""

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch


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
