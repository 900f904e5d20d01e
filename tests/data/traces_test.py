"""Ready traces come under our names, whatever their source calls them."""

import json

import pytest

from palign_jax.core import errors
from palign_jax.data import traces

S1K = {
    'question': 'Q',
    'solution': r'We see that it is \boxed{5}.',
    'deepseek_thinking_trajectory': 'Hmm. It is 5.',
    'cot_type': 'math',
}


def write(path, lines):
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return str(path)


def test_presets_and_mappings(tmp_path):
  path = write(tmp_path / 'x.jsonl', [S1K])
  want = [
      {'id': '0', 'question': 'Q', 'answer': '5', 'Long-CoT': 'Hmm. It is 5.'}
  ]
  for name in ('s1k', 's1k-1.1'):
    names = traces.fields(name, at='config.teach.fields')
    assert traces.read_traces(path, names) == want
  names = traces.fields(
      {
          'question': 'question',
          'answer': '',
          'trace': 'deepseek_thinking_trajectory',
          'id': 'cot_type',
      },
      at='config.teach.fields',
  )
  (row,) = traces.read_traces(path, names)
  assert (row['id'], row['answer']) == ('math', None)


def test_text_is_kept_as_it_is_also_where_there_is_none(tmp_path):
  given = [
      {'id': 'a', 'question': ' Q\n', 'answer': None, 'Long-CoT': ''},
      {'id': 'b', 'question': 'Q', 'answer': '1', 'Long-CoT': ' \n\n x. \t'},
  ]
  path = write(tmp_path / 'x.jsonl', given)
  assert traces.read_traces(path, traces.PRESETS['palign']) == given


@pytest.mark.parametrize(
    'change, match',
    [
        ({'Long-CoT': None}, r"the 'Long-CoT' is None \(NoneType\); it must"),
        ({'Long-CoT': 7}, r"the 'Long-CoT' is 7 \(int\)"),
        ({'question': ''}, "the 'question' is empty"),
        ({'answer': {}}, "'answer': the answer is {}"),
        ({'id': 'a'}, "the 'id' 'a' is that of row 1"),
        ({'question': ...}, r"no 'question' in \['Long-CoT', 'answer', 'id'\]"),
        ({'Long-CoT': ...}, "no 'Long-CoT' in"),
        ({'answer': ...}, "no 'answer' in"),
    ],
)
def test_mistakes(tmp_path, change, match):
  good = {'id': 'a', 'question': 'Q', 'answer': '1', 'Long-CoT': 'x'}
  bad = good | {'id': 'b'} | change
  bad = {key: value for key, value in bad.items() if value is not ...}
  path = write(tmp_path / 'x.jsonl', [good, bad])
  with pytest.raises(errors.DataError, match=f'x.jsonl, row 2.*{match}'):
    traces.read_traces(path, traces.PRESETS['palign'])


@pytest.mark.parametrize(
    'choice, match',
    [
        ('s2k', "config.t: no preset 's2k'; there are .'palign', 's1k'"),
        ({'question': 'q'}, 'config.t: Fields needs answer, trace, id'),
        ({'quest': 'q'}, 'config.t.quest: .* Did you mean question'),
    ],
)
def test_mistakes_in_a_mapping(choice, match):
  with pytest.raises(errors.ConfigError, match=match):
    traces.fields(choice, at='config.t')
