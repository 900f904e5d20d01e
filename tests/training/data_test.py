"""Every example comes once an epoch, and a stream resumes where it stood."""

import itertools
import json

import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.training import data, examples

CONFIG = data.DataConfig(max_tokens=20, batch_size=2, max_waiting=3)


def example(number, size):
  """All its tokens are its number."""
  return examples.Example(
      str(number),
      np.full(size, number, np.int32),
      np.ones(size, np.float32),
  )


SIZES = np.random.default_rng(0).integers(2, 20, 25)
EXAMPLES = [example(i, int(n)) for i, n in enumerate(SIZES)]


class Endless:
  """Example i is a function of i."""

  def __len__(self):
    return 2**62

  def __getitem__(self, i):
    return example(i, 2 + i * 7 % 17)


def stream(num_epochs=2, seed=0):
  return data.PackedBatches(data.shuffled(EXAMPLES, num_epochs, seed), CONFIG)


def endless():
  return data.PackedBatches(Endless(), CONFIG)


def seen(batches):
  """Returns the number of each example in order of its batch."""
  found = []
  for batch in batches:
    starts = (batch['segments'] > 0) & (batch['positions'] == 0)
    found += batch['tokens'][starts].tolist()
  return found


def same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    for name in b:
      np.testing.assert_array_equal(a[name], b[name])


def test_each_example_comes_once_an_epoch():
  assert sorted(seen(stream(3))) == sorted(list(range(25)) * 3)


def test_epochs_and_seeds_differ_in_order():
  order = [int(e.id) for e in _items(data.shuffled(EXAMPLES, 2, 0))]
  assert sorted(order[:25]) == sorted(order[25:]) == list(range(25))
  assert order[:25] != order[25:]
  other = [int(e.id) for e in _items(data.shuffled(EXAMPLES, 2, 1))]
  assert other != order


def _items(source):
  return [source[i] for i in range(len(source))]


def test_same_seed_same_batches():
  same(list(stream()), list(stream()))


@pytest.mark.parametrize('make', [stream, endless])
@pytest.mark.parametrize('stop', [0, 1, 4])
def test_resumed_equals_uninterrupted(make, stop):
  whole = iter(make())
  want = [next(whole) for _ in range(7)]
  first = make()
  assert len(list(itertools.islice(first, stop))) == stop
  state = json.loads(json.dumps(first.state))
  second = make()
  second.seek(state)
  rest = iter(second)
  same([next(rest) for _ in range(7 - stop)], want[stop:])


def test_an_endless_source_loses_nothing():
  batches = endless()
  found = seen(itertools.islice(batches, 40))
  state = batches.state
  assert sorted(found + state['waiting']) == list(range(state['next']))


def test_all_batches_have_the_same_shape():
  shapes = {b['tokens'].shape for b in stream()}
  assert shapes == {(2, 20)}


def test_long_examples_are_left_out_and_counted():
  examples_ = [*EXAMPLES, example(25, 21), example(26, 20)]
  batches = data.PackedBatches(data.shuffled(examples_, 1, 0), CONFIG)
  assert sorted(seen(batches)) == [*range(25), 26]
  assert batches.num_long == 1


def test_count_leaves_the_stream_where_it_was():
  batches = stream()
  number = batches.count()
  assert batches.state == {'next': 0, 'waiting': [], 'num_long': 0}
  assert len(list(batches)) == number


def test_those_that_do_not_fit_are_told_of_once(monkeypatch):
  said = []
  monkeypatch.setattr(
      data.logging, 'warning', lambda text, *args: said.append(text % args)
  )
  found = [example(0, 20), example(1, 21), example(2, 3), example(3, 99)]
  assert data.fitting(found, 20) == [found[0], found[2]]
  assert said == [
      '2 of 4 examples have more than 20 tokens (config.sft.max_tokens) and are'
      ' left out.'
  ]
  assert data.fitting(found, 99) == found
  assert len(said) == 1


def test_nothing_to_train_on():
  message = 'No example to train on: 2 have more than 20 tokens'
  with pytest.raises(errors.DataError, match=message):
    data.fitting([example(0, 21), example(1, 99)], 20)
