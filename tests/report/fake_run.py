"""Writes a whole work directory as a run would leave it, from a seed.

Questions and traces are told, verdicts are drawn; a weak student gets weaker
with every step and a trained one less so.  Two questions carry what a careless
page would fall over.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

from etils import epath
import numpy as np

from palign_jax.core import jsonl

NASTY = (
    '<script>alert("x")</script> & <b>5 < 7</b> ```` | _a_ $x$ '
    '\u202e\u0645\u0631\u062d\u0628\u0627 \U0001f600 e\u0301\u0301\u0301 \x00'
    ' \ud83d 数学。'
)
BENCHMARK = 'sandbox_test'
CONFIG = {
    'seed': 0,
    'student': {'path': 'palign_jax/sandbox/assets/student'},
    'teacher': {'path': 'palign_jax/sandbox/assets/teacher'},
    'teach': {'questions': 'sandbox:train', 'traces': ''},
    'truncate': {'search': 'binary', 'threshold': 0.5},
    'align': {'mode': 'prefill', 'n': 2, 'temperature': 0.6},
    'sft': {'method': 'lora', 'rank': 16, 'lr': 5e-5},
    'sample': {'n': 4, 'temperature': 0.6, 'top_p': 0.9, 'max_tokens': 512},
    'benchmarks': {BENCHMARK: 'questions.jsonl', 'harder': 'missing.jsonl'},
    'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1},
}
_HASH = '5f2c9a0e7d41b863' * 4


def write(
    workdir: epath.Path,
    *,
    num_traces: int = 60,
    num_problems: int = 80,
    num_samples: int = 4,
    repeats: int = 1,
    seed: int = 0,
) -> Mapping[str, Any]:
  """Writes every file of a finished run and returns its config.

  Args:
    workdir: Where to; made if it is not there.
    num_traces: Questions of the training set.
    num_problems: Problems of each benchmark.
    num_samples: Answers to each of them.
    repeats: How often every sentence is said; large for long traces.
    seed: Decides everything.
  """
  rng = np.random.default_rng(seed)
  traces = [_trace(rng, i, repeats) for i in range(num_traces)]
  prefixes = [_prefix(rng, trace, i) for i, trace in enumerate(traces)]
  completions = [c for p in prefixes for c in _completions(rng, p, repeats)]
  train, rejected = _assembled(prefixes, completions)
  jsonl.write(workdir / 'teach/traces.jsonl', traces)
  jsonl.write(workdir / 'truncate/prefixes.jsonl', prefixes)
  jsonl.write(workdir / 'align/completions.jsonl', completions)
  jsonl.write(workdir / 'assemble/train.jsonl', train)
  jsonl.write(workdir / 'assemble/rejected.jsonl', rejected)
  jsonl.write(workdir / 'sft/metrics.jsonl', _metrics(rng, 300))
  scores = {}
  for benchmark, shift in ((BENCHMARK, 0), ('harder', 2)):
    scores[benchmark] = _benchmark(
        rng, workdir, benchmark, shift, num_problems, num_samples, repeats
    )
  _json(workdir / 'grade/scores.json', scores)
  _json(workdir / 'config.json', CONFIG)
  _json(workdir / 'manifest.json', _manifest())
  _summaries(workdir, num_traces, len(completions), len(train))
  return CONFIG


def _json(path: epath.Path, value: Mapping[str, Any]) -> None:
  jsonl.write_text(path, json.dumps(value, indent=2) + '\n')


def _trace(rng: np.random.Generator, i: int, repeats: int) -> dict[str, Any]:
  start, lines = int(rng.integers(2, 30)), []
  value = start
  question = f'Mia has {start} beads.'
  for _ in range(int(rng.integers(3, 9))):
    more = int(rng.integers(2, 12))
    question += f' Then she gets {more} more.'
    lines.append(f'She had {value} and gets {more}, so {value + more}.')
    if rng.random() < 0.5:
      lines.append(f'Wait, let me check {value} plus {more} once more.')
      lines.append(f'Counting up from {value}: yes, {value + more}.')
    value += more
  lines.append(f'The answer is \\boxed{{{value}}}.')
  if i in (0, 1):
    question += ' ' + NASTY
    lines.insert(1, NASTY)
  return {
      'id': f'train-{i:04d}',
      'question': question + ' How many beads has Mia now?',
      'answer': str(value),
      'Long-CoT': ' '.join(line for line in lines for _ in range(repeats)),
  }


def _curve(rng, p, total: int) -> dict[str, Any]:
  """Probes at every boundary, and where three rules would cut."""
  values = [p(n) + 0.12 * rng.standard_normal() for n in range(1, total + 1)]
  values = [round(min(max(x, 0.001), 0.999), 4) for x in values]
  first = next((n for n, x in enumerate(values, 1) if x >= 0.5), None)
  return {
      'probes': [
          {'sentences': n, 'p_enough': x} for n, x in enumerate(values, 1)
      ],
      'cuts': {
          'first': first,
          'stable': first and min(first + 1, total),
          'isotonic': first and min(first + 1, total),
      },
  }


def _prefix(rng: np.random.Generator, trace: Mapping, i: int) -> dict[str, Any]:
  text = trace['Long-CoT']
  ends = [k + 1 for k, c in enumerate(text) if text[k : k + 2] == '. ']
  ends.append(len(text))
  total = len(ends)
  turn = rng.beta(2, 2.5) * total
  p = lambda n: 1 / (1 + math.exp(-(n - turn) * 6 / total)) * 0.96 + 0.02
  low, high, best, probes = 1, total, None, []
  while low <= high:
    middle = (low + high) // 2
    value = round(p(middle) + 0.02 * rng.standard_normal(), 4)
    value = min(max(value, 0.001), 0.999)
    probes.append({'sentences': middle, 'p_enough': value})
    if value >= 0.5:
      best, high = middle, middle - 1
    else:
      low = middle + 1
  reason = {3: 'no_prefix', 7: 'too_long', 8: 'too_long'}.get(i % 23, '')
  whole = best is None or i % 11 == 5  # Some are kept whole, unjudged.
  cut = total if whole else best
  value = probes[-1]['p_enough']
  return {
      'id': trace['id'],
      'answer': trace['answer'],
      'question': trace['question'],
      'sufficient_reasoning': '' if reason else text[: ends[cut - 1]],
      'sufficient_sentences': 0 if reason else cut,
      'total_sentences': total,
      'prefix_ratio': 0.0 if reason else cut / total,
      'is_sufficient': not whole and not reason,
      'evaluator_response': '[ENOUGH]' if not whole else '',
      'p_enough': None if whole else value,
      'margin': None if whole else math.log(value / (1 - value)),
      'probes': probes,
      'prefix_end': 0 if reason else ends[cut - 1],
      'status': 'dropped' if reason else 'kept',
      'reason': reason,
      **(_curve(rng, p, total) if i % 2 else {}),
  }


def _completions(rng, prefix: Mapping, repeats: int) -> list[dict[str, Any]]:
  if prefix['status'] == 'dropped':
    return []
  rows = []
  for sample in range(2):
    right = rng.random() < 0.35 + 0.4 * prefix['prefix_ratio']
    value = int(prefix['answer']) + (0 if right else int(rng.integers(1, 9)))
    rows.append(
        {
            'id': prefix['id'],
            'question': prefix['question'],
            'answer': prefix['answer'],
            'sufficient_reasoning': prefix['sufficient_reasoning'],
            'prompt': '<|im_start|>user\n...<|im_end|>\n',
            'output': ' So she counts on.' * int(rng.integers(1, 9) * repeats)
            + f' The answer is \\boxed{{{value}}}.',
            'finish_reason': str(
                rng.choice(['stop', 'length', 'loop'], p=[0.9, 0.07, 0.03])
            ),
            'sample': sample,
        }
    )
  return rows


def _assembled(prefixes, completions) -> tuple[list, list]:
  train, rejected, done = [], [], set()
  row = (
      lambda source, output, **more: {
          'instruction': 'Please reason step by step.',
          'input': source['question'],
          'output': output,
          'id': source['id'],
          'answer': source['answer'],
          'grader': 'math-verify 0.8.0',
      }
      | more
  )
  for p in prefixes:
    if p['status'] == 'dropped':
      rejected.append(row(p, '', verdict='', reason=p['reason']))
  for c in completions:
    output = (
        f'<Begin_of_Prefix>{c["sufficient_reasoning"]}<End_of_Prefix>'
        + c['output']
    )
    if c['finish_reason'] != 'stop':
      reason = c['finish_reason']
    elif f'{{{c["answer"]}}}' in c['output']:
      reason = ''
    else:
      reason = 'unverifiable' if c['id'].endswith('9') else 'wrong'
    if reason:
      rejected.append(row(c, output, verdict='', reason=reason))
    elif c['id'] not in done:
      done.add(c['id'])
      train.append(row(c, output, verdict='correct'))
  return train, rejected


def _metrics(rng: np.random.Generator, steps: int) -> list[dict[str, float]]:
  return [
      {
          'step': step,
          'loss': 0.35 + 1.1 * math.exp(-step / 60) + 0.06 * rng.normal(),
          'lr': 5e-5 * min(1, step / 30) * (1 + math.cos(step / 96)) / 2,
          'grad_norm': 0.5 + rng.random(),
          'tokens_per_s': 5200 + 300 * rng.normal(),
          'seconds': 0.4 * step,
      }
      for step in range(1, steps + 1)
  ]


def _benchmark(
    rng, workdir, benchmark, shift, num_problems, num_samples, repeats
) -> dict[str, Any]:
  """Writes samples and grades of one benchmark and returns its scores."""
  steps = rng.integers(2, 9, num_problems)
  values = rng.integers(10, 99, num_problems)
  labels, scores = {}, {}
  for model, slope in (('before', 1.1), ('after', 0.85)):
    odds = 6.5 - slope * (steps + shift)
    labels[model] = (
        rng.random((num_problems, num_samples))
        < 1 / (1 + np.exp(-odds))[:, None]
    ).astype(int)
    rows = []
    for i in range(num_problems):
      answers = [int(values[i]) + 3 * (1 - ok) for ok in labels[model][i]]
      told = ' Adding the next.' * int(
          (steps[i] + rng.integers(0, 4)) * repeats
      )
      rows.append(
          {
              'id': f'{benchmark}-{i:04d}',
              'question': f'A chain of {steps[i]} sums. What comes out?'
              + (NASTY if i == 0 else ''),
              'steps': int(steps[i]),
              'prompt_ori': '...',
              'answer': str(values[i]),
              'output': [f'Let us see.{told} \\boxed{{{a}}}' for a in answers],
              'finish_reason': ['stop'] * num_samples,
          }
      )
    jsonl.write(workdir / f'sample/{model}/{benchmark}.jsonl', rows)
    graded = [
        r | {'label': ls, 'passn': max(ls), 'output_ans': []}
        for r, ls in zip(rows, labels[model].tolist(), strict=True)
    ]
    jsonl.write(workdir / f'grade/{model}/{benchmark}.jsonl', graded)
    scores[model] = {
        'pass@1': _interval(labels[model].mean(1), num_samples),
        'first': _interval(labels[model][:, 0], num_samples),
        f'pass@{num_samples}': _interval(labels[model].max(1), num_samples),
        f'maj@{num_samples}': _interval(
            labels[model].mean(1) > 0.5, num_samples
        ),
        'boxed_only': _interval(labels[model].mean(1), num_samples),
        'truncated': _interval(rng.random(num_problems) < 0.04, num_samples),
        'loops': _interval(rng.random(num_problems) < 0.02, num_samples),
    }
  paired = (labels['after'] - labels['before']).mean(1)
  scores['after-before'] = {'pass@1': _interval(paired, num_samples)}
  return scores


def _interval(values: np.ndarray, samples: int) -> dict[str, float]:
  mean, n = float(np.mean(values)), len(values)
  half = 1.96 * float(np.std(values)) / math.sqrt(n)
  low, high = mean - half, mean + half
  return {'value': mean, 'low': low, 'high': high, 'n': n, 'samples': samples}


def _manifest() -> dict[str, Any]:
  return {
      'versions': {'python': '3.11.2', 'jax': '0.9.0', 'flax': '0.12.3'},
      'devices': ['TFRT_CPU', 'TFRT_CPU'],
      'seed': 0,
      'inputs': {'student': _HASH, 'teacher': _HASH[1:], BENCHMARK: _HASH[2:]},
  }


def _judged(traces: int) -> dict[str, Any]:
  cost = lambda tokens: {
      'tokens_per_trace': tokens,
      'seconds_per_trace': tokens / 9000,
  }
  score = lambda x: {
      'cuts': 61,
      'auroc': x,
      'low': x - 0.07,
      'high': min(x + 0.06, 1.0),
  }
  return {
      'probes': 6 * traces,
      'no_prefix': 3,
      'abstained': 2,
      'within_0.1_nat': 0.0312,
      'violations': 0.0541,
      'traces_with_violations': 0.2167,
      'prompt_tokens': 812_000,
      'trunk_tokens': 61_000,
      'calibration': {'threshold': 0.5, 'prior': False, 'num_rows': 0},
      'yardstick': {
          'traces': 16,
          'cuts': 61,
          'rollouts': 244,
          'passing': 0.5246,
          'passes': 0.498,
          'too_early': 3,
          'chosen': 15,
          'judges': {
              'label': score(0.812) | cost(410),
              'prior': score(0.83) | cost(560),
              'isotonic': score(0.861) | cost(720),
              'reply': score(0.7) | cost(980),
              'rollouts': cost(5200),
          },
      },
  }


def _summaries(workdir, traces: int, completions: int, rows: int) -> None:
  for stage, seconds, tokens, counts in (
      ('teach', 61.2, 131_000, {'traces': traces}),
      ('truncate', 14.9, 96_410, _judged(traces)),
      ('align', 33.1, 58_020, {'completions': completions}),
      ('assemble', 2.4, 0, {'train': rows, 'wrong': 9}),
      ('sft', 121.7, 641_000, {'steps': 300, 'examples': rows}),
      ('sample', 58.3, 402_300, {'answers': 4 * completions}),
      ('grade', 6.0, 0, {'graded': 4 * completions}),
  ):
    rate = {'tokens_per_s': tokens / seconds}
    summary = counts | {'tokens': tokens, 'seconds': seconds, 'rates': rate}
    _json(workdir / stage / 'summary.json', summary)
