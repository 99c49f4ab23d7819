"""The command lines. Importing this package first starts the clock of a run's total time."""

import time

START = time.perf_counter()
