"""The command lines. Importing this package first starts the clock of a run's total time."""

import gc
import sys
import time
from pathlib import Path

START = time.perf_counter()
if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:  # a command, not a program that imports one
    gc.disable()  # until scripts.commandline is imported: through imports it would only look, for almost a second
    # Ctrl-C while they last, some seconds, has no traceback.
    sys.excepthook = lambda kind, *error: None if kind is KeyboardInterrupt else sys.__excepthook__(kind, *error)
