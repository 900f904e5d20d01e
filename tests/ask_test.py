"""One question, one answer, the same for the same seed; errors in a line."""

import pytest

from palign_jax import ask
from tests import fakes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return str(fakes.model_folder(tmp_path_factory.mktemp('ask') / 'model'))


def test_answers(folder, capsys):
  command = [f'--model={folder}', '--prompt=brief', '--max_tokens=20']
  answers = []
  for seed in (0, 0, 1):
    assert ask.main([*command, f'--seed={seed}', 'What is 1 plus 1?']) == 0
    answers.append(capsys.readouterr().out)
  assert answers[0] == answers[1] != answers[2]
  assert all(a.endswith('\n') for a in answers) and max(map(len, answers)) > 1


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--model=/no/such/folder'], '/no/such/folder'),
        (['--prompt=polite'], "answer prompt 'polite': no such prompt"),
        (['--top_p=0'], 'sampling.top_p is 0.0; it must be above 0'),
        (['--max_tokens=0'], 'max_tokens 0; both must be at least 1'),
    ],
)
def test_errors_are_one_line(folder, capsys, flags, message):
  assert ask.main([f'--model={folder}', *flags, 'Why?']) == 1
  out, err = capsys.readouterr()
  assert not out and err.count('\n') == 1
  assert err.startswith('error: ') and message in err


def test_a_question_without_room(folder, capsys):
  assert ask.main([f'--model={folder}', 'why ' * 600]) == 1
  assert 'has room for 512; ask a shorter one' in capsys.readouterr().err
