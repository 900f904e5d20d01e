"""Row i depends on i alone, and no training row holds an evaluation problem."""

import collections

import pytest

from palign_jax.core import errors
from palign_jax.sandbox import corpus, teacher, world


def make(kinds, steps=None, **others):
  steps = steps or dict.fromkeys(range(1, 9), 1)
  return corpus.Corpus(
      corpus.CorpusConfig(kinds=kinds, steps=steps, seed=2, **others)
  )


def test_rows_do_not_depend_on_the_order_of_reading():
  rows = make({'fact': 1, 'chain': 1, 'judge': 1, 'continue': 1})
  forward = [rows[i] for i in range(40)]
  again = make({'fact': 1, 'chain': 1, 'judge': 1, 'continue': 1})
  assert [again[i] for i in reversed(range(40))] == forward[::-1]
  assert all(
      set(row) == {'kind', 'question', 'prefix', 'reply', 'steps'}
      for row in forward
  )


def test_weights_are_shares():
  rows = make({'fact': 3, 'chain': 1}, {2: 1, 5: 0})
  kinds = collections.Counter(rows[i]['kind'] for i in range(400))
  assert 260 < kinds['fact'] < 340
  assert {rows[i]['steps'] for i in range(400)} == {1, 2}


def test_no_evaluation_problem_is_trained_on():
  rows = make({'chain': 1, 'judge': 1, 'continue': 1})
  held_out = make({'chain': 1}, split='eval')
  for i in range(300):
    story = world.read_question(rows[i]['question'])
    assert world.split_of(*story) == 'train'
    story = world.read_question(held_out[i]['question'])
    assert world.split_of(*story) == 'eval'


def test_facts_are_right():
  row = make({'fact': 1}, num_facts=2)[0]
  sums = row['question'].removeprefix('What is ').removesuffix('?').split(', ')
  assert len(sums) == 2
  results = []
  for text in sums:
    left, sign, right = text.split()
    results.append(world.compute(int(left), sign, int(right)))
  assert row['reply'] == ' '.join(
      f'So {text} = {result}.'
      for text, result in zip(sums, results, strict=True)
  )


def test_a_prefix_is_enough_when_few_events_are_left():
  rows = make({'judge': 1}, {6: 1}, judge_remaining=2)
  labels = collections.Counter()
  for i in range(300):
    row = rows[i]
    start, events = world.read_question(row['question'])
    amounts = [start]
    for event in events:
      amounts.append(event.apply(amounts[-1]))
    fourth = teacher.equation(amounts[3], events[3], amounts[4])
    # The fourth event's equation may also be a copy of an earlier one.
    is_once = sum(a == amounts[3] for a in amounts) == 1
    if is_once:
      enough = fourth in row['prefix']
      assert row['reply'] == ('[ENOUGH]' if enough else '[NOT_ENOUGH]')
    labels[row['reply']] += 1
  assert min(labels.values()) > 75


def test_a_continuation_begins_with_its_prefix():
  rows = make({'continue': 1})
  for i in range(100):
    row = rows[i]
    assert row['prefix'].endswith('.') and row['prefix'] != row['reply']
    assert row['reply'].startswith(row['prefix'] + ' ')


@pytest.mark.parametrize(
    'kinds, steps, message',
    [
        ({'poem': 1}, {2: 1}, "corpus.kinds: no 'poem'; known: .*'fact'"),
        ({'fact': 1}, {9: 1}, 'corpus.steps: no 9; known'),
        ({'fact': 0}, {2: 1}, 'corpus.kinds: nothing has any weight'),
    ],
)
def test_bad_weights_are_named(kinds, steps, message):
  with pytest.raises(errors.ConfigError, match=message):
    make(kinds, steps)
