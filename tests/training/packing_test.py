"""Rows hold whole examples, each as it would be alone."""

import numpy as np

from palign_jax.training import examples, packing


def example(name, *tokens):
  return examples.Example(
      name, np.array(tokens, np.int32), np.ones(len(tokens), np.float32)
  )


def test_first_fit():
  bins = packing.Bins(num_rows=2, max_tokens=5)
  assert bins.empty
  assert bins.add(example('a', 1, 2, 3))
  assert bins.add(example('b', 4, 5, 6, 7))
  assert not bins.add(example('c', 8, 9, 10))
  assert bins.add(example('d', 11, 12))
  assert bins.add(example('e', 13))
  batch = bins.batch()
  assert batch['tokens'].tolist() == [[1, 2, 3, 11, 12], [4, 5, 6, 7, 13]]
  assert batch['segments'].tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 1, 2]]
  assert batch['positions'].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
  assert batch['weights'].tolist() == [[0, 1, 1, 0, 1], [0, 1, 1, 1, 0]]


def test_padding_weighs_nothing():
  batch = packing.rows([[example('a', 1, 2)], []], max_tokens=4)
  assert batch['segments'].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
  assert batch['weights'].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
  kinds = {name: str(x.dtype) for name, x in batch.items()}
  assert kinds == {
      'tokens': 'int32',
      'positions': 'int32',
      'segments': 'int32',
      'weights': 'float32',
  }
