"""What the commands share. To import it first of all starts the clock, and clears the environment."""

import ctypes
import gc
import os
import signal
import sys
import time

START = time.perf_counter()  # of this process
gc.disable()  # until cli.command is imported: through imports it would only look, for almost a second

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while packages are imported is no traceback of theirs
os.environ["MPLBACKEND"] = "agg"  # figures go into files; a notebook exports a backend that is not installed here
# A rank without a world of several processes is no rank.
if os.environ.get("WORLD_SIZE", "1") == "1":
    for _name in ("RANK", "LOCAL_RANK"):
        os.environ.pop(_name, None)
for _name, _size in (("SLURM_PROCID", "SLURM_NTASKS"), ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE")):
    if os.environ.get(_size, "1") == "1" and _name in os.environ:
        os.environ[_name] = "0"
if "LOCAL_RANK" in os.environ and sys.platform == "linux":  # one of several processes ends with what has started it
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
