"""The command lines. Importing this package first starts the clock that a run's total time is told by."""

import time

START = time.perf_counter()
