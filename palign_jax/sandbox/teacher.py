"""What the teacher writes: long traces with false starts and re-checks.

A trace tells each event again, computes it, sometimes checks the result, and
says the new amount.  Two kinds of detour occur: an event taken too early, and a
wrong result that its own check finds.  Both are put right in plain words at
once, and the last sentence always holds the right answer.

Two to eight steps make 15 to 60 sentences: short stories are told back at the
end, and share the same number of checks among fewer events.
"""

from collections.abc import Sequence
import dataclasses
import random
import re

from palign_jax.sandbox import world

_INVERSE = {'+': '-', '-': '+', '*': '/', '/': '*'}


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
  """How the teacher writes.

  Attributes:
    checks: Mean number of checks of right results in a trace.
    max_checks: Most of them.
    early_rate: Chance that an event is preceded by one taken too early.
    slip_rate: Chance that the result of an event is wrong at first.
    max_detours: Most detours of both kinds in a trace.
    max_recap_steps: Longest story whose amounts are told back at the end; at
      least 2, or short traces have fewer than 15 sentences.
  """

  checks: float = 1.6
  max_checks: int = 4
  early_rate: float = 0.12
  slip_rate: float = 0.06
  max_detours: int = 2
  max_recap_steps: int = 4


DEFAULT = TeacherConfig()


def trace(
    problem: world.Problem, seed: int, config: TeacherConfig = DEFAULT
) -> str:
  """Writes a long trace for a problem.

  Args:
    problem: What to solve.
    seed: Chooses among the traces of the problem.
    config: How often the teacher checks and errs.

  Returns:
    Sentences joined by single spaces; the last one boxes the right answer.
  """
  rng = random.Random(f'trace {seed} {problem.id}')
  return ' '.join(
      [
          *_opening(problem),
          *_events(problem, rng, config),
          *_closing(problem, config),
      ]
  )


def _opening(problem: world.Problem) -> list[str]:
  return [
      'Let me follow the story.',
      f'It asks how many {problem.noun} {problem.name} has.',
      f'There {"are" if problem.steps > 1 else "is"} {problem.steps}'
      f' event{"s" if problem.steps > 1 else ""}.',
      f'{problem.pronoun.capitalize()} starts with {problem.start}.',
  ]


def _closing(problem: world.Problem, config: TeacherConfig) -> list[str]:
  recap = []
  if problem.steps <= config.max_recap_steps:
    amounts = ', '.join(map(str, problem.amounts))
    recap = ['Let me recap.', f'It went {amounts}.']
  return [
      'No event is left.',
      *recap,
      f'{problem.pronoun.capitalize()} ends with {problem.answer}'
      f' {problem.noun}.',
      f'The answer is \\boxed{{{problem.answer}}}.',
  ]


def _events(
    problem: world.Problem, rng: random.Random, config: TeacherConfig
) -> list[str]:
  sentences = []
  checks, detours = 0, 0
  check_rate = min(config.checks / problem.steps, 1.0)
  for i, (event, before) in enumerate(
      zip(problem.events, problem.amounts, strict=False)
  ):
    ordinal = world.ORDINALS[i]
    # All draws are made whether used or not: a bound reached changes nothing
    # that comes later.
    early, slip, check = (rng.random() for _ in range(3))
    wrong = rng.choice(slips(event, before) or [None])
    if (
        early < config.early_rate
        and detours < config.max_detours
        and i + 1 < problem.steps
    ):
      detours += 1
      sentences += [
          f'{world.ORDINALS[i + 1]}, wait, that is too early.',
          f'{ordinal} comes next.',
      ]
    sentences.append(f'{ordinal}, {problem.pronoun} {event.words}.')
    if (
        slip < config.slip_rate
        and detours < config.max_detours
        and wrong is not None
    ):
      detours += 1
      sentences += [
          equation(before, event, wrong),
          _check(before, event, wrong),
          'That is wrong.',
      ]
    after = event.apply(before)
    sentences.append(equation(before, event, after))
    if check < check_rate and checks < config.max_checks:
      checks += 1
      sentences.append(_check(before, event, after))
    sentences.append(f'Now {problem.pronoun} has {after}.')
  return sentences


def equation(before: int, event: world.Event, result: int) -> str:
  """Returns the sentence that computes an event."""
  return f'So {before} {event.sign} {event.number} = {result}.'


def _check(before: int, event: world.Event, result: int) -> str:
  sign = _INVERSE[event.sign]
  back = world.compute(result, sign, event.number)
  verdict = 'good' if back == before else f'not {before}'
  return f'Check: {result} {sign} {event.number} = {back}, {verdict}.'


def slips(event: world.Event, before: int) -> list[int]:
  """Returns wrong results near the right one, whose check stays in range."""
  after = event.apply(before)
  found = []
  for wrong in range(max(after - 3, 0), min(after + 3, world.MAX_AMOUNT) + 1):
    if wrong == after or event.sign == '*' and wrong % event.number:
      continue
    back = world.compute(wrong, _INVERSE[event.sign], event.number)
    if 0 <= back <= world.MAX_AMOUNT:
      found.append(wrong)
  return found


def sentence_ends(text: str) -> list[int]:
  """Returns the offset after each sentence; all of them end in a period."""
  return [m.end() for m in re.finditer(r'\.(?= |$)', text)]


def progress(problem: world.Problem, text: str) -> list[int]:
  """Returns the number of events done at each sentence's end.

  An event is done once its right equation stands, after those of all events
  before it.  The text may be anyone's.
  """
  expected: Sequence[str] = [
      equation(before, event, event.apply(before))
      for event, before in zip(problem.events, problem.amounts, strict=False)
  ]
  done, begin, counts = 0, 0, []
  for end in sentence_ends(text):
    if done < problem.steps and text[begin:end].strip() == expected[done]:
      done += 1
    counts.append(done)
    begin = end
  return counts
