"""The step is divided as said, and where sending takes over is named."""

import pytest

from benchmarks import sft_scaling
from palign_jax.planning import roofline
from tests.planning import small


def made(chips, compute, ici):
  return {
      'chips': chips,
      'compute_s': compute,
      'ici_s': ici,
      'collective_bytes': {'fsdp': 1},
      'mesh': {'data': 1, 'fsdp': chips, 'tensor': 1, 'sequence': 1},
      'rows': 32,
      'row_tokens': 64,
      'topology': f'v6e:{chips}',
      'flops': 1e12,
      'need_bytes': 1,
      'fits': True,
      'case': 'lora',
      'model': 'm',
      'bench': 'sft_scaling',
  }


def test_where_sending_takes_over():
  rows = [made(1, 4.0, 0.0), made(2, 2.0, 1.0), made(4, 1.0, 1.5)]
  assert sft_scaling.crossing(rows).startswith(
      'Communication overtakes computing at 4 chips (fsdp 4; 512 tokens each)'
  )
  assert 'Up to 2 chips' in sft_scaling.crossing(rows[:2])
  unknown = made(8, 0.5, 9.0) | {'collective_bytes': None}
  assert 'Up to 2 chips' in sft_scaling.crossing([*rows[:2], unknown])


def test_rows_go_over_fsdp_then_tokens_over_sequence():
  args = sft_scaling.parse(['--rows=8', '--tokens=256'])
  mesh = lambda chips: sft_scaling.settings(args, chips).mesh
  assert (mesh(4)['fsdp'], mesh(4)['sequence']) == (4, 1)
  assert (mesh(64)['fsdp'], mesh(64)['sequence']) == (8, 8)


def test_a_compiled_step(tmp_path, capsys, monkeypatch):
  # Devices of a CPU have no place in a torus.
  monkeypatch.setattr(roofline, 'bandwidth', lambda *args: 1e9)
  small.config(tmp_path)  # Writes the model's config.json.
  args = sft_scaling.parse(['--rows=2', '--tokens=256', f'--model={tmp_path}'])
  rows = [
      sft_scaling.row(args, chips, small.slice_of(chips)) for chips in (2, 4)
  ]
  assert rows[1]['flops'] == pytest.approx(rows[0]['flops'] / 2)
  assert rows[0]['collective_bytes']['fsdp'] > 0
  assert any('sequence' in axis for axis in rows[1]['collective_bytes'])
  sft_scaling.show(rows)
  assert 'comput' in capsys.readouterr().out
  sft_scaling.draw(rows, tmp_path / 'figure.svg')
  assert (tmp_path / 'figure.svg').read_text().startswith('<?xml')
