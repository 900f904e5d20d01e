"""What the judge kept, how it decided, and how good it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from palign_jax.report import bars, blocks, curves, inputs, measures, numbers

# Panels of p_enough along a trace.
_NUM_PANELS = 6
_NAMES = {
    'label': 'label: p_enough as it is',
    'prior': 'prior: less that of the empty prefix',
    'isotonic': 'isotonic: a rising fit of the whole curve',
    'reply': 'reply: in words, as in the paper',
    'rollouts': 'continuations, which the others are measured by',
}


def prefixes(run: inputs.Run) -> blocks.Section:
  """How much of each trace the judge needed, and how it decided."""
  section = lambda found: blocks.Section(
      'prefixes', 'What the judge kept', 'Prefixes', found
  )
  if run.prefixes is None:
    return section([blocks.missing('truncate/prefixes.jsonl', 'truncate')])
  return section([_ratios(run.prefixes), *_curves(run), *_verdicts(run)])


def _ratios(rows: Sequence[Mapping[str, Any]]) -> blocks.Block:
  kept = [p for p in rows if measures.kept(p)]
  ratios = lambda flag: [
      ratio
      for p in kept
      if (ratio := numbers.number(p.get('prefix_ratio'))) is not None
      and bool(p.get('is_sufficient')) == flag
  ]
  sufficient, others = ratios(True), ratios(False)
  if not sufficient and not others:
    return blocks.Text('No prefix was kept.', 'missing')
  return blocks.figure(
      'prefix_ratio',
      'Prefix ratio: sentences kept as a share of all. Judged'
      f' enough: {numbers.count(len(sufficient))}; kept without such a'
      f' verdict: {numbers.count(len(others))}.',
      bars.ratios(sufficient, others),
  )


def _curves(run: inputs.Run) -> list[blocks.Block]:
  panels = [p for p in map(_probes, run.prefixes) if p is not None]
  if not panels:
    text = 'These prefixes carry no probes with p_enough.'
    return [blocks.Text(text, 'missing')]
  panels.sort(key=lambda p: ((p.cut or 0) / max(1, p.total), p.id))
  chosen, threshold = measures.thin(panels, _NUM_PANELS), _threshold(run)
  caption = (
      f'p_enough along {len(chosen)} of {len(panels):,} traces, from the'
      ' shortest to the longest prefix ratio. Small numbers: the order of the'
      ' probes; vertical line: the cut.'
  )
  if threshold is not None:
    caption += ' Dashed: the threshold.'
  if any(panel.cuts for panel in chosen):
    caption += ' Dotted: where each rule would cut.'
  return [
      blocks.figure('p_enough', caption, curves.p_enough(chosen, threshold))
  ]


def _threshold(run: inputs.Run) -> float | None:
  """Returns the threshold that was in force: fitted, or of the config."""
  fitted = _summary(run).get('calibration')
  section = run.config.get('truncate') or {}
  for source in (fitted, section):
    if isinstance(source, Mapping):
      value = numbers.number(source.get('threshold'))
      if value is not None:
        return value
  return None


def _summary(run: inputs.Run) -> Mapping[str, Any]:
  return run.summaries.get('truncate') or {}


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
  cuts = prefix.get('cuts')
  return curves.Probes(
      id=str(prefix.get('id')),
      total=int(total),
      cut=int(cut) if measures.kept(prefix) and cut else None,
      probes=pairs,
      cuts={
          str(name): int(value)
          for name, value in (cuts if isinstance(cuts, Mapping) else {}).items()
          if numbers.number(value) is not None
      },
  )


def _verdicts(run: inputs.Run) -> list[blocks.Block]:
  """Counts what the verdicts looked like."""
  summary = _summary(run)
  share = lambda name: numbers.percent(numbers.number(summary.get(name)))
  count = lambda name: numbers.count(numbers.number(summary.get(name)))
  rows = [
      [label, write(name)]
      for label, name, write in (
          ('probes', 'probes', count),
          ('abstained', 'abstained', count),
          ('within 0.1 nat of where “enough” begins', 'within_0.1_nat', share),
          ('“enough” followed by “not enough”', 'violations', share),
          ('traces with such a fall', 'traces_with_violations', share),
          ('tokens of all prompts', 'prompt_tokens', count),
          ('of trunks, each read once', 'trunk_tokens', count),
          ('tokens computed in all', 'tokens', count),
      )
      if numbers.number(summary.get(name)) is not None
  ]
  fitted = summary.get('calibration')
  if isinstance(fitted, Mapping) and numbers.number(fitted.get('num_rows')):
    plain = lambda name: numbers.plain(fitted.get(name))
    if numbers.number(fitted.get('slope')) in (None, 1.0):
      rows.append(['threshold, fitted', plain('threshold')])
    else:
      offset = numbers.number(fitted.get('offset')) or 0.0
      sign = '−' if offset < 0 else '+'
      line = f'{plain("slope")} · log-odds {sign} {numbers.plain(abs(offset))}'
      rows.append(['chance to pass, fitted (Platt)', line])
      rows.append(['threshold of that chance', plain('threshold')])
    num_rows = numbers.number(fitted.get('num_rows'))
    rows.append(['rows that it was fitted on', numbers.count(num_rows)])
  proofs = summary.get('proofs')
  if isinstance(proofs, Mapping):
    rows.append(['proofs by continuations', numbers.plain(dict(proofs))])
  return [blocks.Table(['verdicts', ''], rows, 'lr')] if rows else []


def yardstick(run: inputs.Run) -> blocks.Section:
  """How well each judge foretells what becomes of a prefix."""
  section = lambda found: blocks.Section(
      'judge',
      'The judge against the student’s own continuations',
      'Judge',
      found,
  )
  if 'truncate' not in run.summaries:
    return section([blocks.missing('truncate/summary.json', 'truncate')])
  facts = _summary(run).get('yardstick')
  if not isinstance(facts, Mapping):
    text = 'Not measured: config.truncate.yardstick.traces says on how many'
    return section([blocks.Text(f'{text} traces it would be.', 'note')])
  judges = facts.get('judges') or {}
  rows = [
      [
          _NAMES.get(name, str(name)),
          _plain(found, 'auroc'),
          _range(found),
          numbers.count(numbers.number(found.get('cuts'))),
          numbers.count(numbers.number(found.get('tokens_per_trace'))),
          numbers.duration(numbers.number(found.get('seconds_per_trace'))),
      ]
      for name, found in judges.items()
  ]
  head = ['judge', 'AUROC', '95%', 'cuts', 'tokens per trace', 'time per trace']
  return section(
      [
          blocks.Text(_measured(facts)),
          blocks.Table(head, rows, 'lrrrrr'),
          blocks.Text(
              'AUROC: the chance that a cut whose continuations pass scores'
              ' above one whose continuations fail, of the cuts that it could'
              ' judge: a reply needs room in the context. The interval'
              ' resamples traces. Times include programs compiled on the way.',
              'note',
          ),
      ]
  )


def _plain(found: Mapping[str, Any], name: str) -> str:
  value = numbers.number(found.get(name))
  return numbers.NONE if value is None else f'{value:.3f}'


def _range(found: Mapping[str, Any]) -> str:
  low, high = (_plain(found, name) for name in ('low', 'high'))
  if numbers.NONE in (low, high):
    return numbers.NONE
  return f'{low}{numbers.DASH}{high}'


def _measured(facts: Mapping[str, Any]) -> str:
  get = lambda name: numbers.number(facts.get(name)) or 0
  text = (
      f'{numbers.counted(int(get("rollouts")), "continuation")} of'
      f' {numbers.counted(int(get("cuts")), "cut")} in'
      f' {numbers.counted(int(get("traces")), "trace")};'
      f' {numbers.percent(get("passes"))} were right, and'
      f' {numbers.percent(get("passing"))} of the cuts pass.'
  )
  chosen, early = get('chosen'), int(get('too_early'))
  if not chosen:
    return text
  share = numbers.percent(early / chosen)
  return text + (
      f' Of the {numbers.counted(int(chosen), "cut")} that the run chose there,'
      f' {early:,} ({share}) came too early: continuations fail there and'
      ' succeed from a longer cut.'
  )
