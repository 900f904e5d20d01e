r"""Where LaTeX stands in a text: stretches that no sentence may be cut in.

Displayed (`\[ \]`, `$$ $$`, `\begin{} \end{}`) and inline (`\( \)`, `$ $`)
mathematics.  A delimiter without its partner protects nothing, so that one
stray `$$` does not swallow the rest of a trace.  All of it in linear time.
"""

import collections
from collections.abc import Iterator, Sequence
import re

Span = tuple[int, int]

# `\\.` also takes `\\` and `\$`, so that `\\[2pt]` opens no display.
_TOKEN = re.compile(
    r'\\(?P<edge>begin|end)\{(?P<name>[^{}\n]*)\}|\\.|\$\$?', re.DOTALL
)
_BLANK_LINE = re.compile(r'\n[^\S\n]*\n')
_LINE_BREAK = re.compile(r'[\n\r]')


def spans(text: str) -> list[Span]:
  """Returns the stretches [start, end) of mathematics, merged and in order."""
  tokens = list(_TOKEN.finditer(text))
  found = [
      *_brackets(text, tokens, r'\[', r'\]'),
      *_brackets(text, tokens, r'\(', r'\)'),
      *_environments(tokens),
      *_displays(text, [t for t in tokens if t[0] == '$$']),
      *_inlines(text, [t for t in tokens if t[0] == '$']),
  ]
  return _merge(found)


def _brackets(
    text: str, tokens: Sequence[re.Match[str]], opens: str, closes: str
) -> Iterator[Span]:
  start = None
  for token in tokens:
    if token[0] == opens:
      start = token.start()  # An earlier one without partner is forgotten.
    elif token[0] == closes and start is not None:
      # LaTeX allows no blank line in mathematics, models write some in `\[`.
      if opens == r'\[' or not _BLANK_LINE.search(text, start, token.start()):
        yield start, token.end()
      start = None


def _environments(tokens: Sequence[re.Match[str]]) -> Iterator[Span]:
  stack, opened = [], collections.Counter()
  for token in tokens:
    name = token['name']
    if token['edge'] == 'begin':
      stack.append(token)
      opened[name] += 1
    elif token['edge'] == 'end' and opened[name]:
      while True:
        begin = stack.pop()
        opened[begin['name']] -= 1
        if begin['name'] == name:
          break
      yield begin.start(), token.end()


def _displays(text: str, dollars: Sequence[re.Match[str]]) -> Iterator[Span]:
  start = None
  for token in dollars:
    if start is None or _BLANK_LINE.search(text, start, token.start()):
      start = token.start()
    else:
      yield start, token.end()
      start = None


def _inlines(text: str, dollars: Sequence[re.Match[str]]) -> Iterator[Span]:
  """Yields `$x$` on one line, by Pandoc's rule, which lets prices pass.

  No white space after the first dollar nor before the second, and no digit
  after the second (https://pandoc.org/MANUAL.html#math).
  """
  start = None
  for token in dollars:
    before = text[token.start() - 1 : token.start()]
    after = text[token.end() : token.end() + 1]
    if (
        start is not None
        and not before.isspace()
        and not after.isdigit()
        and not _LINE_BREAK.search(text, start, token.start())
    ):
      yield start, token.end()
      start = None
    else:
      start = None if after.isspace() else token.start()


def _merge(found: Sequence[Span]) -> list[Span]:
  merged: list[Span] = []
  for start, end in sorted(found):
    if merged and start < merged[-1][1]:
      merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
    else:
      merged.append((start, end))
  return merged
