"""What came of the run: scores before and after, and where they changed."""

from collections.abc import Mapping
from typing import Any

from palign_jax.report import blocks, curves, inputs, measures, numbers

_METRIC = 'pass@1'
_EXPLAINED = {
    'pass@1': 'mean over all samples',
    'first': 'the first sample alone',
    'boxed_only': 'no boxed answer counts as wrong',
    'truncated': 'answers cut off at the length limit',
    'loops': 'answers that repeat themselves',
}


def _score(values: Any) -> curves.Interval | None:
  """Returns (value, low, high) of one entry of scores.json."""
  if not isinstance(values, Mapping):
    return None
  found = [numbers.number(values.get(k)) for k in ('value', 'low', 'high')]
  if found[0] is None:
    return None
  return tuple(found[0] if x is None else x for x in found)


def _ordered(run: inputs.Run) -> list[str]:
  """Returns the scored benchmarks in the config's order."""
  known = list(run.config.get('benchmarks') or {})
  place = lambda name: known.index(name) if name in known else len(known)
  scored = {n for n, v in (run.scores or {}).items() if isinstance(v, Mapping)}
  return sorted(scored, key=lambda name: (place(name), name))


def _models(scores: Mapping) -> dict[str, curves.Interval]:
  found = {m: _score((scores.get(m) or {}).get(_METRIC)) for m in inputs.MODELS}
  return {model: score for model, score in found.items() if score}


def _judged(difference: curves.Interval | None, models: Mapping) -> str:
  """Says in words what the interval allows to say."""
  if len(models) < 2:
    return 'Only one side of the comparison has been graded.'
  if difference is None:
    return 'The paired difference has not been computed.'
  value, low, high = difference
  if low > 0:
    return 'The student got better: the interval lies above zero.'
  if high < 0:
    return 'The student got worse: the interval lies below zero.'
  return 'Within noise: the interval of the difference includes zero.'


def _size(values: Mapping[str, Any]) -> str:
  """Returns ', n = 500 problems, 4 samples each', or what is known of it."""
  n, samples = (numbers.number(values.get(k)) for k in ('n', 'samples'))
  if n is None:
    return ''
  size = f', n = {numbers.counted(int(n), "problem")}'
  if samples is None:
    return size
  return f'{size}, {numbers.counted(int(samples), "sample")} each'


def headline(run: inputs.Run) -> blocks.Section:
  """One large line per benchmark."""
  found = []
  for benchmark in _ordered(run):
    scores = run.scores[benchmark]
    models = _models(scores)
    if not models:
      continue
    paired = scores.get('after-before') or {}
    difference = _score(paired.get(_METRIC))
    size = _size(scores[next(reversed(models))][_METRIC])
    note = _judged(difference, models)
    if size:
      note += f' {size.removeprefix(", ")}.'
    found.append(
        blocks.Headline(
            benchmark,
            _METRIC,
            models.get('before'),
            models.get('after'),
            difference,
            note,
        )
    )
  if not found:
    found = [blocks.missing('grade/scores.json', 'grade')]
  else:
    found.append(
        blocks.Text(
            'Small print below each number: its 95% interval.  pass@1 is the'
            ' mean over all samples of a problem, then over problems; the'
            ' difference is paired, problem by problem.',
            'note',
        )
    )
  return blocks.Section('result', 'Result', 'Result', found)


def sentence(run: inputs.Run) -> str:
  """Says the result on the first benchmark in one sentence."""
  for benchmark in _ordered(run):
    models = _models(run.scores[benchmark])
    paired = run.scores[benchmark].get('after-before') or {}
    difference = _score(paired.get(_METRIC))
    if len(models) == 2 and difference:
      before, after = (numbers.percent(models[m][0]) for m in inputs.MODELS)
      return (
          f'On {benchmark} the student went from {before} to {after}'
          f' {_METRIC}: {numbers.points(difference[0])} points, 95% interval'
          f' {numbers.points_range(*difference[1:])}'
          f'{_size(run.scores[benchmark]["after"][_METRIC])}.'
      )
  return 'The student has not been graded before and after training yet.'


def scores(run: inputs.Run) -> blocks.Section:
  """Every metric of every benchmark, and the problems that changed sides."""
  names = _ordered(run)
  found = []
  rows = [(n, m) for n in names if (m := _models(run.scores[n]))]
  if rows:
    picture = curves.scores(rows)
    found.append(
        blocks.Figure(
            'scores',
            'pass@1 before and after training, with 95% intervals.',
            picture.svg,
            picture.png,
        )
    )
  else:
    found.append(blocks.missing('grade/scores.json', 'grade'))
  found += [_metrics(name, run.scores[name]) for name in names]
  found += [
      table
      for name, models in run.answers.items()
      if (table := _changes(name, models))
  ]
  return blocks.Section('scores', 'Scores before and after', 'Scores', found)


def _metrics(benchmark: str, scores: Mapping[str, Any]) -> blocks.Table:
  models = [m for m in inputs.MODELS if isinstance(scores.get(m), Mapping)]
  paired = scores.get('after-before') or {}
  metrics = dict.fromkeys(name for m in models for name in scores[m])
  rows = []
  for metric in metrics:
    row = [metric + (f', {_EXPLAINED[metric]}' if metric in _EXPLAINED else '')]
    for model in models:
      value, low, high = _score(scores[model].get(metric)) or (None,) * 3
      row += [numbers.percent(value), numbers.percent_range(low, high)]
    value, low, high = _score(paired.get(metric)) or (None,) * 3
    row += [numbers.points(value), numbers.points_range(low, high)]
    rows.append(row)
  head = ['metric']
  for model in models:
    head += [model, '95% interval']
  head += ['difference', '95% interval']
  return blocks.Table(head, rows, 'l' + 'r' * (len(head) - 1), benchmark)


def _changes(
    benchmark: str, models: Mapping[str, list[inputs.Answer]]
) -> blocks.Table | None:
  """Counts first samples that turned right or wrong."""
  first = {
      model: {a.id: bool(a.labels[0]) for a in answers if a.labels}
      for model, answers in models.items()
  }
  if len(first) < 2 or not (shared := first['before'].keys() & first['after']):
    return None
  counts = {pair: 0 for pair in ((1, 1), (0, 1), (1, 0), (0, 0))}
  for id_ in shared:
    counts[first['before'][id_], first['after'][id_]] += 1
  names = ('right both times', 'wrong, then right', 'right, then wrong')
  return blocks.Table(
      ['first sample of each problem', 'problems', 'share'],
      [
          [name, numbers.count(n), numbers.percent(n / len(shared))]
          for name, n in zip(
              (*names, 'wrong both times'), counts.values(), strict=True
          )
      ],
      'lrr',
      f'{benchmark}: which problems changed',
  )


def difficulty(run: inputs.Run) -> blocks.Section:
  """Accuracy by the problems' own measure of difficulty."""
  found = []
  for i, (benchmark, models) in enumerate(run.answers.items()):
    names = {
        a.difficulty_name
        for answers in models.values()
        for a in answers
        if a.difficulty is not None
    }
    bins = measures.by_difficulty(models) if len(names) == 1 else {}
    bins = {model: b for model, b in bins.items() if any(b)}
    if bins:
      picture = curves.difficulty(bins, f'{names.pop()} ({benchmark})')
      found.append(
          blocks.Figure(
              f'difficulty_{i}' if i else 'difficulty',
              f'Correct answers on {benchmark} by difficulty.  Bars: 95%'
              ' Wilson intervals over problems.',
              picture.svg,
              picture.png,
          )
      )
  if not found:
    found = [
        blocks.Text(
            'No graded problem carries a numeric field steps or level.',
            'missing',
        )
    ]
  return blocks.Section(
      'difficulty', 'Accuracy by difficulty', 'Difficulty', found
  )
