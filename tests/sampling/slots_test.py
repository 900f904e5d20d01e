"""Rows take free slots; a prompt is read once per group of devices."""

import collections

import numpy as np
import pytest

from palign_jax.sampling import rows as rows_lib, slots as slots_lib


def rows(*groups):
  """Rows with prompts as (length, samples) say, each prompt another one."""
  return [
      rows_lib.Row(
          rows_lib.Request(
              f'{i}/{j}', (i,) * length, np.zeros(2, np.uint32), 9
          ),
          rows_lib.Ends(frozenset()),
      )
      for i, (length, num) in enumerate(groups)
      for j in range(num)
  ]


def settle(slots):
  """Admits and reads until nothing more fits; returns what was done."""
  done = []
  while True:
    placed = [slots.admit(shard) for shard in range(slots.num_shards)]
    done += [at for at in placed if at]
    for shard, reading in enumerate(slots.reading):
      if reading:
        done.append(('read', reading.row.request.id))
        slots.has_read(shard, reading.left)
    if not any(placed) and not any(slots.reading):
      full = all(r is not None for r in slots.rows)
      if full or not slots.queued:
        return done


def names(slots):
  return [row and row.request.id for row in slots.rows]


def test_samples_share_their_prompt():
  slots = slots_lib.Slots(rows((5, 3), (4, 2)), 4, 1, 8)
  done = settle(slots)
  assert done == [('read', '0/0'), (1, 0), (2, 0), ('read', '1/0')]
  assert names(slots) == ['0/0', '0/1', '0/2', '1/0'] and slots.queued
  slots.leave(3)  # Its prompt still lies there: the next sample goes on there.
  assert settle(slots) == [(3, None)]
  assert names(slots)[3] == '1/1' and not slots.queued


def test_a_prompt_of_one_token_is_not_read():
  slots = slots_lib.Slots(rows((1, 1), (1, 1)), 2, 1, 8)
  assert settle(slots) == [(0, None), (1, None)]


def test_long_prompts_take_several_chunks():
  slots = slots_lib.Slots(rows((101, 1)), 2, 1, 8)
  assert slots.admit(0) is None and slots.reading[0].left == 100
  assert slots.has_read(0, 64) is None and slots.num_live == 0
  assert slots.has_read(0, 64) == 0 and slots.num_live == 1


def test_every_shard_gets_work_and_keeps_it():
  slots = slots_lib.Slots(rows((3, 8)), 8, 4, 8)
  done = settle(slots)
  assert collections.Counter(d[0] == 'read' for d in done)[True] == 4
  for target, source in [d for d in done if d[0] != 'read']:
    assert target // 2 == source // 2
  assert slots.num_live == 8


@pytest.mark.parametrize('num_shards', [1, 2])
def test_fewer_slots_keep_all_rows(num_shards):
  slots = slots_lib.Slots(rows(*[(2, 1)] * 8), 8, num_shards, 8)
  settle(slots)
  before = names(slots)
  for i in (0, 2, 3, 5, 6):
    slots.leave(i)
  assert slots.most_live() == (3 if num_shards == 1 else 2)
  local = slots.shrink(4)
  each = 4 // num_shards
  for i, row in slots.live():
    assert before[local[i] + i // each * (8 // num_shards)] == row.request.id
  kept = [before[i] for i in (1, 4, 7)]
  assert sorted(filter(None, names(slots))) == sorted(kept)
