"""What must hold of teach, truncate, align and assemble for any student.

The oracle is transformers' own tokenizer and template, not ours.
"""

from collections import Counter
from collections.abc import Sequence
import os
from typing import Any

from etils import epath

from palign_jax.core import jsonl
from palign_jax.judging import trunk_scorer
from palign_jax.text import prompts, sentences

Tokens = tuple[int, ...]


class Seen:
  """While entered, notes the whole prompts that batches of trunks score."""

  def __init__(self):
    self._score = trunk_scorer.Batch.score
    self.tokens: list[Tokens] = []

  def __enter__(self) -> 'Seen':
    score, tokens = self._score, self.tokens

    def noting(batch, probes):
      trunk = lambda probe: batch._trunks[probe.trunk][: probe.anchor]
      tokens.extend((*trunk(p).tolist(), *p.tokens) for p in probes)
      return score(batch, probes)

    trunk_scorer.Batch.score = noting
    return self

  def __exit__(self, kind, *exc):
    trunk_scorer.Batch.score = self._score


def check(
    run: epath.Path,
    traces: Sequence[jsonl.Row],
    config: Any,
    oracle: Any,
    seen: Sequence[Tokens],
) -> dict[str, list[str]]:
  """Checks the files of a run that sampled once per trace.

  Args:
    run: The workdir.
    traces: What went in.
    config: Of the run.
    oracle: A fast tokenizer of transformers, with a chat template.
    seen: What the judge's model read.

  Returns:
    By the name of each invariant, the ids for which it fails.
  """
  read = lambda name: jsonl.read(run / name) if _filled(run / name) else []
  prefixes = read('truncate/prefixes.jsonl')
  completions = read('align/completions.jsonl')
  last = read('assemble/train.jsonl') + read('assemble/rejected.jsonl')
  by_id = {trace['id']: trace for trace in traces}
  kept = [row for row in prefixes if row['status'] == 'kept']
  ids = lambda rows: [row['id'] for row in rows]
  cuts = {
      name: sentences.cuts(trace['Long-CoT'], config.truncate.splitter)
      for name, trace in by_id.items()
  }

  def failing(rows, holds) -> list[str]:
    return [row['id'] for row in rows if not holds(row)]

  return {
      'one prefix row per trace, in order': _differ(ids(traces), ids(prefixes)),
      'pieces give the trace back': failing(
          traces,
          lambda t: ''.join(
              sentences.pieces(t['Long-CoT'], config.truncate.splitter)
          ).encode()
          == t['Long-CoT'].encode(),
      ),
      'prefix == Long-CoT[:prefix_end], byte for byte': failing(
          prefixes,
          lambda r: r['sufficient_reasoning'].encode()
          == by_id[r['id']]['Long-CoT'][: r['prefix_end']].encode(),
      ),
      'prefix_end is the cut after sufficient_sentences': failing(
          kept,
          lambda r: r['prefix_end']
          == cuts[r['id']][r['sufficient_sentences'] - 1],
      ),
      'a prefix ends on a visible character': failing(
          kept, lambda r: not r['sufficient_reasoning'][-1].isspace()
      ),
      'probes are read as their prompts written alone': _probes(
          prefixes, by_id, cuts, config, oracle, seen
      ),
      'one completion per kept prefix': _differ(ids(kept), ids(completions)),
      'completion prompts are the template and the prefix': failing(
          completions, lambda r: r['prompt'] == _opened(r, config, oracle)
      ),
      'every trace is in train or rejected, once': _differ(
          sorted(by_id), sorted(ids(last))
      ),
      'training rows hold prefix and continuation whole': _targets(
          completions, last, config
      ),
  }


def _filled(path: epath.Path) -> bool:
  return path.exists() and path.stat().length > 0


def _differ(one: Sequence[str], two: Sequence[str]) -> list[str]:
  if list(one) == list(two):
    return []
  extra = (Counter(one) - Counter(two)) + (Counter(two) - Counter(one))
  return sorted(extra) or ['order']


def _rendered(user: str, oracle: Any) -> str:
  return oracle.apply_chat_template(
      [{'role': 'user', 'content': user}],
      tokenize=False,
      add_generation_prompt=True,
      enable_thinking=False,
  )


def _probes(prefixes, by_id, cuts, config, oracle, seen) -> list[str]:
  """Returns the ids of traces with a probe that was not read as it should."""
  encode = lambda text: oracle.encode(text, add_special_tokens=False)
  yes, no = encode(prompts.ENOUGH), encode(prompts.NOT_ENOUGH)
  shared = os.path.commonprefix([yes, no])  # Of any two lists.
  unread, wrong = Counter(seen), []
  for row in prefixes:
    trace = by_id[row['id']]
    for probe in row['probes']:
      end = cuts[row['id']][probe['sentences'] - 1]
      user = prompts.judge(
          config.prompts.judge, trace['question'], trace['Long-CoT'][:end]
      )
      tokens = (*encode(_rendered(user, oracle)), *shared)
      if not unread[tokens]:
        wrong.append(row['id'])
      unread[tokens] -= 1
  return wrong + ['a probe of no row'] * sum(
      count for count in unread.values() if count > 0
  )


def _opened(row: jsonl.Row, config: Any, oracle: Any) -> str:
  names, prefix = config.prompts, row['sufficient_reasoning']
  if config.align.mode == 'draft':
    user = prompts.align(names.align, row['question'], prefix)
    return _rendered(user, oracle)
  user = prompts.answer(names.answer, row['question'])
  return _rendered(user, oracle) + prefix


def _targets(completions, last, config) -> list[str]:
  a, out = config.assemble, {row['id']: row['output'] for row in last}
  return [
      row['id']
      for row in completions
      if out.get(row['id'])
      != f'{a.begin}{row["sufficient_reasoning"]}{a.end}{row["output"]}'
  ]
