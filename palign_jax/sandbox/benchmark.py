"""Question files of the sandbox: what teach reads and what is graded on."""

from collections.abc import Iterator, Sequence
from typing import Any

from palign_jax.core import errors
from palign_jax.sandbox import world

_MAX_REPEATS = 1000  # In a row; then the world is taken to be exhausted.


def questions(
    count: int, *, seed: int, split: str, steps: Sequence[int]
) -> Iterator[dict[str, Any]]:
  """Yields rows of a question file, no two with the same fingerprint.

  Args:
    count: Number of rows.
    seed: Names the stream of problems.
    split: 'train' or 'eval'.
    steps: Steps of the problems, each in turn.

  Yields:
    Rows with `id`, `question`, `answer` and `steps`.

  Raises:
    ConfigError: If the world has too few different problems.
  """
  seen: set[int] = set()
  tried, repeats = 0, 0
  while len(seen) < count:
    if repeats == _MAX_REPEATS:
      raise errors.ConfigError(
          f'sandbox: {count} different questions of {list(steps)} steps are'
          f' too many; {len(seen)} were found. Ask for fewer or more steps.'
      )
    found = world.problem(seed, tried, steps[tried % len(steps)], split)
    tried += 1
    mark = world.fingerprint(found.start, found.events)
    if mark in seen:
      repeats += 1
      continue
    seen.add(mark)
    repeats = 0
    yield {
        'id': found.id,
        'question': found.question,
        'answer': found.answer,
        'steps': found.steps,
    }
