r"""Cuts a trace into sentences, by offsets.

The pieces of a text, joined, are the text, whatever it holds: nothing is
stripped, added or rejoined by another white space.  White space belongs to the
piece that follows it (at the end of the text, to the last piece), so a prefix
ends in a visible character and who continues it writes the space.  Visible is
what `str.isspace` denies.

  'reference'  after each period that a space follows, as `text.split('. ')` in
               src/binary_search.py:60-64 of the reference code (4ddef39) does,
               which also drops what is empty between two cuts: as many
               sentences as there, one at least where anything is visible.
  'sentence'   after `. ? !` (and what closes a quotation or bracket) before
               white space, after the stops of Chinese and Japanese, and at line
               breaks; not in mathematics (text/latex.py), after abbreviations
               or initials, and never so that a list's marker stands alone.

Both take linear time.
"""

import bisect
from collections.abc import Callable, Iterator
import re

from palign_jax.core import errors
from palign_jax.text import latex

_LINE_BREAKS = frozenset('\n\r\v\f\x85\u2028\u2029')
_WIDE_STOPS = frozenset('。！？｡')
# A stop with its closing quotes, brackets and Markdown marks, or white space.
_CANDIDATE = re.compile(
    r'(?P<stop>[.?!。！？｡]+)["\'”’»›)\]}」』）】》〉*_`]*|\s+'
)
_VISIBLE = re.compile(r'\S')
_NEXT_WORD = re.compile(r'[^\W\d_]{1,16}\.?')
# The word a period ends, with the periods inside it.
_WORD = re.compile(r'[^\W_][\w.]*\Z')
_WORD_WINDOW = 16  # Characters; more than any abbreviation has.
_ABBREVIATIONS = frozenset(
    'approx ca cf dr eg eq eqn eqns eqs fig figs hon ie mr mrs ms mt prof resp'
    ' rev st viz vs wlog'.split()
)
# Those that may also end a sentence: "3, 1, etc. So".
_CLOSING = frozenset('al etc inc jr ltd sr'.split())
# An abbreviation before a number or bracket only: "see no. 3", but "No. Wait".
_BEFORE_NUMBER = frozenset(
    'art ch cor def ex ineq lem no nos p pp prop ref sec thm vol'.split()
)
_DOTTED = re.compile(r'(?:[^\W\d_]\.)+[^\W\d_]')  # e.g, i.e, U.S, a.m
# An upper-case letter with a period is an initial ("J. Smith") unless one of
# these begins a sentence there: "through the point A. Then".
_OPENERS = frozenset(
    'a actually after again all also alternatively although an and another'
    ' any are as assume at because before both but by can case check compute'
    ' consider could dividing does each either finally find first for from'
    ' given hence here hmm how however i if in indeed instead is it its let'
    ' likewise maybe moreover multiplying my next no not note now of oh okay'
    ' on once one or our perhaps putting recall right same second setting'
    ' similarly since so solving some sometimes specifically step'
    ' substituting subtracting suppose that the their then there therefore'
    ' these they this those thus to try two using wait we well what when'
    ' where which while who why with yes yet you your'.split()
)
# What carries a sentence on after a stop: "1, 2, ... , 9", "5! = 120".
_CARRIES_ON = frozenset('.,;:)]}=+<>≤≥')
_FACTORIAL = re.compile(r'(?:[\d)]|(?<![^\W_])[^\W_])\Z')  # 5! (n)! n!
# The marker of a list's item: "1.", "(a)", "iv)", "-", "**2.**", "## 3.".
_MARKER = re.compile(
    r'[#>*_ ]*(?:[-+•–—]|\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,5})[.):][*_]*)\Z'
)
_MARKER_WINDOW = 16  # Characters; more than any marker has.
_LETTER_OR_DIGIT = re.compile(r'[^\W_]')


def pieces(text: str, splitter: str) -> list[str]:
  """Returns the sentences of `text` with all that stands between them.

  Args:
    text: Any text.
    splitter: A name in `SPLITTERS`.

  Returns:
    Pieces that joined give `text`.  Each has a visible character, unless
    `text` has none.  An empty text has no pieces.

  Raises:
    ConfigError: If there is no such splitter.
  """
  bounds = [0, *_bounds(text, splitter), len(text)] if text else []
  return [text[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def cuts(text: str, splitter: str) -> list[int]:
  """Returns where each sentence ends: the offset after its last visible one.

  Args:
    text: Any text.
    splitter: A name in `SPLITTERS`.

  Returns:
    Increasing offsets in characters; the first k sentences are
    `text[: cuts[k - 1]]`.  A text without visible characters has none.

  Raises:
    ConfigError: If there is no such splitter.
  """
  end = len(text.rstrip())
  return [*_bounds(text, splitter), end] if end else []


def _bounds(text: str, splitter: str) -> list[int]:
  """Returns the offsets between pieces, each just after a visible character."""
  if splitter not in _RULES:
    raise errors.ConfigError(
        f'splitter {splitter!r}: no such splitter; there are {SPLITTERS}.'
    )
  candidates, is_bare = _RULES[splitter]
  end = len(text.rstrip())
  bounds, start = [], 0
  for bound in candidates(text):
    if bound >= end:
      break
    if not is_bare(text, start, bound):
      bounds.append(bound)
    start = bound
  # What is bare joins the next piece; the last has none, so the one before.
  if bounds and is_bare(text, start, end):
    bounds.pop()
  return bounds


def _reference_candidates(text: str) -> Iterator[int]:
  for match in re.finditer(r'\. ', text):
    yield match.start() + 1


def _is_bare_reference(text: str, start: int, end: int) -> bool:
  """Whether nothing visible stands there but the period that is cut after."""
  return not text[start : end - text.startswith('. ', end - 1)].strip()


def _sentence_candidates(text: str) -> Iterator[int]:
  spans = latex.spans(text)
  starts = [start for start, _ in spans]
  for match in _CANDIDATE.finditer(text):
    if match['stop'] is None:
      bound = match.start()
      if not bound or _LINE_BREAKS.isdisjoint(match[0]):
        continue
    else:
      bound = match.end()
      if not _ends_sentence(text, match):
        continue
    span = bisect.bisect_left(starts, bound) - 1
    if span < 0 or bound >= spans[span][1]:
      yield bound


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
  """Whether the stop that `match` found in `text` ends a sentence."""
  stop, end = match['stop'], match.end()
  if stop[-1] in _WIDE_STOPS or end == len(text):
    return True
  if not text[end].isspace():
    return False
  visible = _VISIBLE.search(text, end)
  if visible is None or not _LINE_BREAKS.isdisjoint(
      text[end : visible.start()]
  ):
    return True
  after = visible[0]
  if after in _CARRIES_ON:
    return False
  word = text[max(0, match.start() - _WORD_WINDOW) : match.start()]
  if stop == '!' and _FACTORIAL.search(word):
    return after.isupper()
  if stop == '.':
    return not _abbreviates(word, text, visible.start())
  return len(stop) == 1 or '.' not in stop or not after.islower()


def _abbreviates(before: str, text: str, after: int) -> bool:
  """Whether a period belongs to an abbreviation or initial.

  Args:
    before: What stands just before the period.
    text: The whole text.
    after: Where the next visible character stands in it.
  """
  match = _WORD.search(before)
  if not match:
    return False
  word = match[0]
  if word.lower() in _ABBREVIATIONS or word.lower() in ('e.g', 'i.e'):
    return True
  if word.lower() in _BEFORE_NUMBER:
    return text[after].isdigit() or text[after] in '(['
  is_initial = len(word) == 1 and word.isupper()
  if is_initial or word.lower() in _CLOSING or _DOTTED.fullmatch(word):
    follows = _NEXT_WORD.match(text, after)
    if not follows:
      return not is_initial
    return not _opens_sentence(follows[0])
  return False


def _opens_sentence(word: str) -> bool:
  """Whether `word`, perhaps with a period, is how a sentence would begin."""
  if word[1:] == '.':  # The next initial: "J. A. Smith".
    return False
  word = word.rstrip('.')
  if len(word) > 1 and word.isupper():  # "It goes through A. AB is long."
    return True
  return word[0].isupper() and word.lower() in _OPENERS


def _is_bare_sentence(text: str, start: int, end: int) -> bool:
  """Whether there is only a list's marker, or neither letter nor digit."""
  piece = text[start:end].strip()
  if len(piece) <= _MARKER_WINDOW and _MARKER.match(piece):
    return True
  return not _LETTER_OR_DIGIT.search(piece)


_Rule = tuple[Callable[[str], Iterator[int]], Callable[[str, int, int], bool]]
_RULES: dict[str, _Rule] = {
    'reference': (_reference_candidates, _is_bare_reference),
    'sentence': (_sentence_candidates, _is_bare_sentence),
}
SPLITTERS = tuple(_RULES)
