"""profiling_alone.py in a process of its own.

The profiler ends a process that has compiled for TPUs with a segmentation
fault (jax 0.10.2, libtpu 0.0.51), which tests/planning does.
"""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_traces_of_training_steps():
  file = 'tests/training/profiling_alone.py'
  command = [sys.executable, '-m', 'pytest', '-p', 'no:xdist', '-x', file]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
