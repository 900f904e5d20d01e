"""Word problems of one to eight steps, told in sentences.

A story starts with an amount and changes it by one event after another; every
amount stays within 0 and 49 and every division is exact.  All is a function of
the seed.  Whether a problem is for training or for evaluation follows from
its numbers and operations alone, never from its names or words, so that no
stream of training problems can hold an evaluation problem.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import random
import re

from palign_jax.core import errors

MAX_AMOUNT = 49
ORDINALS = (
    'First',
    'Second',
    'Third',
    'Fourth',
    'Fifth',
    'Sixth',
    'Seventh',
    'Eighth',
)
SPLITS = ('train', 'eval')

_SHE = ('Mia', 'Ana', 'Eva', 'Zoe', 'Lily', 'Nora')
_HE = ('Tom', 'Ben', 'Sam', 'Max', 'Leo', 'Paul')
_OBJECTS = (
    'apples',
    'balls',
    'books',
    'cards',
    'coins',
    'cups',
    'eggs',
    'keys',
    'pens',
    'shells',
    'stamps',
    'stones',
)
# How an event is told; {} is its number.  A wording means one operation, so a
# question can be read back.
_WORDINGS = {
    ('+', None): ('buys {} more', 'finds {}', 'gets {} more'),
    ('-', None): ('loses {}', 'sells {}', 'gives away {}'),
    ('*', 2): ('doubles them', 'ends up with twice as many'),
    ('*', 3): ('triples them', 'ends up with {} times as many'),
    ('/', 2): ('gives away half', 'keeps half', 'loses half'),
    ('/', 3): ('keeps a third', 'keeps only one third'),
}
_ONE_IN_EVAL = 8  # Share of all problems that are kept for evaluation.


@dataclasses.dataclass(frozen=True)
class Event:
  """One change of the amount.

  Attributes:
    sign: One of + - * /.
    number: 2 to 9; 2 or 3 for * and /.
    words: What happens, e.g. 'loses 4'.
  """

  sign: str
  number: int
  words: str

  def apply(self, amount: int) -> int:
    """Returns the amount after the event."""
    return compute(amount, self.sign, self.number)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A story and its question.

  Attributes:
    id: Unique among problems of one seed.
    name: Whom the story is about.
    pronoun: 'she' or 'he'.
    noun: What is counted, in the plural.
    start: The amount at the start.
    events: What happens, in order.
  """

  id: str
  name: str
  pronoun: str
  noun: str
  start: int
  events: tuple[Event, ...]

  @property
  def steps(self) -> int:
    return len(self.events)

  @property
  def amounts(self) -> tuple[int, ...]:
    """The amount at the start and after each event."""
    amounts = [self.start]
    for event in self.events:
      amounts.append(event.apply(amounts[-1]))
    return tuple(amounts)

  @property
  def answer(self) -> str:
    return str(self.amounts[-1])

  @property
  def question(self) -> str:
    told = ' '.join(
        f'{ordinal}, {self.pronoun} {event.words}.'
        for ordinal, event in zip(ORDINALS, self.events, strict=False)
    )
    return (
        f'{self.name} has {self.start} {self.noun}. {told}'
        f' How many {self.noun} does {self.name} have?'
    )


def compute(left: int, sign: str, right: int) -> int:
  """Returns the value of `left sign right`; a division must be exact."""
  if sign == '/':
    quotient, rest = divmod(left, right)
    if rest:
      raise ValueError(f'{left} / {right} is not exact.')
    return quotient
  return {'+': left + right, '-': left - right, '*': left * right}[sign]


def choices(amount: int) -> dict[str, tuple[int, ...]]:
  """Returns the numbers that each sign may take after `amount`."""
  every, few = range(2, 10), (2, 3)
  found = {
      '+': tuple(n for n in every if amount + n <= MAX_AMOUNT),
      '-': tuple(n for n in every if n <= amount),
      '*': tuple(n for n in few if 0 < amount * n <= MAX_AMOUNT),
      '/': tuple(n for n in few if amount > 0 and amount % n == 0),
  }
  return {sign: numbers for sign, numbers in found.items() if numbers}


def problem(seed: int, index: int, steps: int, split: str) -> Problem:
  """Draws a problem of a split.

  Args:
    seed: Names a stream of problems.
    index: Place in the stream, from 0.
    steps: Number of events, 1 to 8.
    split: 'train' or 'eval'.

  Returns:
    The problem; the same arguments always give the same one.

  Raises:
    ConfigError: If there are no such problems.
  """
  if not 1 <= steps <= len(ORDINALS):
    raise errors.ConfigError(
        f'sandbox: a story of {steps} steps; it has 1 to {len(ORDINALS)}.'
    )
  if split not in SPLITS:
    raise errors.ConfigError(
        f'sandbox: no split {split!r}; known: {", ".join(SPLITS)}.'
    )
  rng = random.Random(f'problem {seed} {index} {steps} {split}')
  while True:
    start, events = _draw_story(rng, steps)
    if split_of(start, events) == split:
      break
  pronoun = rng.choice(('she', 'he'))
  return Problem(
      id=f'{split}-{seed}-{steps}-{index}',
      name=rng.choice(_SHE if pronoun == 'she' else _HE),
      pronoun=pronoun,
      noun=rng.choice(_OBJECTS),
      start=start,
      events=events,
  )


def _draw_story(
    rng: random.Random, steps: int
) -> tuple[int, tuple[Event, ...]]:
  start = amount = rng.randint(2, 30)
  events = []
  for _ in range(steps):
    allowed = choices(amount)
    sign = rng.choice(tuple(allowed))
    number = rng.choice(allowed[sign])
    key = (sign, number if sign in '*/' else None)
    words = rng.choice(_WORDINGS[key]).format(number)
    events.append(Event(sign, number, words))
    amount = events[-1].apply(amount)
  return start, tuple(events)


def read_question(question: str) -> tuple[int, tuple[Event, ...]]:
  """Reads a question's numbers and operations back from its words.

  Returns:
    The amount at the start, and the events.

  Raises:
    DataError: If the text is no question of this world.
  """
  start = re.match(r'\w+ has (\d+) \w+\. ', question)
  told = re.findall(r'([A-Z][a-z]+), (?:she|he) ([^.]+)\.', question)
  if not start or not told:
    raise errors.DataError(
        f'question {question[:60]!r}: not a story of the sandbox.'
    )
  return int(start[1]), tuple(_read_event(words) for _, words in told)


def _read_event(words: str) -> Event:
  for (sign, number), wordings in _WORDINGS.items():
    for wording in wordings:
      pattern = wording.replace('{}', r'(\d+)')
      if found := re.fullmatch(pattern, words):
        return Event(sign, number or int(found[1]), words)
  raise errors.DataError(f'event {words!r}: no wording of the sandbox.')


def fingerprint(start: int, events: Sequence[Event]) -> int:
  """Returns 64 bits that only the numbers and operations decide."""
  story = ' '.join([str(start)] + [f'{e.sign}{e.number}' for e in events])
  digest = hashlib.blake2b(story.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'little')


def split_of(start: int, events: Sequence[Event]) -> str:
  """Returns the split that a story belongs to, by its fingerprint."""
  held_out = fingerprint(start, events) % _ONE_IN_EVAL == 0
  return 'eval' if held_out else 'train'
