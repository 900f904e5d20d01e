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
          'case': case,
          'system': system,
          'seconds': at**power / 1e6,
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
  assert '| exponent, all | 1.00 | 2.00 |' in text
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
