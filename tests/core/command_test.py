"""What a user can mend is one line and exit status 1; the rest has its trace.

Flags are parsed in processes of their own, in tests/main_test.py.
"""

import errno

import pytest

from palign_jax.core import command, errors, peers


def test_our_errors_are_one_line():
  with pytest.raises(SystemExit, match='^Error: a.jsonl: no such file.$'):
    with command.one_line_errors():
      raise errors.DataError('a.jsonl: no such file.')


def test_a_full_disk_names_the_file():
  message = '^Error: /run/a: No space left; mend this and run the same command'
  with pytest.raises(SystemExit, match=message):
    with command.one_line_errors():
      raise OSError(errno.ENOSPC, 'No space left', '/run/a')


def test_a_process_that_is_lost_is_no_error_of_this_one(capsys):
  with pytest.raises(SystemExit) as e, command.one_line_errors():
    raise peers.PeerLost('host 0 does not answer')
  assert e.value.code == peers.LOST == 134
  assert capsys.readouterr().err == (
      'Error: host 0 does not answer; finished work is kept, start all'
      ' processes again.\n'
  )


def test_bugs_keep_their_trace():
  with pytest.raises(KeyError, match='x'), command.one_line_errors():
    raise KeyError('x')


def test_nothing_happens_to_what_goes_well():
  with command.one_line_errors():
    pass
