"""Worked examples: a trace and its cut, and answers before and after."""

from collections.abc import Mapping, Sequence
from typing import Any

from palign_jax.report import blocks, inputs, measures, numbers

# Characters shown at either end of a long text.
_HEAD, _TAIL = 700, 700
_VERDICTS = {'correct': 'good', 'unverifiable': ''}


def _shown(
    text: str, kind: str = 'plain', head: int = _HEAD, tail: int = _TAIL
) -> list[blocks.Span]:
  """Returns a text, its middle left out if it is long."""
  if len(text) <= head + tail + 100:
    return [blocks.Span(text, kind)]
  left_out = len(text) - head - tail
  return [
      blocks.Span(text[:head], kind),
      blocks.Span(f'… {left_out:,} characters left out …', 'gap'),
      blocks.Span(text[len(text) - tail :], kind),
  ]


def aligned(run: inputs.Run) -> blocks.Section:
  """Questions on their way to the training set, and some that fell out."""
  section = lambda found: blocks.Section(
      'examples', 'Worked examples', 'Examples', found
  )
  if run.prefixes is None:
    return section([blocks.missing('truncate/prefixes.jsonl', 'truncate')])
  trained = _by_id(run.train)
  rejected = _by_id(run.rejected)
  groups = [*_thirds([p for p in run.prefixes if str(p.get('id')) in trained])]
  wrong = {i for i, r in rejected.items() if r.get('reason') == 'wrong'}
  others = [p for p in run.prefixes if str(p.get('id')) in rejected]
  others = [p for p in others if str(p.get('id')) not in trained]
  groups.append([p for p in others if str(p.get('id')) in wrong])
  groups.append([p for p in others if str(p.get('id')) not in wrong])
  if not trained and not rejected:
    groups = list(_thirds(list(filter(measures.kept, run.prefixes))))
  chosen = [sorted(g, key=_length)[len(g) // 4] for g in groups if g]
  if not chosen:
    return section([blocks.Text('There is no prefix to show.', 'missing')])
  traces = _by_id(run.traces)
  outputs = {}
  for row in run.completions or ():
    outputs.setdefault(str(row.get('id')), []).append(row)
  folds = []
  for i, prefix in enumerate(chosen):
    id_ = str(prefix.get('id'))
    folds.append(
        _example(
            prefix,
            traces.get(id_, {}),
            outputs.get(id_, ()),
            trained.get(id_) or rejected.get(id_) or {},
            opened=i == 0,
        )
    )
  note = blocks.Text(
      'A rather short trace of each third by prefix ratio; then one rejected'
      ' as wrong and one lost otherwise, if there are any. What lies'
      ' behind the cut is faded: it is not trained on.',
      'note',
  )
  return section([note, *folds])


def _by_id(rows: Sequence[Mapping] | None) -> dict[str, Mapping]:
  found = {}
  for row in rows or ():
    found.setdefault(str(row.get('id')), row)
  return found


def _length(prefix: Mapping) -> tuple[float, str]:
  """Orders prefixes by the length of their trace, ties by id."""
  total = numbers.number(prefix.get('total_sentences'))
  return (total or 0.0, str(prefix.get('id')))


def _thirds(prefixes: list[Mapping]) -> list[list[Mapping]]:
  """Splits prefixes by their ratio."""
  ratio = lambda p: numbers.number(p.get('prefix_ratio')) or 0.0
  ordered = sorted(prefixes, key=lambda p: (ratio(p), str(p.get('id'))))
  n = len(ordered)
  return [ordered[i * n // 3 : (i + 1) * n // 3] for i in range(3)]


def _example(
    prefix: Mapping[str, Any],
    trace: Mapping[str, Any],
    completions: Sequence[Mapping],
    outcome: Mapping[str, Any],
    *,
    opened: bool,
) -> blocks.Fold:
  verdict = str(outcome.get('reason') or outcome.get('verdict') or 'not graded')
  tone = _VERDICTS.get(verdict, 'bad' if outcome else '')
  found = [
      blocks.Passage('Question', _shown(str(prefix.get('question', '')))),
      blocks.Passage('Trace and cut', _cut(prefix, trace)),
  ]
  # A row of the training set holds the sample that was taken; else the first.
  taken = [
      c
      for c in completions
      if str(c.get('output')).strip() in str(outcome.get('output', ''))
  ]
  if completions:
    row = (taken or list(completions))[0]
    ended = row.get('finish_reason', 'end not recorded')
    found.append(
        blocks.Passage(
            f'The student goes on ({ended})',
            _shown(str(row.get('output', ''))),
        )
    )
  else:
    found.append(blocks.Text('There is no continuation.', 'missing'))
  found.append(
      blocks.Text(f'Right answer: {prefix.get("answer", numbers.NONE)}')
  )
  ratio = numbers.number(prefix.get('prefix_ratio'))
  kept = f'{numbers.percent(ratio)} of sentences kept'
  if not measures.kept(prefix):
    kept = 'no prefix'
  return blocks.Fold(
      f'{prefix.get("id")}: {kept}', verdict, tone, found, opened
  )


def _cut(prefix: Mapping, trace: Mapping) -> list[blocks.Span]:
  """Returns the trace with its cut; only the prefix if it is no slice of it."""
  kept = str(prefix.get('sufficient_reasoning') or '')
  whole = str(trace.get('Long-CoT') or '')
  sentences = (
      f'{numbers.plain(prefix.get("sufficient_sentences"))} of'
      f' {numbers.plain(prefix.get("total_sentences"))} sentences'
  )
  if not measures.kept(prefix):
    return [
        blocks.Span(f'dropped: {prefix.get("reason") or "no reason"}', 'cut'),
        *_shown(whole, 'rest'),
    ]
  if not whole.startswith(kept):
    note = f'{sentences}; the prefix is not a slice of the trace'
    return [*_shown(kept, 'prefix'), blocks.Span(note, 'cut')]
  return [
      *_shown(kept, 'prefix'),
      blocks.Span(f'cut after {sentences}', 'cut'),
      *_shown(whole[len(kept) :], 'rest', tail=300),
  ]


def answers(run: inputs.Run) -> blocks.Section:
  """Answers to the same problem before and after, where the verdict changed."""
  found = []
  for benchmark, models in run.answers.items():
    before, after = (
        {a.id: a for a in models.get(m, ())} for m in inputs.MODELS
    )
    for was, now, title in (
        (0, 1, 'wrong before, right after'),
        (1, 0, 'right before, wrong after'),
    ):
      changed = [
          id_
          for id_ in before.keys() & after.keys()
          if before[id_].labels
          and after[id_].labels
          and (before[id_].labels[0], after[id_].labels[0]) == (was, now)
      ]
      if not changed:
        continue
      size = lambda i, b=before, a=after: (len(b[i].first + a[i].first), i)
      id_ = sorted(changed, key=size)[len(changed) // 2]
      found.append(
          blocks.Fold(
              f'{benchmark} {id_}',
              title,
              'good' if now else 'bad',
              [
                  blocks.Passage('Question', _shown(before[id_].question)),
                  blocks.Passage('Before', _shown(before[id_].first)),
                  blocks.Passage('After', _shown(after[id_].first)),
                  blocks.Text(f'Right answer: {after[id_].gold}'),
              ],
          )
      )
  if found:
    note = 'First samples, one each way, of middling length.'
    found.insert(0, blocks.Text(note, 'note'))
  else:
    found = [
        blocks.Text(
            'No problem with graded answers before and after changed its'
            ' verdict.',
            'missing',
        )
    ]
  return blocks.Section('answers', 'Answers before and after', 'Answers', found)
