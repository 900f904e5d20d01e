"""The table and the figure, and what is left out of them."""

import pathlib

import pytest

from benchmarks import growth, growth_page, harness

_README = pathlib.Path(growth.__file__).parent / 'README.md'


def _rows():
  return [
      {
          'axis': 'tokens',
          'at': at,
          'fixed': '1 traces, 32 sentences',
          'case': case,
          'system': system,
          'seconds': at**power / 1e6,
          'samples': [at**power / 1e6],
          'peak_bytes': at << 20,
          'shape': 'tiny',
          'dtype': 'float32',
          'device': 'd',
          'commit': 'c',
          'versions': {'jax': '1'},
      }
      for at in (1024, 2048, 4096)
      for case, system, power in (
          ('curve', 'ours', 1),
          ('curve', 'torch_strong', 2),
      )
      if (at, system) != (4096, 'torch_strong')
  ]


def test_exponents():
  points = [(x, 3 * x**1.5) for x in (1, 2, 8)]
  assert growth_page.exponent(points) == pytest.approx(1.5)
  assert growth_page.exponent(points[:1]) is None


def test_the_page_has_a_table_and_a_figure(tmp_path):
  page = tmp_path / 'README.md'
  page.write_text(_README.read_text())
  for _ in range(2):  # The second time in place of the first.
    growth_page.write(_rows(), tmp_path, 'g')
  text = page.read_text()
  assert text.count('(results/g.svg)') == 1
  for line in (
      'The same at all points: 1 traces, 32 sentences.',
      'commit c. A cell is seconds (one run after warm-up), then peak',
      '| exponent of seconds, all points | 1.00 | 2.00 |',
      '| exponent of seconds, last two | 1.00 | 2.00 |',
      '| exponent of memory, all points | 1.00 | 1.00 |',
      '| exponent of memory, last two | 1.00 | 1.00 |',
  ):
    assert line in text
  assert '| 4,096 | 0.00, 4.00 | left out |' in text
  assert text.startswith(_README.read_text().partition('<!--')[0])
  assert '<svg' in (tmp_path / 'results' / 'g.svg').read_text()


def test_what_would_take_too_long_is_left_out(monkeypatch):
  args = growth.parse(['--shape=tiny', '--axes', 'tokens', '--most=4096'])
  spec = lambda system: harness.Spec('curve', system, '', {})
  seen, rows = [], []

  def points(args, axis, folder):
    yield from ((at, [spec('ours'), spec('torch_strong')]) for at in (1, 2, 4))

  def measure(specs, repetitions):
    seen.append([s.system for s in specs])
    slow = {'ours': 1.0, 'torch_strong': args.most_s / 3}
    return [
        harness.Measured(s, 0, (slow[s.system],), {'tokens': 1}, 1)
        for s in specs
    ]

  monkeypatch.setattr(growth, 'points', points)
  monkeypatch.setattr(growth.harness, 'measure', measure)
  growth.grow(args, 'tokens', '', rows.extend)
  assert seen == [['ours', 'torch_strong'], ['ours'], ['ours']]
  assert [row['at'] for row in rows] == [1, 1, 2, 4]


def test_points_stop_where_they_are_told():
  flags = ['--shape=tiny', '--axes', 'traces', '--most=2']
  found = list(growth.points(growth.parse(flags), 'traces', 'folder'))
  assert [at for at, _ in found] == [1, 2]
  names = [(spec.case, spec.system) for spec in found[0][1]]
  assert names == [
      (case, system)
      for case in ('curve', 'binary')
      for system in ('ours', 'torch_strong')
  ]


def test_of_one_point_there_is_no_exponent():
  rows = [row for row in _rows() if row['at'] == 1024 or row['at'] == 4096]
  table = growth_page.tables(rows)[-1]  # PyTorch has the first point only.
  assert '| exponent of seconds, all points | 1.00 | one point |' in table
  assert '| exponent of memory, last two | 1.00 | one point |' in table


def test_seconds_of_a_part_are_told_as_those_of_all():
  """`generate` draws one batch: its rate counts, at every number of rows."""
  change = {'axis': 'rows', 'case': 'mixed'}
  rows = [row | change for row in _rows()]
  for row in rows:
    row['at'] //= 128
    if row['system'] == 'torch_strong':
      part = row['at'] / 64
      row |= {'seconds': 100 * part, 'tokens': 6400 * part, 'all_tokens': 6400}
  about, _, _, table = growth_page.tables(rows)
  assert 'Where a cell begins with ~' in about
  assert '| 8 | 0.00, 1.00 | ~100.00, 1.00 |' in table
  assert '| 16 | 0.00, 2.00 | ~100.00, 2.00 |' in table
  assert '| exponent of seconds, all points | 1.00 | 0.00 |' in table


def test_commits_are_those_of_all_rows():
  rows = _rows()
  rows[-1]['commit'] = 'later'
  assert '; commit c, later. ' in growth_page.tables(rows)[0]


def test_generate_gets_one_batch_of_its_rows():
  flags = ['--shape=tiny', '--axes', 'rows', '--most=16']
  for at, specs in growth.points(growth.parse(flags), 'rows', 'folder'):
    ours, generate = (spec.options for spec in specs)
    assert ours['num_rows'] == generate['few'] == at
    assert generate['batches'] == (at,)
    assert len(generate['requests']) == len(ours['requests']) == 64
  assert at == 16
