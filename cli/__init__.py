"""What the commands share. To import it first of all starts the clock, and clears the environment."""

import ctypes
import gc
import os
import signal
import sys
import time

START = time.perf_counter()  # of this process
gc.disable()  # until cli.command is imported: through imports it would only look, for almost a second

# Without a stream the next file that is opened would take its place.
for _fd, _name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, _name) is None:
        os.dup2(os.open(os.devnull, os.O_RDWR), _fd)
        setattr(sys, _name, open(_fd, "w" if _fd else "r"))
os.environ["MPLBACKEND"] = "agg"  # figures go into files; a notebook exports a backend that is not installed here
# A rank without a world of several processes is no rank.
for _rank, _size in {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}.items():
    if os.environ.get(_rank, "0") != "0" and os.environ.get(_size, "1") == "1":
        del os.environ[_rank]
if "LOCAL_RANK" in os.environ and sys.platform == "linux":  # one of several processes ends with what has started it
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
