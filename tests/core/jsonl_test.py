"""JSON Lines come back as written, broken ones are named, files stay whole."""

import json
import os

from etils import epath
from hypothesis import given, settings, strategies as st
import pytest

from palign_jax.core import errors, jsonl

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates, too, which JSON can hold and UTF-8 cannot.
    | st.text(st.characters(codec=None, exclude_categories=[])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@settings(deadline=None)
@given(row=st.dictionaries(st.text(), VALUES))
def test_one_line_comes_back(row):
  line = jsonl.dumps(row)
  assert json.loads(line.encode()) == row
  assert len(line.encode().splitlines()) == 1


@settings(deadline=None, max_examples=10)  # Each waits for the disk.
@given(rows=st.lists(st.dictionaries(st.text(), VALUES), min_size=1))
def test_round_trip(tmp_path_factory, rows):
  path = tmp_path_factory.getbasetemp() / 'rows.jsonl'
  jsonl.write(path, rows)
  assert jsonl.read(path) == rows


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
  path = tmp_path / 'a.jsonl'
  path.write_text('{}')

  def fail(_):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(type(epath.Path(path)), 'read_bytes', fail)
  with pytest.raises(
      errors.DataError, match=r'a.jsonl: cannot be read \(Input/output error\)'
  ):
    jsonl.read(path)


def test_bytes_by_hand(tmp_path):
  path = tmp_path / 'new' / 'a.jsonl'
  jsonl.write(path, [{'a': 'é\u2028\n'}, {'b': '\ud800'}, {}])
  want = '{"a": "é\u2028\\n"}\n{"b": "\\ud800"}\n{}\n'
  assert path.read_bytes() == want.encode()


def test_reads_blank_lines_and_both_line_ends(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\n{"a": 1}\r\n  \n{"b": "x"}')
  assert jsonl.read(path) == [{'a': 1}, {'b': 'x'}]


@pytest.mark.parametrize(
    'data, match',
    [
        (b'', 'a.jsonl: the file has no rows'),
        (b' \n\n', 'a.jsonl: the file has no rows'),
        (
            b'{"a": 1}\n\n{"a": \n',
            r'a.jsonl, line 3: no valid JSON \(Expecting value at column 7\);'
            ' each line must be one object',
        ),
        (b'{}\n[1]\n', 'line 2: a list; each line must be one object'),
        (b'{}\n"a"', 'line 2: a str; each line must be one object'),
        (b'{"a": "\xff"}\n', 'byte 7 is not UTF-8; save the file as UTF-8'),
    ],
)
def test_what_cannot_be_read(tmp_path, data, match):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(data)
  with pytest.raises(errors.DataError, match=match) as caught:
    jsonl.read(path)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_missing_file(tmp_path):
  with pytest.raises(errors.DataError, match=r'none\.jsonl: no such file'):
    jsonl.read(tmp_path / 'none.jsonl')


def test_nan_is_refused_and_nothing_changes(tmp_path):
  path = tmp_path / 'a.jsonl'
  jsonl.write(path, [{'a': 1}])
  with pytest.raises(ValueError, match='not JSON compliant'):
    jsonl.write(path, [{'a': 2}, {'a': float('nan')}])
  assert jsonl.read(path) == [{'a': 1}]


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, step):
  path = tmp_path / 'a.jsonl'
  jsonl.write(path, [{'a': 1}])

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, step, full)
  match = (
      r'a\.jsonl: cannot be written \(No space left on device\); nothing in'
      ' its place was changed'
  )
  with pytest.raises(errors.DataError, match=match):
    jsonl.write(path, [{'a': 2}])
  assert jsonl.read(path) == [{'a': 1}]
  assert os.listdir(tmp_path) == ['a.jsonl']  # No leftovers either.


def test_a_folder_in_the_way(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.DataError, match='cannot be written'):
    jsonl.write(tmp_path / 'file' / 'a.jsonl', [{}])
  (tmp_path / 'a.jsonl').mkdir()
  with pytest.raises(errors.DataError, match='cannot be written'):
    jsonl.write(tmp_path / 'a.jsonl', [{}])


def test_nan_is_no_json(tmp_path):
  (tmp_path / 'x.jsonl').write_text('{"a": 1}\n{"a": NaN}\n')
  with pytest.raises(errors.DataError, match='line 2: no valid JSON .NaN is'):
    jsonl.read(tmp_path / 'x.jsonl')
