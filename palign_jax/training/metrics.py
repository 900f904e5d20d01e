"""Scalars of a training run: metrics.jsonl, and TensorBoard beside it.

The file is written whole every time (an object store cannot append), always
before the checkpoint of the same step.  A resumed run drops what was written
after its checkpoint, so no step stands there twice.
"""

from collections.abc import Mapping
import itertools

from absl import logging
from etils import epath
import jax
import tensorboardX

from palign_jax.core import jsonl


class MetricsWriter:
  """Writes <directory>/metrics.jsonl and <directory>/tensorboard/."""

  def __init__(self, directory: epath.PathLike):
    self._directory = epath.Path(directory)
    self._path = self._directory / 'metrics.jsonl'
    self._rows: list[jsonl.Row] = []
    self._board: tensorboardX.SummaryWriter | None = None

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *exc):
    self.flush()
    if self._board is not None:
      self._board.close()

  def start(self, step: int) -> None:
    """Keeps the rows up to `step` and goes on from there."""
    if self._path.exists():
      rows = jsonl.read(self._path)
      self._rows = [row for row in rows if row['step'] <= step]
    if jax.process_index():
      return
    if '://' in str(self._directory):
      logging.info('TensorBoard files are written to local disks only.')
      return
    self._board = tensorboardX.SummaryWriter(
        str(self._directory / 'tensorboard'), purge_step=step + 1
    )

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds a row; it is on disk after the next `flush`."""
    self._rows.append({'step': step, **scalars})
    if self._board is not None:
      for name, value in scalars.items():
        self._board.add_scalar(name, value, step)

  @property
  def seconds(self) -> float:
    """What the steps took, over all sessions but for those done again."""
    steps = [0, *(row['step'] for row in self._rows)]
    each = [row.get('seconds_per_step', 0) for row in self._rows]
    pairs = zip(itertools.pairwise(steps), each, strict=True)
    return float(sum((now - then) * s for (then, now), s in pairs))

  def flush(self) -> None:
    """Writes the rows so far, from process 0."""
    if self._rows and not jax.process_index():
      jsonl.write(self._path, self._rows)
    if self._board is not None:
      self._board.flush()
