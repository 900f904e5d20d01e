"""Progress counts what was done, and says so seldom where nobody watches."""

import pytest
import rich.console

from palign_jax.core import progress


def test_lines_are_five_seconds_apart_and_one_ends():
  now, written = [100.0], []
  lines = progress.Lines(
      'judging', 10, clock=lambda: now[0], write=written.append
  )
  for _ in range(10):
    now[0] += 1.5
    lines.advance(1)
  assert written == ['judging: 4/10, 0:00:06', 'judging: 8/10, 0:00:12']
  now[0] += 3700
  lines.finish()
  assert written[2:] == ['judging: 10/10, 1:01:55']


def test_lines_without_total():
  written = []
  lines = progress.Lines('rows', None, clock=lambda: 0.0, write=written.append)
  lines.advance(3)
  lines.advance(4)
  lines.finish()
  assert written == ['rows: 7, 0:00:00']


def test_track_off_a_terminal(capsys):
  assert list(progress.track(['a', 'b'], 'letters')) == ['a', 'b']
  assert list(progress.track(iter('abc'), 'more', total=3)) == ['a', 'b', 'c']
  out, err = capsys.readouterr()
  assert out == ''
  assert err == 'letters: 2/2, 0:00:00\nmore: 3/3, 0:00:00\n'


def test_the_last_line_comes_also_after_an_error(capsys):
  with pytest.raises(ZeroDivisionError, match='by zero'):
    with progress.bar('dividing', 5) as advance:
      advance(2)
      _ = 1 // 0
  assert capsys.readouterr().err == 'dividing: 2/5, 0:00:00\n'


def test_bar_on_a_terminal(capsys, monkeypatch):
  real = rich.console.Console
  monkeypatch.setattr(
      rich.console,
      'Console',
      lambda **kwargs: real(force_terminal=True, width=79, **kwargs),
  )
  with progress.bar('judging [a]', 4) as outer:
    assert list(progress.track([1, 2], 'inner')) == [1, 2]
    outer(4)
  out, err = capsys.readouterr()
  assert out == ''
  assert 'judging [a]' in err and '4/4' in err and 'inner' in err
