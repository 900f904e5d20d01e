"""Gold answers as the files of benchmarks and traces spell them, made alike.

They come as numbers, strings, `025`, GSM8K's `#### 18`, or a worked solution
that ends in a box; `normalise` makes one short string of each.
"""

import math
import re
import reprlib

from palign_jax.core import errors

# Boxes, what is escaped, and braces.
_BRACE = re.compile(r'\\+boxed\s*\{|\\.|[{}]', re.DOTALL)
# GSM8K ends its worked solutions so.
_HASHES = re.compile(r'####[ \t]*(\S[^\n]*?)\s*\Z')
# s1K's tests of knowledge end so, and its crosswords begin so.
_LABELLED = re.compile(r'^(?:#+ )?Answer: *(\S.{0,79}?)\s*$', re.MULTILINE)


def last_boxed(text: str) -> str | None:
  r"""Returns what the last closed `\boxed{...}` holds; braces balance.

  A box that the end of the text cuts off is passed over, as are `\fbox` and
  escaped braces.  One pass: a text that loops may hold thousands of open boxes.
  """
  last_start, last = -1, None
  open_braces = []  # Where what is inside begins; None for one of no box.
  for match in _BRACE.finditer(text):
    token = match.group()
    if token == '}':
      start = open_braces.pop() if open_braces else None
      if start is not None and start > last_start:
        last_start, last = start, text[start : match.start()]
    elif token == '{':
      open_braces.append(None)
    elif token.endswith('{') and len(token) > 2:
      open_braces.append(match.end())
  return last


def normalise(value: object, *, at: str) -> str:
  """Returns a gold answer as one short string, where it has one.

  Args:
    value: The answer as its file holds it: text or a number.
    at: Where it stands, for messages.

  Returns:
    `142` for 142.0, `18` for `... #### 18`, the last box of a worked solution,
    the inside of `$...$`; other text, such as a proof or `025`, as it is.

  Raises:
    DataError: If it is neither text nor a finite number.
  """
  if isinstance(value, str):
    return _from_text(value.strip())
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if isinstance(value, float) and math.isfinite(value):
    return str(int(value)) if value.is_integer() else repr(value)
  raise errors.DataError(
      f'{at}: the answer is {reprlib.repr(value)} ({type(value).__name__});'
      ' write it as a string or a finite number.'
  )


def _from_text(text: str) -> str:
  hashes = _HASHES.search(text)
  if hashes:
    return hashes.group(1)
  boxed = last_boxed(text)
  if boxed is not None:
    return boxed.strip()
  labelled = _LABELLED.findall(text)
  if labelled:
    return labelled[-1]
  for mark in ('$$', '$'):
    inside = text[len(mark) : -len(mark)]
    if text.startswith(mark) and text.endswith(mark) and inside.strip('$ '):
      return inside.strip() if '$' not in inside else text
  return text
