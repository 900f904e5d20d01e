"""A trace of some training steps, for XProf or TensorBoard.

JAX's profiler writes what devices and host did to
<folder>/plugins/profile/<time>/<host>.xplane.pb, a file for every process.
Without TensorFlow it writes to disks only: to a temporary folder, whose files
are then put where they belong, on disk or on gs://.
"""

import pathlib
import re
import tempfile
from typing import Any

from absl import logging
from etils import epath
import jax

from palign_jax.core import errors


def parse(text: str) -> tuple[int, int] | None:
  """Returns the first and the last step of '10:12'; None if it is empty.

  Raises:
    ConfigError: If it is neither.
  """
  if not text:
    return None
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise errors.ConfigError(
        f'config.compute.profile_steps is {text!r}; give the first and the'
        " last step, counted from 1, as in '10:12', or '' for none."
    )
  return int(match[1]), int(match[2])


class Profiler:
  """Traces the steps that are asked for; a context that the loop is in."""

  def __init__(self, folder: epath.PathLike, steps: tuple[int, int] | None):
    """Args are where the trace goes, and its first and last step."""
    self._folder = epath.Path(folder)
    self._first, self._last = steps or (0, 0)
    self._began = self._ended = 0
    self._local: tempfile.TemporaryDirectory | None = None

  def begin(self, done: int, num_steps: int) -> None:
    """Warns if none of the steps from `done` to `num_steps` is to be traced."""
    if self._last and (done >= self._last or self._first > num_steps):
      logging.warning(
          'config.compute.profile_steps is %d:%d and the steps to come are %d'
          ' to %d: nothing is traced.',
          *(self._first, self._last, done + 1, num_steps),
      )

  def before(self, step: int, state: Any) -> None:
    """Starts the trace if it is due; `state` is what the step gets."""
    if self._began or not self._first <= step <= self._last:
      return
    jax.block_until_ready(state)  # Nothing of the steps before it.
    local = tempfile.TemporaryDirectory(prefix='palign_profile_')
    jax.profiler.start_trace(local.name)
    self._local, self._began = local, step

  def after(self, step: int, state: Any) -> None:
    """Ends the trace after its last step; `state` is what came out."""
    if self._local:
      self._ended = step
      if step == self._last:
        jax.block_until_ready(state)
        self._stop()

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *_) -> None:
    if self._local:  # The run ends before the trace's last step.
      self._stop()

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    local, self._local = self._local, None
    with local:
      for file in sorted(pathlib.Path(local.name).rglob('*')):
        if file.is_file():
          target = self._folder / file.relative_to(local.name).as_posix()
          target.parent.mkdir(parents=True, exist_ok=True)
          target.write_bytes(file.read_bytes())
    logging.info(
        'Steps %d to %d are traced in %s; to look at them: xprof --port 8791'
        ' %s, or tensorboard --logdir=%s (of gs:// make a copy on a disk).',
        *(self._began, self._ended, *[self._folder] * 3),
    )
