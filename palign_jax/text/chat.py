r"""The rendered text of one question to a model, by the model's own template.

A prompt and a training text are written by the same few lines, so that their
tokens agree: the text of a training row is `prompt(user) + target + turn_end`,
that of an evaluation `prompt(user)`.  Templates that can think are told not to.
The same call gives the same text on any day: some templates print the date.

Some do not obey: R1-Distill's opens `<think>\n` in the prompt whatever it is
told, and drops the thinking of earlier turns.  Then the reply begins inside the
thinking, in training as in evaluation.
"""

from collections.abc import Collection, Sequence
import functools
from typing import Protocol, runtime_checkable

from palign_jax.core import errors

Message = dict[str, str]

# The date that Llama 3.1's template itself falls back to.
DATE = '26 Jul 2024'
# Words no template knows, to see what is written after an assistant's.
_SENTINEL = 'Qx7reply7xQ'


@runtime_checkable
class Tokenizer(Protocol):
  """What `Chat` needs of text/tokenizer.py."""

  name: str  # For messages: the folder.

  @property
  def specials(self) -> Collection[str]:
    """The special tokens, as written."""

  def render(self, messages: Sequence[Message], *, generate: bool) -> str:
    """Returns the text of `messages`, by the template of the tokenizer."""


class Chat:
  """Writes one-turn conversations in a tokenizer's own format."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer

  def prompt(self, user: str, reply: str = '') -> str:
    """Returns the text up to where the model writes on.

    Args:
      user: The user's turn.  Some templates strip it.
      reply: How the assistant's turn begins, byte for byte; the model
        continues it.

    Returns:
      Text whose encoding without added special tokens is what the model reads.

    Raises:
      CheckpointError: If the folder has no chat template, or one that fails.
    """
    messages = [{'role': 'user', 'content': user}]
    return self._tokenizer.render(messages, generate=True) + reply

  @functools.cached_property
  def turn_end(self) -> str:
    """What the template writes after a reply, up to its end-of-turn token.

    Raises:
      CheckpointError: If the template fails, leaves out the reply, or ends it
        without a special token.
    """
    name = self._tokenizer.name
    text = self._tokenizer.render(
        [
            {'role': 'user', 'content': 'Hello.'},
            {'role': 'assistant', 'content': _SENTINEL},
        ],
        generate=False,
    )
    _, found, after = text.rpartition(_SENTINEL)
    if not found:
      raise errors.CheckpointError(
          f'{name}: the chat template leaves out what the assistant says; use a'
          ' template that renders assistant turns.'
      )
    ends = [
        after.index(token) + len(token)
        for token in self._tokenizer.specials
        if token in after
    ]
    if not ends:
      raise errors.CheckpointError(
          f'{name}: the chat template writes {after!r} after an assistant turn,'
          ' no special token; a model could not end its reply. Use a template'
          ' with an end-of-turn token.'
      )
    return after[: min(ends)]
