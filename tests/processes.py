"""Starts programs that join each other, as hosts do."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def free_port() -> int:
  """Returns a port that nobody listens at."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def start(
    count: int, *command: str, devices: int = 1, cache: str | None = None
) -> list[subprocess.Popen]:
  """Starts `python -m <command>` in as many processes.

  Args:
    count: Of the processes.
    *command: A module and its arguments.
    devices: Of each process.
    cache: Folder of compiled programs.
  """
  variables = {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(devices),
      'TF_CPP_MIN_LOG_LEVEL': '3',
      'PALIGN_COORDINATOR': f'localhost:{free_port()}',
      'PALIGN_NUM_HOSTS': str(count),
  }
  if cache:
    variables |= {
        'JAX_COMPILATION_CACHE_DIR': cache,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    }
  return [
      subprocess.Popen(
          [sys.executable, '-m', *command],
          cwd=ROOT,
          env={**os.environ, **variables, 'PALIGN_HOST': str(index)},
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
      )
      for index in range(count)
  ]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
  """Waits for all; returns the exit status and output of each."""
  try:
    outputs = [process.communicate(timeout=300)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  codes = [process.returncode for process in processes]
  return list(zip(codes, outputs, strict=True))
