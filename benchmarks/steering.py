"""Searches that find a given answer, so that all systems do the same work.

Random weights judge at random.  A steered search asks for verdicts and throws
them away: enough is what reaches the trace's boundary.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from benchmarks import texts
from palign_jax.judging import search as search_lib


def steered(search: search_lib.Search, boundary: int) -> search_lib.Search:
  """Returns a search whose probes are enough from `boundary` on.

  Args:
    search: One that has not begun.
    boundary: In sentences.
  """
  lengths = next(search)
  while True:
    verdicts = yield lengths
    answers = [
        dataclasses.replace(verdict, enough=length >= boundary)
        for length, verdict in zip(lengths, verdicts, strict=True)
    ]
    try:
      lengths = search.send(answers)
    except StopIteration as end:
      return end.value


def begin(case: str, task: texts.Task) -> search_lib.Search:
  """Returns the search of a case over a task."""
  return steered(search_lib.find(case)(len(task.ends)), task.boundary)


def facts(
    found: Mapping[str, search_lib.Found], tasks: Sequence[texts.Task]
) -> dict[str, object]:
  """Returns what was probed, to compare systems by.

  Raises:
    RuntimeError: If a search did not end at the boundary.
  """
  for task in tasks:
    if found[task.id].cut.length != task.boundary:
      raise RuntimeError(
          f'{task.id}: cut at {found[task.id].cut.length}, not at'
          f' {task.boundary}'
      )
  probes = {task.id: list(found[task.id].verdicts) for task in tasks}
  return {'probes': probes, 'num_probes': sum(map(len, probes.values()))}
