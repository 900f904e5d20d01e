"""Lengths come from one table of multiples of 32; long ones waste a fifth."""

from palign_jax.sampling import buckets


def test_the_table():
  table = [buckets.above(0)]
  while table[-1] < 2048:
    table.append(buckets.above(table[-1]))
  assert table[:8] == [32, 64, 96, 128, 192, 256, 384, 512]
  assert table[8:] == [640, 768, 896, 1024, 1280, 1536, 1792, 2048]


def test_every_length_fits_its_bucket():
  for length in range(1, 5000):
    size = buckets.fitting(length)
    assert size >= length and size % buckets.STEP == 0
    assert length <= 512 or length > 0.8 * size
    assert buckets.fitting(size) == size and buckets.above(size) > size
