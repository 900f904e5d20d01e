"""How the run got there: its data, its training and its cost, by stage."""

from palign_jax.report import bars, blocks, curves, inputs, measures, numbers


def retention(run: inputs.Run) -> blocks.Section:
  """Where the questions went between teacher and training set."""
  levels = measures.funnel(run)
  found = []
  if levels and levels[0].left:
    found.append(
        blocks.figure(
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
          blocks.figure(
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
        blocks.figure(
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
