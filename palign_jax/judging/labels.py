"""Where the two labels of a verdict part, in a tokenizer's ids."""

import dataclasses

from palign_jax.core import errors
from palign_jax.text import prompts, tokenizer as tokenizer_lib

# A yardstick measures the labels' judge, whoever judges.
_CURE = (
    "take another student, or set config.truncate.verdict='generate' and"
    ' config.truncate.yardstick.traces=0.'
)


@dataclasses.dataclass(frozen=True)
class Labels:
  """The labels as tokens.

  Attributes:
    shared: Their common first tokens, e.g. '['.  They are put to the student
      after each prompt.
    yes: The first token of [ENOUGH] that is not one of [NOT_ENOUGH].
    no: The other way round.
  """

  shared: tuple[int, ...]
  yes: int
  no: int


def find(tokenizer: tokenizer_lib.Tokenizer) -> Labels:
  """Returns the labels in the ids of a tokenizer.

  Raises:
    ConfigError: If it cannot spell them, or they do not part.
  """
  texts = (prompts.ENOUGH, prompts.NOT_ENOUGH)
  yes, no = (tuple(tokenizer.encode(text)) for text in texts)
  for text, ids in zip(texts, (yes, no), strict=True):
    back = tokenizer.decode(ids, skip_specials=False)
    if _letters(back) != _letters(text):
      raise errors.ConfigError(
          f'config.student.path: the vocabulary of {tokenizer.name} lacks'
          f' tokens of the label {text}, which comes back as {back!r}; {_CURE}'
      )
  for i, (one, two) in enumerate(zip(yes, no, strict=False)):
    if one != two:
      return Labels(yes[:i], one, two)
  raise errors.ConfigError(
      f'config.student.path: in the tokens of {tokenizer.name} one of the'
      f' labels {" and ".join(texts)} is the beginning of the other, so that no'
      f' token tells them apart; {_CURE}'
  )


def _letters(text: str) -> str:
  """Returns a text without white space and case, which tokenizers may drop."""
  return ''.join(text.split()).casefold()
