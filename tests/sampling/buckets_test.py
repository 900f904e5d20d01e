"""Sizes come from few tables, and follow from a request alone."""

from palign_jax.sampling import buckets


def test_chunks():
  chunks = lambda length, limit=512: [
      buckets.chunk(length - end, limit) for end in _ends(length, limit)
  ]
  assert chunks(1) == chunks(64) == [64]
  assert chunks(80) == [64, 64]
  assert chunks(100) == [128]
  assert chunks(150) == [128, 64]
  assert chunks(1000) == [512, 512]
  assert chunks(300, limit=128) == [128, 128, 64]
  assert chunks(100, limit=1) == [64, 64]  # The smallest always may be.


def _ends(length, limit):
  end = 0
  while end < length:
    yield end
    end += buckets.chunk(length - end, limit)


def test_a_prompt_is_padded_by_a_third_at_most():
  for length in range(64, 3000):
    end = buckets.chunks_end(length, 512)
    assert length <= end <= max(length * 4 / 3, length + 64)


def test_capacities():
  table = sorted({buckets.capacity(length) for length in range(1, 5000)})
  assert table == [128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
  assert all(buckets.capacity(size) == size for size in table)


def test_numbers_of_rows():
  assert buckets.num_rows(64, 1, 512) == [64, 48, 32, 24, 16, 8]
  assert buckets.num_rows(64, 4, 512) == [64, 32]
  assert buckets.num_rows(64, 1, 128) == [64, 32]
  assert buckets.num_rows(64, 1, 16) == [64]
  assert buckets.num_rows(20, 1, 512) == [20]
  assert buckets.num_rows(1, 1, 4096) == [1]
