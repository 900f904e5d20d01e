"""Lengths come from one table of multiples of 32, at most a fifth empty."""

from palign_jax.sampling import buckets


def test_the_table():
  table = [buckets.above(0)]
  while table[-1] < 1024:
    table.append(buckets.above(table[-1]))
  assert table == [32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512] + [
      640,
      768,
      896,
      1024,
  ]


def test_every_length_fits_its_bucket():
  for length in range(1, 5000):
    size = buckets.fitting(length)
    assert size >= length and size % buckets.STEP == 0
    assert length <= 128 or length > 0.8 * size - 1
    assert buckets.fitting(size) == size and buckets.above(size) > size
