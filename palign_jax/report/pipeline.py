"""How the run got there: its data, its training and its cost, by stage."""

from collections.abc import Mapping
from typing import Any

from palign_jax.report import bars, blocks, curves, inputs, measures, numbers

# Panels of p_enough along a trace.
_NUM_PANELS = 6


def _figure(name: str, caption: str, picture) -> blocks.Figure:
  return blocks.Figure(name, caption, picture.svg, picture.png)


def retention(run: inputs.Run) -> blocks.Section:
  """Where the questions went between teacher and training set."""
  levels = measures.funnel(run)
  found = []
  if levels and levels[0].left:
    found.append(
        _figure(
            'funnel',
            'Questions left after each stage; in grey those lost there, by'
            ' reason.',
            bars.funnel(levels),
        )
    )
    found += [
        blocks.Text(
            f'{numbers.counted(level.gained, "question")} of “{level.name}”'
            ' are not among those of the stage before, for example unverifiable'
            ' ones that the config admits.',
            'note',
        )
        for level in levels
        if level.gained
    ]
  elif levels:
    found.append(blocks.Text('No question has a trace or a prefix.', 'missing'))
  for file, stage, rows in (
      ('teach/traces.jsonl', 'teach', run.traces),
      ('truncate/prefixes.jsonl', 'truncate', run.prefixes),
      ('align/completions.jsonl', 'align', run.completions),
      ('assemble/train.jsonl', 'assemble', run.train),
  ):
    if rows is None:
      found.append(blocks.missing(file, stage))
  table = _rows_by_reason(run)
  return blocks.Section(
      'retention',
      'From traces to training rows',
      'Retention',
      found + ([table] if table.rows else []),
  )


def _rows_by_reason(run: inputs.Run) -> blocks.Table:
  """Counts rows, not questions: a question may have several samples."""
  counts = [
      ('assemble', f'train, {verdict}', n)
      for verdict, n in measures.reasons(
          str(r.get('verdict', 'no verdict')) for r in run.train or ()
      ).items()
  ]
  dropped = measures.reasons(
      str(p.get('reason') or 'no reason given')
      for p in run.prefixes or ()
      if not measures.kept(p)
  )
  rejected = measures.reasons(
      str(r.get('reason', 'no reason given')) for r in run.rejected or ()
  )
  ended = measures.reasons(
      str(r.get('finish_reason', 'not recorded')) for r in run.completions or ()
  )
  rows = [('truncate', f'dropped, {name}', n) for name, n in dropped.items()]
  rows += [('align', f'ended by {name}', n) for name, n in ended.items()]
  rows += counts
  rows += [('assemble', f'rejected, {name}', n) for name, n in rejected.items()]
  return blocks.Table(
      ['stage', 'outcome', 'rows'],
      [
          [stage if i == 0 or rows[i - 1][0] != stage else '']
          + [what, numbers.count(n)]
          for i, (stage, what, n) in enumerate(rows)
      ],
      'llr',
      'Every row, counted once per sample',
  )


def prefixes(run: inputs.Run) -> blocks.Section:
  """How much of each trace the judge needed, and how it decided."""
  section = lambda found: blocks.Section(
      'prefixes', 'What the judge kept', 'Prefixes', found
  )
  if run.prefixes is None:
    return section([blocks.missing('truncate/prefixes.jsonl', 'truncate')])
  kept = [p for p in run.prefixes if measures.kept(p)]
  ratios = lambda flag: [
      ratio
      for p in kept
      if (ratio := numbers.number(p.get('prefix_ratio'))) is not None
      and bool(p.get('is_sufficient')) == flag
  ]
  sufficient, others = ratios(True), ratios(False)
  found = []
  if sufficient or others:
    found.append(
        _figure(
            'prefix_ratio',
            'Prefix ratio: sentences kept as a share of all. Judged'
            f' enough: {numbers.count(len(sufficient))}; kept without such a'
            f' verdict: {numbers.count(len(others))}.',
            bars.ratios(sufficient, others),
        )
    )
  else:
    found.append(blocks.Text('No prefix was kept.', 'missing'))
  panels = [p for p in map(_probes, run.prefixes) if p is not None]
  if panels:
    panels.sort(key=lambda p: ((p.cut or 0) / max(1, p.total), p.id))
    chosen = measures.thin(panels, _NUM_PANELS)
    section_config = run.config.get('truncate') or {}
    threshold = numbers.number(section_config.get('threshold'))
    found.append(
        _figure(
            'p_enough',
            f'p_enough along {len(chosen)} of {len(panels):,} traces, from the'
            ' shortest to the longest prefix ratio. Small numbers: the order'
            ' of the probes; vertical line: the cut.'
            + (' Dashed: the threshold.' if threshold is not None else ''),
            curves.p_enough(chosen, threshold),
        )
    )
  else:
    found.append(
        blocks.Text('These prefixes carry no probes with p_enough.', 'missing')
    )
  return section(found)


def _probes(prefix: Mapping[str, Any]) -> curves.Probes | None:
  pairs = [
      (int(sentences), p)
      for probe in prefix.get('probes') or ()
      if (sentences := numbers.number(probe.get('sentences'))) is not None
      and (p := numbers.number(probe.get('p_enough'))) is not None
  ]
  total = numbers.number(prefix.get('total_sentences'))
  if not pairs or not total:
    return None
  cut = numbers.number(prefix.get('sufficient_sentences'))
  return curves.Probes(
      id=str(prefix.get('id')),
      total=int(total),
      cut=int(cut) if measures.kept(prefix) and cut else None,
      probes=pairs,
  )


def training(run: inputs.Run) -> blocks.Section:
  """The loss curve, with the numbers at both ends."""
  section = lambda found: blocks.Section(
      'training', 'Training', 'Training', found
  )
  if run.metrics is None:
    return section([blocks.missing('sft/metrics.jsonl', 'sft')])
  rows = [
      r
      for r in run.metrics
      if numbers.number(r.get('step')) is not None
      and numbers.number(r.get('loss')) is not None
  ]
  if not rows:
    return section([blocks.Text('No step has a finite loss.', 'missing')])
  steps, losses = ([float(r[k]) for r in rows] for k in ('step', 'loss'))
  speeds = [
      x
      for r in rows
      if (x := numbers.number(r.get('tokens_per_s'))) is not None
  ]
  means = measures.smooth(losses, max(1, len(losses) // 20))
  facts = [
      ['steps', numbers.count(steps[-1])],
      ['loss at the start', f'{means[0]:.3f}'],
      ['loss at the end', f'{means[-1]:.3f}'],
  ]
  for key, name in (
      ('lr', 'highest learning rate'),
      ('grad_norm', 'largest gradient norm'),
  ):
    values = [x for r in rows if (x := numbers.number(r.get(key))) is not None]
    if values:
      facts.append([name, numbers.plain(max(values))])
  if speeds:
    median = measures.quantiles(speeds)[2]
    facts.append(['tokens per second, median', numbers.count(median)])
  return section(
      [
          _figure(
              'loss',
              'Training loss; thin: as logged, thick: running mean.',
              curves.loss(steps, losses),
          ),
          blocks.Table(['training', ''], facts, 'lr'),
      ]
  )


def lengths(run: inputs.Run) -> blocks.Section:
  """How long every kind of text is, in characters."""
  size = lambda rows, field: [
      len(r[field]) for r in rows or () if isinstance(r.get(field), str)
  ]
  rows = [
      ('trace', size(run.traces, 'Long-CoT')),
      (
          'prefix',
          size(
              filter(measures.kept, run.prefixes or ()), 'sufficient_reasoning'
          ),
      ),
      ('continuation', size(run.completions, 'output')),
  ]
  for model in inputs.MODELS:
    of_model = [m.get(model, ()) for m in run.answers.values()]
    sizes = [n for answers in of_model for a in answers for n in a.lengths]
    rows.append((f'answer {model}', sizes))
  rows = [(name, values) for name, values in rows if values]
  if not rows:
    found = [blocks.Text('There are no texts yet.', 'missing')]
  else:
    found = [
        _figure(
            'lengths',
            'Lengths in characters: median, middle half and middle 90%.',
            bars.lengths(rows),
        ),
        blocks.Table(
            ['text', 'number', '5%', '25%', 'median', '75%', '95%', 'longest'],
            [
                [name, numbers.count(len(values))]
                + [numbers.count(q) for q in measures.quantiles(values)]
                + [numbers.count(max(values))]
                for name, values in rows
            ],
            'lrrrrrrr',
        ),
    ]
  return blocks.Section('lengths', 'Lengths', 'Lengths', found)
