"""Every search asks what its source asks and finds what it says it finds."""

import pytest

from palign_jax.core import errors
from palign_jax.judging import search


def run(name, n, enough):
  """Returns the cut and the lengths asked, for a judge of lengths."""
  asked = []

  def judge(probes):
    asked.extend(p.length for p in probes)
    return [search.Verdict(enough(p.length)) for p in probes]

  found = search.drive({'a': search.find(name)(n)}, judge)['a']
  assert list(found.verdicts) == asked
  return found.cut, asked


def reference(total, enough):
  """The loop of the reference repository, without its printing."""
  left, right, best, asked = 1, total, None, []
  while left <= right:
    mid = (left + right) // 2
    asked.append(mid)
    if enough(mid):
      best, right = mid, mid - 1
    else:
      left = mid + 1
  return best, asked


def test_figure_9_of_the_paper():
  cut, asked = run('binary', 48, lambda n: n >= 12)
  assert asked == [24, 12, 6, 9, 10, 11]
  assert cut == search.Cut(12)


def test_figure_9_by_equation_7():
  cut, asked = run('paper', 48, lambda n: n >= 12)
  assert asked == [24, 12, 6, 9, 11]
  assert cut == search.Cut(12)


@pytest.mark.parametrize('n', [1, 2, 3, 7, 8, 9, 48])
def test_all_find_the_threshold_of_a_monotone_judge(n):
  for threshold in range(1, n + 1):
    for name in search.SEARCHES:
      cut, _ = run(name, n, lambda n, t=threshold: n >= t)
      assert cut.length == threshold
      assert cut.judged or (name == 'paper' and threshold == n)


@pytest.mark.parametrize('n', [1, 2, 11, 48])
def test_a_judge_that_never_accepts(n):
  for name in ('binary', 'sequential', 'curve'):
    assert run(name, n, lambda _: False)[0] == search.Cut(None)
  cut, asked = run('paper', n, lambda _: False)
  assert cut == search.Cut(n, judged=False)
  assert n not in asked


@pytest.mark.parametrize(
    'accepted', [{3}, {2, 5, 6}, {1, 9}, set(range(4, 12)), set()]
)
def test_asks_what_the_reference_asks_even_of_a_fickle_judge(accepted):
  enough = lambda n: n in accepted
  cut, asked = run('binary', 11, enough)
  assert (cut.length, asked) == reference(11, enough)
  first = min(accepted, default=None)
  assert run('curve', 11, enough)[0].length == first
  assert run('sequential', 11, enough)[0].length == first


def test_one_round_for_all_traces():
  rounds = []

  def judge(probes):
    rounds.append([(p.trace_id, p.length) for p in probes])
    return [search.Verdict(p.length >= 4) for p in probes]

  found = search.drive(
      {'long': search.binary(8), 'short': search.binary(2)}, judge
  )
  assert {k: f.cut.length for k, f in found.items()} == {
      'long': 4,
      'short': None,
  }
  assert rounds == [
      [('long', 4), ('short', 1)],
      [('long', 2), ('short', 2)],
      [('long', 3)],
  ]


def test_a_missing_answer_is_an_error():
  with pytest.raises(ValueError, match='zip'):
    search.drive({'a': search.binary(3)}, lambda probes: [])


def test_unknown_search():
  with pytest.raises(errors.ConfigError, match="no search 'bisect'; there are"):
    search.find('bisect')
