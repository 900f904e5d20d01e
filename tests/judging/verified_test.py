"""A cut is proven by what the student makes of it, or a longer one is tried."""

import dataclasses

from hypothesis import given, settings, strategies as st
import pytest

from palign_jax.grading import verify
from palign_jax.judging import search, trace as trace_lib, verified
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.text import sentences, tokenizer as tokenizer_lib
from tests import fakes

LIMIT = 300


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tokenizer_lib.load(
      fakes.tokenizer_folder(tmp_path_factory.mktemp('tokenizer'))
  )


def trace(name, num, answer='19'):
  text = ' '.join(f'Step {i} is done.' for i in range(1, num + 1))
  ends = sentences.cuts(text, 'sentence')
  return trace_lib.Trace(name, f'Question {name}?', text, ends, answer)


class Student(sampler_lib.Sampler):
  """Answers rightly from `goal` sentences on, in the samples it is told."""

  def __init__(self, tokenizer, goals, lucky=(0, 1, 2, 3), ended='stop'):
    self._tokenizer, self._goals = tokenizer, goals
    self._lucky, self._ended = lucky, ended
    self.requests = []

  def run(self, requests):
    requests = list(requests)
    self.requests += requests
    for request in reversed(requests):
      text = self._tokenizer.decode(request.tokens, skip_specials=False)
      name = text.split('Question ')[1][0]
      sample = int(request.id.rsplit('/')[-1])
      right = text.count('done.') >= self._goals[name]
      says = ' So it is 19.' if right and sample in self._lucky else ' Hm.'
      tokens = tuple(self._tokenizer.encode(says))
      yield sampler_lib.Completion(request.id, tokens, self._ended)


class Grader:
  """Right is what ends so."""

  def __init__(self):
    self.texts = []

  def grade(self, items):
    self.texts += [text for _, text in items]
    return [
        verify.Verdict(text.endswith(f'is {gold}.'), None, 'string')
        for gold, text in items
    ]


def verifier(tokenizer, student, grader=None, k=4, pass_rate=0.5):
  writing = verified.Writing(
      lambda question, prefix: f'{question} {prefix}',
      lambda prefix, output: prefix + output,
  )
  return verified.Verifier(
      student,
      tokenizer,
      grader or Grader(),
      writing,
      seed=0,
      k=k,
      pass_rate=pass_rate,
      max_tokens=16,
      max_positions=LIMIT,
  )


def test_a_cut_suffices_from_the_pass_rate_on(tokenizer):
  cuts = [(trace('a', 4), n) for n in (1, 2, 3)]
  for lucky, enough in (((0, 1), True), ((0,), False)):
    student, grader = Student(tokenizer, {'a': 2}, lucky), Grader()
    proofs = verifier(tokenizer, student, grader).judge(cuts)
    assert [p.enough for p in proofs] == [False, enough, enough]
    assert [p.passes for p in proofs] == [0, len(lucky), len(lucky)]
    assert [p.rollouts for p in proofs] == [4, 4, 4]
    assert grader.texts[0].startswith('Step 1 is done.')
  proofs = verifier(tokenizer, Student(tokenizer, {'a': 1})).judge(cuts[:1], 2)
  assert (proofs[0].rollouts, proofs[0].passes) == (2, 2)


def test_what_is_graded_ends_before_a_stop_string(tokenizer):

  class Stopped(Student):
    """Of whose last token only a part lies before the string."""

    def run(self, requests):
      for done in super().run(requests):
        yield dataclasses.replace(done, tokens=(), text=' So it is 19.')

  grader = Grader()
  judge = verifier(tokenizer, Stopped(tokenizer, {'a': 9}), grader)
  (proof,) = judge.judge([(trace('a', 2), 1)])
  assert proof.enough
  assert set(grader.texts) == {'Step 1 is done. So it is 19.'}


def test_draws_are_named_by_trace_cut_and_sample(tokenizer):
  keys = lambda cuts: {
      (name, request.tokens): request.key.tolist()
      for student in [Student(tokenizer, {'a': 1, 'b': 1})]
      for _ in [verifier(tokenizer, student).judge(cuts)]
      for name, request in enumerate(student.requests)
  }
  cuts = [(trace('a', 3), 1), (trace('a', 3), 2), (trace('b', 3), 1)]
  together = keys(cuts)
  assert len({tuple(key) for key in together.values()}) == 12
  alone = list(keys(cuts[1:2]).values())
  assert alone == list(together.values())[4:8]


def test_what_is_cut_off_is_not_right(tokenizer):
  grader = Grader()
  student = Student(tokenizer, {'a': 1}, ended='length')
  (proof,) = verifier(tokenizer, student, grader).judge([(trace('a', 2), 1)])
  assert (proof.enough, proof.passes, proof.rollouts) == (False, 0, 4)
  assert not grader.texts


def test_a_prompt_gets_the_room_there_is(tokenizer):
  known = trace('a', 40)
  student = Student(tokenizer, {'a': 1})
  judge = verifier(tokenizer, student)
  size = lambda n: len(tokenizer.encode(f'{known.question} {known.prefix(n)}'))
  most = max(n for n in range(1, 41) if size(n) < LIMIT)
  proofs = judge.judge([(known, 1), (known, most), (known, most + 1)])
  assert [p.enough for p in proofs] == [True, True, False]
  assert [p.rollouts for p in proofs] == [4, 4, 0]
  rooms = {r.max_tokens for r in student.requests}
  assert rooms == {16, min(16, LIMIT - size(most))}
  assert len(student.requests) == 8


@pytest.mark.parametrize('answer', [None, '', '***'])
def test_a_gold_that_proves_nothing_is_not_asked_about(tokenizer, answer):
  student = Student(tokenizer, {'a': 1})
  (proof,) = verifier(tokenizer, student).judge([(trace('a', 2, answer), 1)])
  assert (proof.enough, proof.rollouts, proof.passes) == (False, 0, 0)
  assert not student.requests


def found(length, p_enough):
  verdicts = {
      n: search.Verdict(p >= 0.5, p_enough=p) for n, p in p_enough.items()
  }
  return search.Found(search.Cut(length), verdicts)


@pytest.mark.parametrize(
    'length, total, extra, expected',
    [
        (12, 44, 4, [12, 16, 20, 28, 44]),
        (12, 44, 0, [12]),
        (12, 44, 1, [12, 44]),
        (40, 43, 4, [40, 41, 42, 43]),
        (44, 44, 4, [44]),
    ],
)
def test_longer_cuts_lie_ever_further_apart(length, total, extra, expected):
  known = found(length, {length: 0.9})
  assert verified.candidates(known, total, extra) == expected


@given(total=st.integers(1, 80), extra=st.integers(0, 6), data=st.data())
@settings(max_examples=100, deadline=None)
def test_candidates_rise_to_the_whole_and_are_bounded(total, extra, data):
  length = data.draw(st.integers(1, total))
  cuts = verified.candidates(found(length, {length: 0.9}), total, extra)
  assert cuts == sorted(set(cuts)) and cuts[0] == length
  assert len(cuts) <= extra + 1
  assert cuts[-1] == (total if extra else length)


def test_without_a_proposal_it_begins_at_the_most_probable():
  known = found(None, {4: 0.1, 6: 0.3, 7: 0.3, 8: 0.2})
  assert verified.candidates(known, 9, 2) == [7, 8, 9]


def prove(tokenizer, student, known, traces, extra=4):
  return verified.prove(
      known,
      {t.id: t for t in traces},
      {t.id: len(t.ends) for t in traces},
      verifier(tokenizer, student),
      extra,
  )


def test_each_trace_goes_to_the_first_cut_that_is_proven(tokenizer):
  traces = [trace('a', 12), trace('b', 12), trace('c', 6), trace('d', 6, None)]
  student = Student(tokenizer, {'a': 2, 'b': 4, 'c': 99, 'd': 1})
  known = {t.id: found(2, {2: 0.8, 1: 0.2}) for t in traces}
  proven = prove(tokenizer, student, known, traces)
  assert {name: f.cut.length for name, f in proven.items()} == {
      'a': 2,  # At once.
      'b': 4,  # 2 fails; the next to be tried is 4.
      'c': None,  # Not even with all of it.
      'd': 2,  # Nothing to prove it by: as it was.
  }
  assert list(proven['a'].proofs) == [2]
  assert list(proven['b'].proofs) == [2, 4]
  assert list(proven['c'].proofs) == [2, 3, 4, 6]
  assert not proven['d'].proofs and proven['d'] == known['d']
  assert proven['b'].verdicts == known['b'].verdicts
  # Rounds: all open traces together.
  assert len(student.requests) == 4 * (3 + 2 + 1 + 1)
