"""What the tokenizer does for a trace, in rows of the common format."""

import json

import pytest

from benchmarks import rows as rows_lib, tokenizing


def test_rows_count_in_encodings_of_the_trace(tmp_path, monkeypatch, capsys):
  seen = []
  trunk = tokenizing.trunk_lib.Trunk

  class Noted(trunk):

    def __init__(self, *args):
      super().__init__(*args)
      seen.append(args[-1])

    def tails(self, lengths):
      assert list(lengths) == list(range(1, len(seen[-1]) + 1))
      return super().tails(lengths)

  monkeypatch.setattr(tokenizing.trunk_lib, 'Trunk', Noted)
  file = tmp_path / 'rows.json'
  flags = ['--tokens=250', '--repetitions=2', f'--json={file}']
  args = tokenizing.parse(flags)
  rows = tokenizing.run(args)
  names = [
      f'{n} cuts: {case}'
      for n in (16, 32, 64, 128)
      for case in ('encoding', 'trunk', 'tails')
  ]
  assert [row['case'] for row in rows] == names
  # A warm-up and two repetitions of each, all of the same trunk.
  assert [len(ends) for ends in seen] == [
      n for n in (16, 32, 64, 128) for _ in range(3)
  ]
  assert len({ends[-1] for ends in seen}) == 1
  assert 240 <= rows[0]['tokens'] <= 260
  for row in rows:
    assert row['tokens'] == rows[0]['tokens'] and len(row['samples']) == 2
    assert row['times_encoding'] > 0 and row['commit']
  assert {row['times_encoding'] for row in rows[::3]} == {1}
  rows_lib.show(rows)
  assert '128 cuts: tails' in capsys.readouterr().out
  rows_lib.write(rows, args.json)
  assert [json.loads(line) for line in file.read_text().splitlines()] == rows


def test_traces_need_their_tokenizer(capsys):
  with pytest.raises(SystemExit):
    tokenizing.parse(['--traces=x'])
  assert 'come together' in capsys.readouterr().err
