"""The lengths that programs are compiled for.

One table serves padded prompts and the capacity of the cache, so what a row
meets on its way (padding at the start, capacities after it) follows from its
own length alone.
"""

STEP = 32  # Every length is a multiple of it.
_SMALL = (32, 64, 96, 128)


def above(length: int) -> int:
  """Returns the smallest length of the table that is greater than `length`.

  Up to 128 it goes in steps of 32, then in four steps per doubling, so that at
  most a fifth of a long cache is empty.
  """
  for size in _SMALL:
    if size > length:
      return size
  octave = 128
  while octave * 2 <= length:
    octave *= 2
  return octave + octave // 4 * ((length - octave) // (octave // 4) + 1)


def fitting(length: int) -> int:
  """Returns the smallest length of the table that holds `length` tokens."""
  return above(length - 1)
