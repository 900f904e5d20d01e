"""Samples files are read strictly, and every row comes back graded."""

import json

import pytest

from palign_jax.core import errors
from palign_jax.grading import rows, verify


def test_every_row_comes_back_with_all_its_fields():
  given = [
      {
          'prompt_ori': 'p',
          'answer': '025',
          'output': [r'\boxed{25}', 'It is 25.', r'\boxed{26}', ''],
          'label': [0, 0, 0, 0],  # Of an older grader.
          'mine': 7,
      },
      {'answer': 3.0, 'output': []},
      {'answer': 'x'},
  ]
  counts = []
  with verify.Grader(num_workers=1, limit_s=60) as grader:
    graded = rows.grade(given, grader, advance=counts.append)
  assert graded[0] == {
      'prompt_ori': 'p',
      'answer': '025',
      'output': [r'\boxed{25}', 'It is 25.', r'\boxed{26}', ''],
      'label': [1, 1, 0, 0],
      'mine': 7,
      'passn': 1,
      'output_ans': ['25', '25', '26', None],
      'boxed_label': [1, 0, 0, 0],
      'how': ['math', 'math', 'math', 'no_answer'],
      'grader': verify.version(),
  }
  assert [row['label'] for row in graded[1:]] == [[], []]
  assert [row['passn'] for row in graded[1:]] == [0, 0]
  assert given[0]['label'] == [0, 0, 0, 0]
  assert sum(counts) == rows.num_texts(given) == 8


@pytest.mark.parametrize(
    'lines, match',
    [
        ([{'output': ['x']}], r"row 1: no answer, only \['output'\]"),
        ([{'answer': None, 'output': ['x']}], 'row 1: no answer'),
        ([{'answer': True, 'output': ['x']}], 'row 1: the answer is True'),
        ([{'answer': '1', 'output': 'x'}], 'row 1: "output" is a str that is'),
        ([{'answer': '1', 'output': [1]}], 'row 1: "output" is a list that is'),
        (
            [{'answer': '1', 'output': ['x'], 'finish_reason': []}],
            'row 1: 1 outputs, but "finish_reason" is',
        ),
        (
            [{'id': 1, 'answer': '1'}, {'id': '1', 'answer': '1'}],
            "row 2: the id '1' is there twice",
        ),
    ],
)
def test_mistakes(tmp_path, lines, match):
  path = tmp_path / 'x.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  with pytest.raises(errors.DataError, match=f'x.jsonl, {match}'):
    rows.read(path)
