"""What the commands share. To import it first of all starts the clock, and clears the environment."""

import gc
import os
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
_WORLDS = {"WORLD_SIZE": ("RANK", "LOCAL_RANK"), "SLURM_NTASKS": ("SLURM_PROCID",)}
for _size, _ranks in (_WORLDS | {"JSM_NAMESPACE_SIZE": ("JSM_NAMESPACE_RANK",)}).items():
    if os.environ.get(_size, "1") == "1":
        for _name in _ranks:
            os.environ.pop(_name, None)
