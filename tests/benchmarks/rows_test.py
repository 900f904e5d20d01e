"""What a row says of a measurement."""

import json

from benchmarks import harness, rows

_FIELDS = (
    'bench case system seconds tokens_per_s times_trunk speedup useful'
    ' peak_bytes device commit'
)


def _measured(case, system, tokens, *samples, **facts):
  spec = harness.Spec(case, system, '', {})
  facts = {'tokens': tokens, **facts}
  return harness.Measured(spec, 3.0, samples, facts, 1 << 30)


def _rows():
  extra = {'device': 'd', 'commit': 'c', 'versions': {}, 'shape': 's'}
  return rows.make(
      'judge',
      [
          _measured('trunk', 'ours', 100, 1.0, 2.0, 9.0),
          _measured('trunk', 'torch_strong', 100, 4.0),
          _measured('binary', 'ours', 100, 3.0, useful=0.5, probes={'t': [1]}),
          # Half the traces.
          _measured('binary', 'torch_strong', 50, 6.0, note='few'),
      ],
      extra | {'dtype': 'float32'},
  )


def test_ratios_are_of_rates_and_seconds_are_medians():
  trunk, slow, ours, strong = _rows()
  assert trunk['seconds'] == 2.0
  assert (trunk['times_trunk'], slow['times_trunk']) == (1, 2)
  assert ours['times_trunk'] == 1.5
  assert (ours['speedup'], strong['speedup']) == (1, 4)
  assert (ours['useful'], strong['useful']) == (0.5, None)
  assert set(_FIELDS.split()) <= set(ours)
  assert 'probes' not in ours


def test_rows_are_json_lines_on_screen_and_on_disk(tmp_path, capsys):
  found = _rows()
  rows.show(found)
  rows.write(found, str(tmp_path / 'new' / 'rows.json'))
  lines = (tmp_path / 'new' / 'rows.json').read_text().splitlines()
  assert [json.loads(line) for line in lines] == found
  out = capsys.readouterr().out
  assert all(line in out for line in lines)
  assert '4.00x as fast' in out
  rows.write(found, None)
