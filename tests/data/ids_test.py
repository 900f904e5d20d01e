"""Each row has one id, its own or its index, and none has another's."""

import pytest

from palign_jax.core import errors
from palign_jax.data import ids


@pytest.mark.parametrize(
    'rows, field, names',
    [
        ([{'id': 'a'}, {'id': 7}], 'id', ['a', '7']),
        ([{}, {}], 'id', ['0', '1']),
        ([{'id': 'a'}, {'id': 'b'}], '', ['0', '1']),
        ([{'key': 'a'}], 'key', ['a']),
    ],
)
def test_assign(rows, field, names):
  assert ids.assign(rows, field, source='f') == names


@pytest.mark.parametrize(
    'rows, match',
    [
        ([{'id': 1}, {'id': '1'}], "f, row 2: the 'id' '1' is that of row 1"),
        ([{'id': 1}, {}], "f, row 2: no 'id' in"),
        ([{'id': 1.5}], r"f, row 1: the 'id' is 1.5 \(float\)"),
        ([{'id': None}], r"f, row 1: the 'id' is None \(NoneType\)"),
    ],
)
def test_mistakes(rows, match):
  with pytest.raises(errors.DataError, match=match):
    ids.assign(rows, 'id', source='f')


def test_a_field_that_was_chosen_must_be_there():
  with pytest.raises(errors.DataError, match="f, row 1: no 'key' in .'a'"):
    ids.assign([{'a': 1}], 'key', source='f')
