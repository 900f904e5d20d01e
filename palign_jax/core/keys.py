"""Random keys by name: what a draw is called decides what it draws.

The same parts give the same key on every machine, in every process and in
whatever order work is done, so a resumed run draws what the run would have.
"""

import hashlib

import numpy as np


def _hash(parts: tuple[str | int, ...]) -> bytes:
  """Returns 8 bytes; each part is written with its kind and length."""
  h = hashlib.blake2b(digest_size=8)
  for part in parts:
    kind = b's' if isinstance(part, str) else b'i'
    text = part if isinstance(part, str) else str(part)
    data = text.encode('utf-8', 'surrogatepass')
    h.update(kind + len(data).to_bytes(8, 'little') + data)
  return h.digest()


def digest(*parts: str | int) -> int:
  """Returns 64 bits that depend on each part, its kind and its place."""
  return int.from_bytes(_hash(parts), 'little')


def fold(seed: int, *parts: str | int) -> np.ndarray:
  """Returns the key of the draw called `parts`, as uint32[2].

  It is raw Threefry key data: `jax.random.wrap_key_data` makes it a key.

  Args:
    seed: Of the run.
    *parts: What tells this draw from all others, e.g. stage, model,
      benchmark, record id, sample index.
  """
  words = np.frombuffer(_hash((seed, *parts)), '<u4')
  return words.astype(np.uint32)
