"""Benchmarks of every spelling are read; what is amiss is told by its row."""

import json

import pytest

from palign_jax.core import errors
from palign_jax.data import questions


def write(path, lines):
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return path


def test_fields_are_found_as_the_reference_finds_them(tmp_path):
  path = write(
      tmp_path / 'x.jsonl',
      [
          {'id': 60, 'problem': 'P', 'solution': 'S', 'answer': '025'},
          {'id': 'b', 'question': 'Q', 'answer': 142.0, 'url': 'u'},
          {'id': 'c', 'input': 'I', 'target': 7},
          {'id': 'd', 'content': 'C', 'ground_truth': '2*9=18\n#### 18'},
      ],
  )
  assert questions.read_questions(path, needs_answer=True) == [
      {'id': '60', 'question': 'P', 'answer': '025', 'solution': 'S'},
      {'id': 'b', 'question': 'Q', 'answer': '142', 'url': 'u'},
      {'id': 'c', 'question': 'I', 'answer': '7'},
      {'id': 'd', 'question': 'C', 'answer': '18'},
  ]


def test_questions_alone_will_do_for_a_teacher(tmp_path):
  path = write(tmp_path / 'x.jsonl', [{'question': 'Q'}, {'question': 'R'}])
  assert questions.read_questions(path, needs_answer=False) == [
      {'id': '0', 'question': 'Q', 'answer': None},
      {'id': '1', 'question': 'R', 'answer': None},
  ]


def test_ids_from_elsewhere(tmp_path):
  lines = [
      {'id': 0, 'url': 'u/1', 'problem': 'P', 'answer': 1.0},
      {'id': 0, 'url': 'u/2', 'problem': 'Q', 'answer': 2.0},
  ]
  path = write(tmp_path / 'x.jsonl', lines)
  with pytest.raises(
      errors.DataError, match="row 2: the 'id' 0 is that of row"
  ):
    questions.read_questions(path, needs_answer=True)
  by_url = questions.read_questions(f'{path}#url', needs_answer=True)
  assert [row['id'] for row in by_url] == ['u/1', 'u/2']
  numbered = questions.read_questions(f'{path}#', needs_answer=True)
  assert [row['id'] for row in numbered] == ['0', '1']


@pytest.mark.parametrize(
    'row, match',
    [
        ({'question': 'Q'}, r"no answer in \['question'\]; a benchmark needs"),
        ({'question': 'Q', 'answer': None}, 'no answer in'),
        ({'question': 'Q', 'answer': '  '}, 'no answer in'),
        ({'text': 'Q', 'answer': '1'}, r"no question in \['answer', 'text'\]"),
        ({'question': ' ', 'answer': '1'}, "the 'question' is ' '"),
        ({'question': ['Q'], 'answer': '1'}, r"the 'question' is \['Q'\]"),
        (
            {'question': 'Q', 'answer': ['1']},
            r"'answer': the answer is \['1'\]",
        ),
    ],
)
def test_mistakes(tmp_path, row, match):
  good = {'question': 'Q', 'answer': '1'}
  path = write(tmp_path / 'x.jsonl', [good, row])
  with pytest.raises(errors.DataError, match=f'x.jsonl, row 2.*{match}'):
    questions.read_questions(path, needs_answer=True)


@pytest.mark.parametrize(
    'text, match',
    [
        (None, 'no such file'),
        ('', 'no rows'),
        ('{"question": "Q"}\n{"question"\n', 'line 2: no valid JSON'),
        ('["Q"]\n', 'line 1: a list'),
    ],
)
def test_files_that_are_none(tmp_path, text, match):
  if text is not None:
    (tmp_path / 'x.jsonl').write_text(text)
  with pytest.raises(errors.DataError, match=match):
    questions.read_questions(tmp_path / 'x.jsonl', needs_answer=False)
