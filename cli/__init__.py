"""What the commands share. Importing this package first of all starts the clock of a run's total time."""

import gc
import time

START = time.perf_counter()  # of this process
gc.disable()  # until cli.command is imported: through imports it would only look, for almost a second
