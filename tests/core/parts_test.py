"""A row is safe once its part is written, and the file is that of the input."""

import pytest

from palign_jax.core import errors, jsonl, parts as parts_lib


def open_(file, max_rows=2):
  key = lambda row: str(row['id'])
  return parts_lib.Parts(file, key=key, max_rows=max_rows)


def names(folder):
  return sorted(p.name for p in folder.iterdir())


def test_parts_are_written_whole_and_merged_in_the_order_of_the_input(tmp_path):
  file, folder = tmp_path / 'a' / 'rows.jsonl', tmp_path / 'a/rows.jsonl.parts'
  with open_(file) as parts:
    for i in (3, 1, 2):
      parts.add({'id': i})
    assert names(folder) == ['00000.jsonl']  # The third waits.
    assert jsonl.read(folder / '00000.jsonl') == [{'id': 3}, {'id': 1}]
    assert '2' in parts and '4' not in parts
    assert not file.exists()
    parts.merge(parts.rows(['1', '2', '3']))
  assert file.read_text() == '{"id": 1}\n{"id": 2}\n{"id": 3}\n'
  assert names(tmp_path / 'a') == ['rows.jsonl']


def test_a_new_process_has_the_rows_of_all_parts_and_adds_to_them(tmp_path):
  file, folder = tmp_path / 'rows.jsonl', tmp_path / 'rows.jsonl.parts'
  first = open_(file)
  for i in range(5):
    first.add({'id': i, 'by': 'first'})
  del first  # Killed: row 4 was not written.
  (folder / '.00002.jsonl.77.tmp').write_text('{"id": 4, "by": "fi')
  with open_(file) as second:
    assert [str(i) in second for i in range(5)] == [True] * 4 + [False]
    second.add({'id': 4, 'by': 'second'})
  assert names(folder)[1:] == ['00000.jsonl', '00001.jsonl', '00002.jsonl']
  with open_(file) as third:
    by = [row['by'] for row in third.rows('01234')]
  assert by == ['first'] * 4 + ['second']


def test_leaving_with_an_error_writes_what_waits(tmp_path):
  file = tmp_path / 'rows.jsonl'
  with pytest.raises(KeyError, match='no'), open_(file) as parts:
    parts.add({'id': 1})
    raise KeyError('no')
  assert '1' in open_(file)
  assert not file.exists()


def test_waiting_rows_are_written_after_a_while(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(parts_lib.time, 'monotonic', lambda: now[0])
  parts = open_(tmp_path / 'rows.jsonl', max_rows=100)
  parts.add({'id': 1})
  assert '1' not in open_(tmp_path / 'rows.jsonl')
  now[0] = 21.0
  parts.add({'id': 2})
  again = open_(tmp_path / 'rows.jsonl')
  assert '1' in again and '2' in again


def test_no_rows_make_an_empty_file(tmp_path):
  with open_(tmp_path / 'rows.jsonl') as parts:
    parts.merge(parts.rows([]))
  assert (tmp_path / 'rows.jsonl').read_bytes() == b''
  assert names(tmp_path) == ['rows.jsonl']


def test_a_broken_part_is_an_error_that_names_it(tmp_path):
  folder = tmp_path / 'rows.jsonl.parts'
  folder.mkdir()
  (folder / '00000.jsonl').write_text('{"id": 1}\n{"id"\n')
  with pytest.raises(errors.DataError, match='00000.jsonl, line 2: no valid'):
    open_(tmp_path / 'rows.jsonl')
