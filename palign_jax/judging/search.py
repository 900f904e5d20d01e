"""Searches for the shortest prefix that a judge calls sufficient.

A search is a generator: it yields the lengths (in sentences) it wants judged,
is sent their verdicts, and returns a `Cut`.  `drive` runs one per trace so that
a round of all of them is one call of the judge.

Sources: `binary` is `find_minimal_sufficient_prefix` of src/binary_search.py in
the reference repository (4ddef39), probe for probe; `paper` is Eq. 6 and 7.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
import dataclasses
import functools

from palign_jax.core import errors
from palign_jax.judging import rules

Verdict = rules.Verdict


@dataclasses.dataclass(frozen=True)
class Cut:
  """Where a search ended.

  Attributes:
    length: The shortest sufficient prefix, in sentences; None if none is.
    judged: Whether that very prefix was judged sufficient.  Only `paper` may
      return one that never was.
  """

  length: int | None
  judged: bool = True


Search = Generator[list[int], list[Verdict], Cut]


def binary(num_sentences: int) -> Search:
  """The reference's search: remembers the last sufficient middle."""
  low, high, best = 1, num_sentences, None
  while low <= high:
    middle = (low + high) // 2
    (verdict,) = yield [middle]
    if verdict.enough:
      best, high = middle, middle - 1
    else:
      low = middle + 1
  return Cut(best)


def paper(num_sentences: int) -> Search:
  """Eq. 7: an accepted middle stays in the span, which ends as one length.

  That length may never have been judged: the whole trace, if no middle was
  sufficient.
  """
  low, high, accepted = 1, num_sentences, set()
  while low < high:
    middle = (low + high) // 2
    (verdict,) = yield [middle]
    if verdict.enough:
      high = middle
      accepted.add(middle)
    else:
      low = middle + 1
  return Cut(low, judged=low in accepted)


def sequential(num_sentences: int) -> Search:
  """The paper's ablation: one sentence more until it suffices."""
  for length in range(1, num_sentences + 1):
    (verdict,) = yield [length]
    if verdict.enough:
      return Cut(length)
  return Cut(None)


def curve(num_sentences: int, pick: rules.Pick = rules.first) -> Search:
  """Judges every prefix at once and picks a cut from the verdicts."""
  verdicts = yield list(range(1, num_sentences + 1))
  return Cut(pick(verdicts))


def confirm(candidates: Sequence[int]) -> Search:
  """Asks for one candidate after the other until one is accepted."""
  for length in candidates:
    (verdict,) = yield [length]
    if verdict.enough:
      return Cut(length)
  return Cut(None)


def ask(lengths: Sequence[int]) -> Search:
  """Asks for some lengths and decides nothing."""
  yield list(lengths)
  return Cut(None, judged=False)


SEARCHES: Mapping[str, Callable[[int], Search]] = {
    'binary': binary,
    'paper': paper,
    'sequential': sequential,
    'curve': curve,
}


@dataclasses.dataclass(frozen=True)
class Probe:
  """A question for the judge: do the first `length` sentences suffice?"""

  trace_id: str
  length: int


@dataclasses.dataclass(frozen=True)
class Found:
  """A finished search: its cut and all verdicts on the way, by length.

  Attributes:
    cut: Where it ended.
    verdicts: What the judge said.
    proofs: What continuations said of cuts that it proposed.
  """

  cut: Cut
  verdicts: Mapping[int, Verdict]
  proofs: Mapping[int, Verdict] = dataclasses.field(default_factory=dict)


def find(name: str, pick: rules.Pick = rules.first) -> Callable[[int], Search]:
  """Returns a search by its name.

  Args:
    name: One of `SEARCHES`.
    pick: How a curve is read; no other search has one.

  Raises:
    ConfigError: If there is none.
  """
  if name not in SEARCHES:
    raise errors.ConfigError(
        f'config.truncate.search: no search {name!r}; there are'
        f' {list(SEARCHES)}.'
    )
  return (
      functools.partial(curve, pick=pick) if name == 'curve' else SEARCHES[name]
  )


def drive(
    searches: Mapping[str, Search],
    judge: Callable[[Sequence[Probe]], Sequence[Verdict]],
) -> dict[str, Found]:
  """Searches all traces together, one call of the judge per round.

  Args:
    searches: By the trace's id; none has begun.
    judge: Answers a round of probes, in order.

  Returns:
    What was found for each trace, by id.
  """
  verdicts: dict[str, dict[int, Verdict]] = {id_: {} for id_ in searches}
  found, wanted = {}, {}

  def step(id_: str, answers: list[Verdict] | None) -> None:
    try:
      wanted[id_] = searches[id_].send(answers)
    except StopIteration as end:
      wanted.pop(id_, None)
      found[id_] = Found(end.value, verdicts[id_])

  for id_ in searches:
    step(id_, None)
  while wanted:
    probes = [Probe(i, n) for i, lengths in wanted.items() for n in lengths]
    round_ = dict(zip(probes, judge(probes), strict=True))
    for id_, lengths in list(wanted.items()):
      answers = [round_[Probe(id_, n)] for n in lengths]
      verdicts[id_].update(zip(lengths, answers, strict=True))
      step(id_, answers)
  return {id_: found[id_] for id_ in searches}
