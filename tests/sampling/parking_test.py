"""Batches are filled from rows at the same slot, and few wait at a time."""

import jax.numpy as jnp
import numpy as np

from palign_jax.sampling import parking, rows as rows_lib


def row(name, done):
  request = rows_lib.Request(name, (1,), np.zeros(2, np.uint32), 1)
  row = rows_lib.Row(request, frozenset(), None)
  if done:
    row.take(np.array([5], np.int32))
  return row


def batch(names, done=''):
  """A batch of 4 rows whose memory holds the names in place of numbers."""
  codes = jnp.array([ord(n) for n in names.ljust(4, '-')], jnp.float32)
  cache = codes[:, None, None, None]
  rows = [row(name, name in done) for name in names]
  return parking.Batch(rows, (((cache, cache),), None))


def names(batch):
  """Returns the rows' names, and whether the memory followed them."""
  keys, values = batch.memory[0][0]
  told = ''.join(row.request.id for row in batch.rows)
  for x in (np.asarray(keys)[:, 0, 0, 0], np.asarray(values)[:, 0, 0, 0]):
    assert ''.join(chr(int(c)) for c in x[: len(told)]) == told
  return told


def make(longest=1024):
  return parking.Parking(num_rows=4, longest=longest, shardings=None)


def test_rows_that_are_left_are_put_together():
  parked = make()
  parked.put(64, batch('abcd', done='bd'))
  assert parked.slots() == [64] and parked.urgent() is None
  parked.put(64, batch('efgh', done='f'))
  assert parked.urgent() == 64
  assert names(parked.take(64)) == 'aceg'
  assert parked.urgent() is None
  assert names(parked.take(64)) == 'h'
  assert not parked


def test_memory_has_room_up_to_the_next_length():
  parked = make()
  parked.put(96, batch('ab'))
  keys, values = parked.take(96).memory[0][0]
  assert keys.shape == (4, 1, 1, 128) and values.shape == (4, 1, 128, 1)


def test_nothing_left_is_nothing_parked():
  parked = make()
  parked.put(64, batch('ab', done='ab'))
  assert not parked and parked.urgent() is None


def test_the_furthest_full_batch_goes_first():
  parked = make()
  parked.put(64, batch('abcd'))
  parked.put(96, batch('efgh'))
  parked.put(128, batch('ij'))
  assert parked.urgent() == 96


def test_without_room_the_furthest_goes_on():
  parked = make(longest=128)  # Room for 4 caches of 128 slots.
  for slot in (96, 128, 160):  # 128 + 192 + 192 slots.
    parked.put(slot, batch('ab'))
    assert parked.urgent() is None
  parked.put(64, batch('ab'))  # And 96.
  assert parked.urgent() == 160
