"""A trace as its judges see it: a text with the places where it may end."""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Trace:
  """A teacher's solution.

  Attributes:
    id: Its name.
    question: What it solves.
    text: The solution.
    ends: Where it may be cut, as offsets of characters, in rising order.
    answer: The gold one; None if nobody knows it.
  """

  id: str
  question: str
  text: str
  ends: Sequence[int]
  answer: str | int | float | None = None

  def prefix(self, length: int) -> str:
    """Returns the first `length` sentences; 0 is the empty prefix."""
    return self.text[: self.ends[length - 1]] if length else ''
