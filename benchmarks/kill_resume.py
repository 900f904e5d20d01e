"""Kills a run again and again, and compares it with one that was left alone.

  python -m benchmarks.kill_resume --every=20 --workdir=/tmp/kills -- \
      --config=configs/quickstart.py:smoke

What follows `--` are flags of palign_jax.main.  The same command runs once
undisturbed into <workdir>/whole, then into <workdir>/killed, where it gets
SIGKILL at a random moment, is started again, and so on until it ends.  Prints
when it was killed in which stage, and every file that differs.
"""

import argparse
from collections.abc import Mapping
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time
from typing import Any

from palign_jax import main as palign_main

# What says how long something took, or when.
_TIMES = {
    *('seconds', 'rates', 'tokens', 'tokens_per_s', 'seconds_per_step'),
    *('prompt_tokens', 'trunk_tokens', 'seconds_per_trace'),
}
# Pages show times; checkpoints and TensorBoard's files hold them.
_LEFT_OUT = ('report/', 'sft/checkpoints/', 'sft/tensorboard/')
_LEFT_OUT_FILES = ('manifest.json', 'config.json')


def differences(one: pathlib.Path, two: pathlib.Path) -> list[str]:
  """Returns what differs between two finished runs, but for times.

  Rows of .jsonl files may come in another order.
  """
  files = [_files(one), _files(two)]
  found = [f'only in one: {name}' for name in sorted(files[0] ^ files[1])]
  for name in sorted(files[0] & files[1]):
    if _content(one / name) != _content(two / name):
      found.append(f'differs: {name}')
  return found


def _files(run: pathlib.Path) -> set[str]:
  names = {str(p.relative_to(run)) for p in run.rglob('*') if p.is_file()}
  return {
      name
      for name in names
      if not name.startswith(_LEFT_OUT) and name not in _LEFT_OUT_FILES
  }


def _content(path: pathlib.Path) -> Any:
  if path.suffix == '.jsonl':
    rows = [_timeless(json.loads(x)) for x in path.read_text().splitlines()]
    return sorted(json.dumps(row, sort_keys=True) for row in rows)
  if path.name == 'summary.json':
    return _timeless(json.loads(path.read_text()))
  return path.read_bytes()


def _timeless(row: Any) -> Any:
  if not isinstance(row, Mapping):
    return row
  return {k: _timeless(v) for k, v in row.items() if k not in _TIMES}


def stage_of(run: pathlib.Path) -> str:
  """Returns the first stage that is not finished."""
  for stage in palign_main.STAGES:
    if not (run / stage / 'summary.json').exists():
      return stage
  return 'end'


def run_whole(flags: list[str], workdir: pathlib.Path) -> float:
  """Runs undisturbed; returns the seconds it took."""
  start = time.monotonic()
  subprocess.run(_command(flags, workdir), check=True)
  return time.monotonic() - start


def run_killed(
    flags: list[str], workdir: pathlib.Path, every_s: float, seed: int
) -> list[tuple[float, str]]:
  """Runs with a kill after `every_s` seconds on average, until the end.

  Returns:
    For each kill, the seconds the process had lived, and the stage it was in.
  """
  rng, kills = random.Random(seed), []
  while True:
    # Starting takes most of a short life: patience grows, so that it ends.
    wait_s = rng.uniform(0, 2 * every_s) + 0.1 * every_s * len(kills)
    process = subprocess.Popen(_command(flags, workdir))
    try:
      status = process.wait(wait_s)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      kills.append((wait_s, stage_of(workdir)))
      continue
    if status:
      raise RuntimeError(f'the run ended with status {status}.')
    return kills


def _command(flags: list[str], workdir: pathlib.Path) -> list[str]:
  main = [sys.executable, '-m', 'palign_jax.main']
  return [*main, *flags, f'--workdir={workdir}']


def main():
  """Reads flags, runs both, prints what was seen."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--every', type=float, default=20, help='Seconds.')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('flags', nargs='+', help='Of palign_jax.main.')
  args = parser.parse_args()
  whole, killed = args.workdir / 'whole', args.workdir / 'killed'
  if stage_of(whole) != 'end':
    print(f'undisturbed: {run_whole(args.flags, whole):.0f} s')
  if killed.exists():
    shutil.rmtree(killed)
  kills = run_killed(args.flags, killed, args.every, args.seed)
  print(f'{"kill":>4} {"after s":>8}  stage')
  for number, (seconds, stage) in enumerate(kills, 1):
    print(f'{number:4} {seconds:8.1f}  {stage}')
  found = differences(whole, killed)
  print('\n'.join(found) or f'No difference after {len(kills)} kills.')
  sys.exit(bool(found))


if __name__ == '__main__':
  main()
