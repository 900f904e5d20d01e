"""The sizes that programs are compiled for: few, and the same in every run."""

CHUNKS = (64, 128, 256, 512)  # Prompt tokens read at once.
# With fewer products per step all rows are decoded to the end: a program more
# costs more time than it saves.
SMALL = 2**28
_ROWS = 8  # Rows that are attended together; fewer are not worth a program.
# XLA on a CPU adds up arrays of fewer numbers in another order (found by
# trying: 3,072 differ, 4,096 do not).
_EXACT = 4096


def chunk(left: int, limit: int) -> int:
  """Returns how many tokens to read at once.

  Args:
    left: Of the prompt, at least 1.
    limit: What is read at once at most; the smallest chunk always may be.
  """
  allowed = [size for size in CHUNKS if size <= limit] or [CHUNKS[0]]
  for smaller, size in zip([0, *allowed], allowed, strict=False):
    if left <= size:
      # A chunk that would be more than a quarter empty is two.
      return size if left > 0.75 * size or not smaller else smaller
  return allowed[-1]


def chunks_end(length: int, limit: int) -> int:
  """Returns where the last chunk of a prompt ends, padding included."""
  end = 0
  while end < length:
    end += chunk(length - end, limit)
  return end


def capacity(length: int) -> int:
  """Returns the slots of a cache that has room for `length` tokens."""
  for size in (128, 256):
    if length <= size:
      return size
  size = 512
  while size < length:
    if size + size // 2 >= length:
      return size + size // 2
    size *= 2
  return size


def num_rows(most: int, shards: int, least: int) -> list[int]:
  """Returns the numbers of rows that are decoded together, falling.

  Args:
    most: The first of them, a multiple of `shards`.
    shards: Groups of devices that rows are split over.
    least: The fewest numbers of a row that the model sums over.
  """
  unit = _ROWS * -(-_EXACT // (_ROWS * least)) * shards
  if most % unit:
    return [most]
  sizes, size = {most}, unit
  while size < most:
    sizes |= {size, size * 3 // 2}
    size *= 2
  return sorted((s for s in sizes if s <= most and s % unit == 0), reverse=True)
