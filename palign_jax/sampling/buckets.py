"""The lengths that programs are compiled for.

One table serves padded prompts and the capacity of the cache, so what a row
meets on its way (padding at the start, capacities after it) follows from its
own length alone.
"""

STEP = 32  # Every length is a multiple of it.
_SMALL = (32, 64, 96, 128, 192, 256, 384, 512)


def above(length: int) -> int:
  """Returns the smallest length of the table that is greater than `length`.

  Up to 512 there are few, as compiling for one takes about as long as it saves
  there.  Then each doubling takes four steps: at most a fifth stays empty.
  """
  for size in _SMALL:
    if size > length:
      return size
  octave = _SMALL[-1]
  while octave * 2 <= length:
    octave *= 2
  step = octave // 4
  return octave + step * ((length - octave) // step + 1)


def fitting(length: int) -> int:
  """Returns the smallest length of the table that holds `length` tokens."""
  return above(length - 1)
