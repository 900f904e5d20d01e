"""Answers as strings: which can be checked, and which are the same."""

import re

_TEX_COMMAND = re.compile(r'\\[A-Za-z]+')
_WORD = re.compile(r'[^\W\d_]{2,}')
# MATH500's longest gold has 2 words and 53 characters; proofs have hundreds.
_MAX_WORDS = 12
_MAX_CHARS = 300


def is_verifiable(answer: str | None) -> bool:
  """Claims that a gold is an answer that an output can be held against.

  Args:
    answer: What `golds.normalise` returned; None where a row has no answer.

  Returns:
    False for nothing, for marks alone, and for prose such as a proof.
  """
  if answer is None or not any(map(_is_matter, answer)):
    return False
  words = _WORD.findall(_TEX_COMMAND.sub(' ', answer))
  return len(words) <= _MAX_WORDS and len(answer) <= _MAX_CHARS


def _is_matter(character: str) -> bool:
  # Besides letters and digits also symbols such as those for infinity or the
  # empty set.
  return character.isalnum() or not (character.isascii() or character.isspace())


def canonical(answer: str) -> str:
  """Returns the form under which equal answers of several samples meet.

  Only spelling is evened out (space, dollars, a last full stop, `025`, `25.0`):
  the votes of maj@n are counted without a computer algebra system.
  """
  text = ''.join(answer.split()).strip('$').rstrip('.').replace('\\!', '')
  text = text.replace('\\left', '').replace('\\right', '')
  text = text.replace('\\dfrac', '\\frac').replace('\\tfrac', '\\frac')
  number = re.fullmatch(r'([+-]?)0*(\d+)(?:\.(\d*?)0*)?', text)
  if not number:
    return text
  sign, whole, part = number.groups()
  return sign.replace('+', '') + whole + (f'.{part}' if part else '')
