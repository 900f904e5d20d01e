"""The labels part at a token, or the config is told why not."""

import pytest

from palign_jax.core import errors
from palign_jax.judging import labels
from palign_jax.text import prompts, tokenizer as tokenizer_lib
from tests import fakes


class Spelling:
  """A tokenizer that knows two texts."""

  name = 'folder'

  def __init__(self, enough, not_enough, back=None):
    self._ids = {prompts.ENOUGH: enough, prompts.NOT_ENOUGH: not_enough}
    self._back = {tuple(ids): text for text, ids in self._ids.items()}
    self._back |= back or {}

  def encode(self, text):
    return self._ids[text]

  def decode(self, ids, skip_specials):
    assert not skip_specials
    return self._back[tuple(ids)]


find = getattr(labels.find, '__wrapped__', labels.find)


def test_a_real_tokenizer(tmp_path):
  tokenizer = tokenizer_lib.load(fakes.tokenizer_folder(tmp_path))
  found = labels.find(tokenizer)
  yes, no = map(tokenizer.encode, (prompts.ENOUGH, prompts.NOT_ENOUGH))
  num = len(found.shared)
  assert tokenizer.decode(found.shared) == '['
  assert list(found.shared) == yes[:num] == no[:num]
  assert (found.yes, found.no) == (yes[num], no[num]) and found.yes != found.no


@pytest.mark.parametrize(
    'yes, no, expected',
    [
        ([1, 2, 3], [1, 4, 3], labels.Labels((1,), 2, 4)),
        ([1], [2], labels.Labels((), 1, 2)),
        ([1, 2, 3], [1, 2, 4, 5], labels.Labels((1, 2), 3, 4)),
    ],
)
def test_where_they_part(yes, no, expected):
  assert find(Spelling(yes, no)) == expected


CURE = (
    "; take another student, or set config.truncate.verdict='generate' and"
    ' config.truncate.yardstick.traces=0.'
)


@pytest.mark.parametrize('yes, no', [([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2])])
def test_one_that_begins_the_other_tells_nothing_apart(yes, no):
  with pytest.raises(errors.ConfigError) as e:
    find(Spelling(yes, no))
  assert str(e.value).startswith('config.student.path: in the tokens of folder')
  assert str(e.value).endswith('that no token tells them apart' + CURE)


def test_both_written_alike():
  spelling = Spelling([1, 2], [1, 2], {(1, 2): prompts.NOT_ENOUGH})
  with pytest.raises(errors.ConfigError, match=r'\[ENOUGH\], which comes back'):
    find(spelling)


@pytest.mark.parametrize('back', ['<unk>ENOUGH<unk>', 'ENOUGH', ''])
def test_a_vocabulary_that_cannot_spell_a_label(back):
  spelling = Spelling([0, 2, 0], [1, 3], {(0, 2, 0): back})
  with pytest.raises(errors.ConfigError) as e:
    find(spelling)
  assert 'config.student.path' in str(e.value) and '[ENOUGH]' in str(e.value)
  assert str(e.value).endswith(f'comes back as {back!r}' + CURE)


def test_white_space_and_case_may_be_lost():
  spelling = Spelling([1, 2], [3, 4], {(1, 2): ' [enough]'})
  assert find(spelling) == labels.Labels((), 1, 3)
