"""What was run, on what, and what it cost."""

from collections.abc import Mapping
from typing import Any

from palign_jax.report import blocks, inputs, numbers

# What a reader asks first; the rest stands in the fold below it.
_FIRST = (
    ('student', 'student.path'),
    ('teacher', 'teacher.path'),
    ('questions', 'teach.questions'),
    ('traces', 'teach.traces'),
    ('search for the prefix', 'truncate.search'),
    ('continuation', 'align.mode'),
    ('samples per prefix', 'align.n'),
    ('training', 'sft.method'),
    ('samples per problem', 'sample.n'),
    ('temperature', 'sample.temperature'),
    ('top-p', 'sample.top_p'),
    ('repetition penalty', 'sample.repetition_penalty'),
    ('longest answer, tokens', 'sample.max_tokens'),
    ('seed', 'seed'),
)
_HASH_LETTERS = 16
# Of a summary, what has columns or a section of its own.
_ELSEWHERE = ('seconds', 'tokens', 'rates', 'yardstick', 'calibration')


def flatten(values: Mapping[str, Any], at: str = '') -> dict[str, Any]:
  """Returns nested mappings as one, with dotted names."""
  flat = {}
  for name, value in values.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f'{at}{name}.')
    else:
      flat[f'{at}{name}'] = value
  return flat


def ran(run: inputs.Run) -> blocks.Section:
  """The settings and the machine."""
  flat = flatten(run.config)
  rows = [
      [label, numbers.plain(flat[name])]
      for label, name in _FIRST
      if flat.get(name) not in (None, '')
  ]
  found = []
  if rows:
    found.append(blocks.Table(['setting', 'value'], rows, 'll'))
  if run.manifest is None:
    found.append(
        blocks.Text(
            'manifest.json is not there: versions and devices are unknown.',
            'missing',
        )
    )
  else:
    found += _machine(run.manifest)
  if flat:
    table = blocks.Table(
        ['field', 'value'],
        [[f'config.{name}', numbers.plain(v)] for name, v in flat.items()],
        'll',
    )
    found.append(
        blocks.Fold(
            'All settings', numbers.counted(len(flat), 'field'), '', [table]
        )
    )
  else:
    found.append(blocks.Text('The config is empty.', 'missing'))
  return blocks.Section('run', 'What was run', 'Run', found)


def _machine(manifest: Mapping[str, Any]) -> list[blocks.Block]:
  """Splits a manifest into facts and the hashes of the inputs."""
  facts, hashes = [], []
  for name, value in manifest.items():
    flat = flatten(value) if isinstance(value, Mapping) else {}
    digests = {
        k: v for k, v in flat.items() if isinstance(v, str) and _is_hash(v)
    }
    if digests and len(digests) == len(flat):
      hashes += [[k, v[:_HASH_LETTERS]] for k, v in digests.items()]
    else:
      label = name.replace('_', ' ')
      facts.append([label, numbers.plain(flat or value)])
  found = [blocks.Table(['machine', ''], facts, 'll')] if facts else []
  if hashes:
    found.append(
        blocks.Fold(
            'Inputs, by hash of their content',
            numbers.counted(len(hashes), 'input'),
            '',
            [blocks.Table(['input', 'hash'], hashes, 'll')],
        )
    )
  return found


def _is_hash(text: str) -> bool:
  digits = text.rpartition(':')[2]  # Also 'sha256:...'.
  return len(digits) >= 8 and set(digits) <= set('0123456789abcdef')


def cost(run: inputs.Run) -> blocks.Section:
  """Seconds and tokens by stage."""
  rows, total = [], 0.0
  seconds = {
      stage: numbers.number(summary.get('seconds')) or 0.0
      for stage, summary in run.summaries.items()
  }
  everything = sum(seconds.values())
  for stage in inputs.STAGES:
    summary = run.summaries.get(stage)
    if summary is None:
      if stage != 'report':  # It is being written now.
        rows.append([stage, numbers.NONE, '', '', '', 'not run'])
      continue
    tokens = _tokens(summary.get('tokens'))
    took = seconds[stage]
    total += took
    rows.append(
        [
            stage,
            numbers.duration(took),
            numbers.percent(took / everything) if everything else '',
            numbers.count(tokens) if tokens else '',
            numbers.count(tokens / took) if tokens and took else '',
            _counts(summary),
        ]
    )
  if not run.summaries:
    return blocks.Section(
        'cost',
        'Cost by stage',
        'Cost',
        [blocks.Text('No stage has written its summary.json yet.', 'missing')],
    )
  rows.append(['all', numbers.duration(total), '', '', '', ''])
  head = ['stage', 'time', 'share', 'tokens', 'tokens/s', 'counts']
  return blocks.Section(
      'cost', 'Cost by stage', 'Cost', [blocks.Table(head, rows, 'lrrrrl')]
  )


def _tokens(value: Any) -> float | None:
  """Adds up tokens given as one number or by kind."""
  if isinstance(value, Mapping):
    found = [numbers.number(v) for v in flatten(value).values()]
    return sum(v for v in found if v is not None)
  return numbers.number(value)


def _counts(summary: Mapping[str, Any]) -> str:
  """Writes what else a summary says, in its own words."""
  flat = flatten(
      {name: value for name, value in summary.items() if name not in _ELSEWHERE}
  )
  return ', '.join(
      f'{name.removeprefix("counts.").replace("_", " ")} {numbers.plain(value)}'
      for name, value in flat.items()
      if value not in (None, '') and not isinstance(value, list)
  )
