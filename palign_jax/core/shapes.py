"""The letters that name the axes of every array in palign_jax.

A local array's name ends in its axes, in order: `q_BTNH` is
[batch, query, head, head_dim].  An argument carries the same letters in its
annotation instead, `q: Float[Array, 'B T N H']`, where the tests check them.

  B  rows of a batch (training) or of the sampler
  T  query positions in this call; 1 while decoding
  S  key/value positions; the capacity of the cache while decoding
  N  query heads          K  key/value heads       G  N // K
  H  width of one head    D  width of the model    F  width of the MLP
  V  vocabulary           L  layers                R  rank of an adapter

T equals S in training.  No letter has a second meaning anywhere; a lower-case
letter is a local part of its axis, explained where it appears.
"""
