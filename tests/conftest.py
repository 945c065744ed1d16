"""One thread for torch: a process that is forked beside another's OpenMP threads waits for them for ever."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch
