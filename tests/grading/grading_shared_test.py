r"""The grader agrees with public labels; each disagreement has its reason.

Runs only with --shared=FOLDER, a folder with `released/aime24-output.jsonl`
(the outputs and labels that P-ALIGN's authors published) and with
`grading/{math_verify_pairs,run_pairs,unit_pairs}.json` (gold, pred, expected).

Where it disagrees, with math-verify 0.9.0:

run_pairs, 1 of 480.  33, aime24 (P-ALIGN release), idx 24: the text has no box,
  so the pair holds no prediction; the label was won by an answer elsewhere in
  the text, which `grade` finds in the whole text, as the 90 labels show.

math_verify_pairs, 3 of 134.  Each was written for an option that neither the
  reference nor we set:
  f(x) and f(y): strict=False, under which names of variables do not matter;
  x \in [-2,7] and -2 \le x \le 7: allow_set_relation_comp=True;
  a third and 0.33 in a matrix: a precision of 2 digits, not 6.

unit_pairs, prm800k_style, 9 of 48 as \boxed{pred}: another convention.
  -2 and `-2.`: a number that ends in a stop is not read inside a box.
  x ∈ [..] four times: the gold has a Unicode sign that math-verify's LaTeX
  parser does not know.
  `10, 4, -2` and `4, 10, -2`, and one more like it: math-verify compares lists
  as sets, PRM800K keeps their order.
  A matrix with one } too many in the gold, twice: it does not parse.
"""

import json
import pathlib

import pytest

from palign_jax.core import golds
from palign_jax.grading import verify, workers


@pytest.fixture(scope='module')
def shared(request):
  return pathlib.Path(request.config.getoption('--shared'))


@pytest.fixture(scope='module')
def grader():
  with verify.Grader(num_workers=2, limit_s=60) as grader:
    yield grader


def boxed(text):
  return None if text is None else f'\\boxed{{{text}}}'


def disagreements(grader, pairs):
  got = grader.grade([(pair['gold'], boxed(pair['pred'])) for pair in pairs])
  return [
      (pair['gold'], pair['pred'])
      for pair, verdict in zip(pairs, got, strict=True)
      if verdict.correct != pair['expected']
  ]


def test_released_labels_and_answers(shared, grader):
  text = (shared / 'released/aime24-output.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  got = grader.grade([(r['answer'], out) for r in rows for out in r['output']])
  labels = [label for row in rows for label in row['label']]
  spelled = [answer[-1] for row in rows for answer in row['output_ans']]
  assert len(labels) == 90
  assert [int(verdict.correct) for verdict in got] == labels
  assert [verdict.answer for verdict in got] == spelled


def test_run_pairs(shared, grader):
  pairs = json.loads((shared / 'grading/run_pairs.json').read_text())
  assert len(pairs) == 480
  assert disagreements(grader, pairs) == [('033', None)]


def test_math_verify_pairs(shared):
  pairs = json.loads((shared / 'grading/math_verify_pairs.json').read_text())
  assert len(pairs) == 134
  literals = [(pair['gold'], pair['pred']) for pair in pairs]
  with workers.Workers(verify.is_equal, num_workers=2, limit_s=60) as pool:
    got = dict(pool.run(literals))
  odd = [i for i in range(134) if got[i].correct != bool(pairs[i]['expected'])]
  assert [pairs[i]['extra'] for i in odd] == [
      {'strict': False},
      {'allow_set_relation_comp': True},
      {'precision': 2},
  ]


def test_unit_pairs(shared, grader):
  pairs = json.loads((shared / 'grading/unit_pairs.json').read_text())
  assert all(
      golds.last_boxed(case['in']) == case['out']
      for case in pairs['last_boxed']
  )
  matrix = '$\\begin{pmatrix} 1 \\\\ -2 \\\\ -1 \\end{pmatrix}}$'
  assert len(pairs['prm800k_style']) == 48
  assert [g for g, _ in disagreements(grader, pairs['prm800k_style'])] == [
      '-2',
      'x ∈ [-2,5]',
      'x ∈ [-2,5]',
      'x ∈ [-0.2,0.5]',
      'x ∈ [0.2,-0.5]',
      '10, 4, -2',
      '0.1, 4, 2',
      matrix,
      matrix,
  ]
