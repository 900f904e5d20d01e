"""A resumed run's metrics hold every step once."""

from palign_jax.core import jsonl
from palign_jax.training import metrics


def read(path):
  return [(row['step'], row['loss']) for row in jsonl.read(path)]


def test_steps_after_the_checkpoint_are_dropped(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.start(0)
    for step in (1, 2, 3, 4):
      writer.write(step, {'loss': step / 2})
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.start(2)
    writer.write(3, {'loss': 9.0})
  assert read(tmp_path / 'metrics.jsonl') == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_nothing_is_written_before_the_flush(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.start(0)
    writer.write(1, {'loss': 1.0})
    assert not (tmp_path / 'metrics.jsonl').exists()
    writer.flush()
    assert read(tmp_path / 'metrics.jsonl') == [(1, 1.0)]


def test_tensorboard_files(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.start(0)
    writer.write(1, {'loss': 1.0})
  (file,) = (tmp_path / 'tensorboard').iterdir()
  assert b'loss' in file.read_bytes()


def test_seconds_are_of_all_sessions(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    assert writer.seconds == 0
    writer.start(0)
    writer.write(2, {'loss': 1.0, 'seconds_per_step': 3.0})
    writer.write(4, {'loss': 1.0, 'seconds_per_step': 50.0})  # Done again.
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.start(2)
    writer.write(5, {'loss': 1.0, 'seconds_per_step': 1.0})
    assert writer.seconds == 2 * 3 + 3 * 1
