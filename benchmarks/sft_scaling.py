"""How a fine-tuning step divides among 1 to 256 chips, from compiled programs.

  python -m benchmarks.sft_scaling [--method=full] [--json=FILE] [--figure=FILE]

The step is compiled for slices of TPUs that are not here (libtpu; see
palign_jax/plan.py); nothing is run.  The batch stays the same: rows go over
fsdp while there are more rows than chips, then the tokens of each row over
sequence.  Per chip: FLOPs by formula, bytes sent from the partitioned program,
and the seconds that either takes at least, at the vendor's numbers.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
from typing import Any

import matplotlib

matplotlib.use('Agg')
import jax
import matplotlib.pyplot as plt
import rich.console
import rich.table

from benchmarks import harness, rows as rows_lib
from configs import common
from palign_jax.core import command
from palign_jax.planning import cases, steps, topology as topology_lib
from palign_jax.stages import settings as settings_lib, validation

SLICES = {
    1: '1x1',
    4: '2x2',
    8: '2x4',
    16: '4x4',
    32: '4x8',
    64: '8x8',
    128: '8x16',
    256: '16x16',
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(usage=__doc__)
  add = parser.add_argument
  add('--model', default='Qwen/Qwen2.5-7B-Instruct', help='See presets.py.')
  add('--chip', default='v6e', choices=('v5e', 'v6e'))
  add('--method', default='lora', choices=('lora', 'full'))
  add('--rows', type=int, default=32, help='Of a step.')
  add('--tokens', type=int, default=8192, help='Of a row.')
  add('--chips', type=int, nargs='+', default=list(SLICES), choices=SLICES)
  add('--json', help='Also writes the rows there.')
  add('--figure', help='Also draws them there, as SVG.')
  return parser.parse_args(argv)


def settings(args: argparse.Namespace, chips: int) -> settings_lib.Settings:
  """Returns the config of a step on so many chips."""
  config = common.base()
  fsdp = min(chips, args.rows)
  config.mesh.update(data=1, fsdp=fsdp, tensor=1, sequence=chips // fsdp)
  config.student.path = args.model
  config.sft.update(
      method=args.method, batch_size=args.rows, max_tokens=args.tokens
  )
  return validation.read(config.to_dict())


def row(
    args: argparse.Namespace, chips: int, slice_: topology_lib.Topology
) -> dict[str, Any]:
  """Compiles the step for a slice; returns what it takes of a chip."""
  case = cases.make(settings(args, chips), slice_)
  step = steps.make(case, 'sft')
  bounds = step.roofline
  return {
      'bench': 'sft_scaling',
      'case': args.method,
      'model': args.model,
      'topology': slice_.name,
      'chips': chips,
      'mesh': dict(case.train_mesh.shape),
      'rows': args.rows,
      'row_tokens': args.tokens,
      'flops': step.flops,
      'collective_bytes': step.collective_bytes,
      'compute_s': bounds.compute,
      'ici_s': sum(bounds.ici.values()),
      'hbm_s': bounds.hbm,
      'need_bytes': step.need,
      'fits': step.fits,
      'note': step.note,
  }


def crossing(rows: Sequence[dict[str, Any]]) -> str:
  """Returns from where on sending takes longer than computing."""
  known = [r for r in rows if r['collective_bytes'] is not None]
  over = [r for r in known if r['ici_s'] > r['compute_s']]
  if not over:
    most = max(r['chips'] for r in known)
    return f'Up to {most} chips computing takes longer than communication.'
  first = min(over, key=lambda r: r['chips'])
  mesh = ', '.join(f'{k} {v}' for k, v in first['mesh'].items() if v > 1)
  tokens = first['rows'] * first['row_tokens'] // first['chips']
  return (
      f'Communication overtakes computing at {first["chips"]} chips ({mesh};'
      f' {tokens:,} tokens each): {first["ici_s"]:.3f} s against'
      f' {first["compute_s"]:.3f} s.'
  )


def show(rows: Sequence[dict[str, Any]]) -> None:
  """Prints a table, the point where the two meet, and JSON lines."""
  first = rows[0]
  table = rich.table.Table(
      title=f'{first["model"]}, {first["case"]}, {first["rows"]} rows of'
      f' {first["row_tokens"]} tokens, per chip'
  )
  columns = ('slice', 'fsdp', 'sequence', 'TFLOP', 'GB sent', 'compute s')
  for name in (*columns, 'sending s', 'GiB', 'fits'):
    table.add_column(name, justify='right')
  for r in rows:
    sent = r['collective_bytes']
    table.add_row(
        r['topology'],
        str(r['mesh']['fsdp']),
        str(r['mesh']['sequence']),
        f'{r["flops"] / 1e12:.1f}',
        '?' if sent is None else f'{sum(sent.values()) / 1e9:.2f}',
        f'{r["compute_s"]:.3f}',
        '?' if sent is None else f'{r["ici_s"]:.3f}',
        f'{r["need_bytes"] / 2**30:.1f}',
        'yes' if r['fits'] else 'no',
    )
  rich.console.Console(width=120).print(table)
  print(crossing(rows))
  for r in rows:
    print(json.dumps(r))


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
  """Draws seconds of computing and of sending over chips."""
  style = {'svg.hashsalt': 'scaling', 'font.size': 9, 'svg.fonttype': 'none'}
  known = [r for r in rows if r['collective_bytes'] is not None]
  chips = [r['chips'] for r in known]
  with plt.rc_context(style):
    figure, ax = plt.subplots(figsize=(5, 3.4))
    for field, label, color in (
        ('compute_s', 'computing', '#3465a4'),
        ('ici_s', 'sending', '#cc3311'),
    ):
      ys = [r[field] or float('nan') for r in known]
      ax.plot(chips, ys, color=color, marker='o', ms=3, label=label)
    ax.set_xscale('log', base=2)
    ax.set_yscale('log')
    ax.set_xticks(chips, chips)
    ax.set_xlabel('chips')
    ax.set_ylabel('seconds of a step, at least')
    ax.legend(frameon=False)
    ax.spines[['top', 'right']].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='svg', metadata={'Date': None})
    plt.close(figure)


def main():
  """Reads flags, compiles, prints."""
  args = parse()
  jax.config.update('jax_platforms', 'cpu')
  command.quiet_libraries()
  with command.one_line_errors():
    rows = []
    for chips in args.chips:
      slice_ = topology_lib.describe(f'{args.chip}:{SLICES[chips]}')
      rows.append(row(args, chips, slice_))
      harness.say(f'{chips} chips compiled')
    show(rows)
    rows_lib.write(rows, args.json)
    if args.figure:
      draw(rows, pathlib.Path(args.figure))


if __name__ == '__main__':
  main()
