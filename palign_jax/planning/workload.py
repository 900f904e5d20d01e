"""How much a run has to do: its config says, or else the paper.

Lengths are means, from table 4 and figure 3c of the paper (Qwen2.5-7B on s1K):
traces of 9,291 tokens, prefixes of 4,531, targets of 5,453, answers of 2,670.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

from palign_jax.planning import cases, steps as steps_lib
from palign_jax.stages import settings as settings_lib

_TRACES = 1000  # Rows of s1K.
_TRACE, _PREFIX, _TARGET, _ANSWER = 9291, 4531, 5453, 2670
_SENTENCE = 24  # Tokens of a sentence of a trace, about.
_QUESTIONS = {'math500': 500, 'aime24': 30, 'aime25': 30, 'amc12': 83}
_OTHER = 500  # Of a benchmark that is not among these.
_PACKED = 0.95  # Of a training row's tokens are none of padding.
_USEFUL = 0.92  # Of the rows decoded at a time draw what is wanted (WORKSPACE).
_FORKS = 16  # Of a trace, read together where all are read.


@dataclasses.dataclass(frozen=True)
class Workload:
  """What a run does.

  Attributes:
    traces: How many.
    trace: Tokens of one.
    probes: Verdicts on one.
    reply: Tokens of a verdict that is a reply; 0 where labels judge.
    prefix: Tokens of a prefix.
    continuation: Tokens that are drawn after it.
    example: Tokens of a training example.
    questions: Of all benchmarks.
    answer: Tokens of an answer.
    assumptions: What was taken for granted, a sentence each.
  """

  traces: int
  trace: int
  probes: float
  reply: int
  prefix: int
  continuation: int
  example: int
  questions: int
  answer: int
  assumptions: tuple[str, ...]


def of(case: cases.Case, benchmarks: Sequence[str]) -> Workload:
  """Returns what a case has to do.

  Args:
    case: Its config says how many traces, samples and epochs.
    benchmarks: Names of all, those without a file among them.
  """
  s = case.settings
  traces = s.teach.limit or _TRACES
  trace = min(_TRACE, s.teach.max_tokens)
  prefix = min(_PREFIX, trace)
  continuation = min(_TARGET - _PREFIX, s.align.max_tokens)
  answer = min(_ANSWER, s.sample.max_tokens)
  sentences = max(trace // _SENTENCE, 1)
  reply = s.truncate.max_tokens if s.truncate.verdict == 'generate' else 0
  probes = _probes(s.truncate.search, sentences, prefix / trace, reply)
  questions = sum(_QUESTIONS.get(name, _OTHER) for name in benchmarks)
  counted = 'config.teach.limit' if s.teach.limit else 'as s1K; not in config'
  return Workload(
      traces=traces,
      trace=trace + steps_lib.PROMPT,
      probes=probes,
      reply=reply,
      prefix=prefix + steps_lib.PROMPT,
      continuation=continuation,
      example=steps_lib.PROMPT + prefix + continuation,
      questions=questions,
      answer=answer,
      assumptions=(
          f'{traces:,} traces ({counted}) of {trace:,} tokens, each judged'
          f' {_judging(probes, reply)}',
          f'prefixes of {prefix:,} tokens, continued by {continuation:,}; every'
          ' one becomes an example (means of the paper, table 4)',
          f'{questions:,} benchmark questions, {s.sample.n} answers of'
          f' {answer:,} tokens each, before and after',
          f'a prompt beside them takes {steps_lib.PROMPT} tokens; caches are'
          ' half full on average',
          f'{_USEFUL:.0%} of decoded rows and {_PACKED:.0%} of training tokens'
          ' are of use',
          *_beyond(s.truncate),
          'every step runs at its roofline: real runs take longer (loading,'
          ' compiling and grading come on top)',
      ),
  )


def _probes(search: str, sentences: int, share: float, reply: int) -> float:
  """Returns how often a trace is judged, forks that are read together as one.

  Args:
    search: A name in judging/search.py.
    sentences: Of a trace.
    share: Of them, that a prefix has: what goes one by one ends there.
    reply: Tokens of a reply; 0 where labels judge.
  """
  if search == 'binary':
    return math.log2(sentences) + 1
  if search == 'curve':
    return sentences if reply else sentences / _FORKS
  return sentences * share


def _judging(probes: float, reply: int) -> str:
  if reply:
    return f'{probes:.0f} times by a reply of {reply:,} tokens after half of it'
  return f'to its end with {probes:.0f} calls beside'


def _beyond(t: settings_lib.Truncate) -> list[str]:
  """Returns what of judging is not counted."""
  drawn = {
      "verdict='verified'": t.verdict == 'verified',
      "abstained='verify'": t.abstained == 'verify',
      'the yardstick': t.yardstick.traces > 0,
  }
  names = ', '.join(name for name, is_so in drawn.items() if is_so)
  return [f'continuations that judge ({names}) are not counted'] * bool(names)


def seconds(
    case: cases.Case, work: Workload, steps: Mapping[str, steps_lib.Step]
) -> dict[str, float]:
  """Returns how long each stage takes at least.

  Args:
    case: The run.
    work: What it does.
    steps: By name; a stage whose steps are not there is left out.
  """
  s, stages = case.settings, {}
  if {'teach_prefill', 'teach_decode'} <= steps.keys():
    stages['teach'] = work.traces * (
        _read(steps['teach_prefill'], steps_lib.PROMPT)
        + _drawn(steps['teach_decode'], work.trace)
    )
  if work.reply and {'prefill', 'decode'} <= steps.keys():
    stages['truncate'] = (
        work.traces
        * work.probes
        * (
            _read(steps['prefill'], work.trace // 2)
            + _drawn(steps['decode'], work.reply)
        )
    )
  elif judge := steps.get('judge'):
    calls = work.trace * judge.rows / judge.tokens + work.probes
    own = judge.rows / case.hosts  # Rows of one host.
    stages['truncate'] = (
        _judged(case, work.traces) * calls / own * judge.roofline.seconds
    )
  if {'prefill', 'decode'} <= steps.keys():
    prefill, decode = steps['prefill'], steps['decode']
    stages['align'] = work.traces * (
        _read(prefill, work.prefix)
        + s.align.n * _drawn(decode, work.continuation)
    )
    stages['sample'] = (
        2
        * work.questions
        * (
            _read(prefill, steps_lib.PROMPT)
            + s.sample.n * _drawn(decode, work.answer)
        )
    )
  if sft := steps.get('sft'):
    rows = work.traces * work.example / (s.sft.max_tokens * _PACKED)
    num = math.ceil(rows * s.sft.epochs / s.sft.batch_size)
    stages['sft'] = num * sft.roofline.seconds
  return stages


def _judged(case: cases.Case, traces: int) -> int:
  """Returns how many traces the busiest host judges: groups stay whole."""
  group = case.settings.compute.group
  groups = math.ceil(traces / group)
  return min(math.ceil(groups / case.hosts) * group, traces)


def _read(prefill: steps_lib.Step, tokens: int) -> float:
  """Returns the seconds that reading a prompt takes."""
  return tokens / prefill.tokens_per_s


def _drawn(decode: steps_lib.Step, tokens: int) -> float:
  """Returns the seconds that drawing a completion takes."""
  return tokens / (decode.tokens_per_s * _USEFUL)
