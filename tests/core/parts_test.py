"""A row is safe once its part is written, and the file is that of the input."""

from concurrent import futures

import pytest

from palign_jax.core import (
    errors,
    jsonl,
    parts as parts_lib,
    peers as peers_lib,
    stopping,
)
from tests import fakes


def open_(file, max_rows=2, peers=None):
  key = lambda row: str(row['id'])
  peers = peers or peers_lib.Alone()
  return parts_lib.Parts(file, key=key, max_rows=max_rows, peers=peers)


def names(folder):
  return sorted(p.name for p in folder.iterdir())


def test_parts_are_written_whole_and_merged_in_the_order_of_the_input(tmp_path):
  file, folder = tmp_path / 'a' / 'rows.jsonl', tmp_path / 'a/rows.jsonl.parts'
  with open_(file) as parts:
    for i in (3, 1, 2):
      parts.add({'id': i})
    assert names(folder) == ['000-00000.jsonl']  # The third waits.
    *rows, tally = jsonl.read(folder / '000-00000.jsonl')
    assert rows == [{'id': 3}, {'id': 1}] and tally.keys() == {'_tally'}
    assert '2' in parts and '4' not in parts
    assert not file.exists()
    parts.merge(parts.rows(['1', '2', '3']))
  assert file.read_text() == '{"id": 1}\n{"id": 2}\n{"id": 3}\n'
  # They stay until the stage has told that it is finished.
  assert names(tmp_path / 'a') == ['rows.jsonl', 'rows.jsonl.parts']


def test_a_new_process_has_the_rows_of_all_parts_and_adds_to_them(tmp_path):
  file, folder = tmp_path / 'rows.jsonl', tmp_path / 'rows.jsonl.parts'
  first = open_(file)
  for i in range(5):
    first.add({'id': i, 'by': 'first'})
  del first  # Killed: row 4 was not written.
  (folder / '.000-00002.jsonl.77.tmp').write_text('{"id": 4, "by": "fi')
  with open_(file) as second:
    assert [str(i) in second for i in range(5)] == [True] * 4 + [False]
    second.add({'id': 4, 'by': 'second'})
  assert names(folder)[1:] == [f'000-0000{i}.jsonl' for i in range(3)]
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


def test_parts_of_a_version_without_hosts_are_read(tmp_path):
  folder = tmp_path / 'rows.jsonl.parts'
  jsonl.write(folder / '00000.jsonl', [{'id': 1}, {'id': 2}])
  parts = open_(tmp_path / 'rows.jsonl')
  parts.add({'id': 3})
  parts.flush()
  assert parts.rows('123') == [{'id': 1}, {'id': 2}, {'id': 3}]
  assert names(folder) == ['000-00000.jsonl', '00000.jsonl']


def test_what_rows_took_adds_up_over_sessions(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(parts_lib.time, 'monotonic', lambda: now[0])
  file = tmp_path / 'rows.jsonl'
  with open_(file) as first:
    now[0] += 3
    first.add({'id': 1}, tokens=10)
    first.add({'id': 2}, tokens=5)
  now[0] += 1000  # Between the sessions.
  with open_(file) as second:
    now[0] += 4
    second.add({'id': 3}, tokens=1, probes=2)
    second.gather()
    second.merge(second.rows('123'))
    want = {'tokens': 16, 'probes': 2, 'seconds': 7}
    assert second.totals() == want
  assert parts_lib.totals(file) == want
  assert parts_lib.num_rows(parts_lib.folder(file)) == 3


def test_how_many_rows_came_before_something_was_counted(tmp_path):
  file = tmp_path / 'rows.jsonl'
  for process, counted in ((0, [0, 0, 2, 0]), (1, [0, 0, 0]), (2, [1, 0])):
    peers = fakes.Peers.team(3)[process]
    with open_(file, max_rows=1, peers=peers) as parts:
      for i, number in enumerate(counted):
        parts.add({'id': f'{process}{i}'}, halved=number)
      # What this process has written, and what it has read.
      assert parts.num_before(['narrowed', 'halved']) == [2, 5, 5][process]
      assert parts.num_before(['narrowed']) == [4, 7, 9][process]


def together(file, *hosts):
  """Runs a function on each of some hosts, as threads; returns the results."""
  with futures.ThreadPoolExecutor(len(hosts)) as pool:
    team = fakes.Peers.team(len(hosts))
    calls = [
        pool.submit(host, open_(file, peers=one))
        for host, one in zip(hosts, team, strict=True)
    ]
    return [call.result() for call in calls]


def host(*mine, fail=False):
  def run(parts):
    with parts:
      for i in mine:
        if str(i) not in parts:
          parts.add({'id': i, 'by': parts._peers.index}, tokens=i)
      if fail:
        return None
      parts.gather()
      parts.merge(parts.rows('12345'))
      return parts.totals()['tokens']

  return run


def test_each_host_writes_parts_of_its_own_and_one_file_comes_of_them(tmp_path):
  file = tmp_path / 'rows.jsonl'
  assert together(file, host(1, 3, 5), host(2, 4)) == [15, 15]
  assert [row['by'] for row in jsonl.read(file)] == [0, 1, 0, 1, 0]
  folder = parts_lib.folder(file)
  assert {name[:4] for name in names(folder)} == {'000-', '001-'}


def test_another_number_of_hosts_goes_on(tmp_path):
  file = tmp_path / 'rows.jsonl'
  together(file, host(1, fail=True), host(2, 5, fail=True))
  with open_(file) as alone:
    assert host(1, 2, 3, 4, 5)(alone) == 15
  assert [row['by'] for row in jsonl.read(file)] == [0, 1, 0, 0, 1]


def test_a_workdir_that_another_host_does_not_see(tmp_path, monkeypatch):
  monkeypatch.setattr(parts_lib, '_SHOW_UP_S', 0.0)
  one, two = fakes.Peers.team(2)
  here = open_(tmp_path / 'here/rows.jsonl', peers=one)
  there = open_(tmp_path / 'there/rows.jsonl', peers=two)
  there.add({'id': 2})
  with futures.ThreadPoolExecutor(2) as pool:
    waiting = pool.submit(here.gather)
    there.gather()
    with pytest.raises(errors.DataError, match='all hosts share'):
      waiting.result()


def test_a_row_is_safe_when_the_process_is_told_to_end(tmp_path):
  stopping.ask()
  try:
    with pytest.raises(stopping.Stopped), open_(tmp_path / 'a.jsonl') as parts:
      parts.add({'id': 1})
  finally:
    stopping.forget()
  assert '1' in open_(tmp_path / 'a.jsonl')
