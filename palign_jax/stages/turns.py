"""What the student reads when it goes on from a prefix, and what counts of it.

With `draft` the prefix is quoted in the user's turn and its reply stands alone.
With `prefill` the prefix opens its own turn, all of which is graded: an answer
may begin in the prefix and end in the student's words (Eq. 9).
"""

from palign_jax.stages import context as context_lib
from palign_jax.text import prompts


def check(context: context_lib.Context) -> None:
  """Raises if the config names a prompt that there is not."""
  prompts.align(context.settings.prompts.align, '', '')
  prompts.answer(context.settings.prompts.answer, '')


def prompt(context: context_lib.Context, question: str, prefix: str) -> str:
  """Returns the rendered text that the student reads."""
  names = context.settings.prompts
  chat = context.describe('student').tokenizer.chat
  if context.settings.align.mode == 'draft':
    return chat.prompt(prompts.align(names.align, question, prefix))
  return chat.prompt(prompts.answer(names.answer, question), prefix)


def graded(context: context_lib.Context, prefix: str, output: str) -> str:
  """Returns what is held against the gold answer."""
  is_draft = context.settings.align.mode == 'draft'
  return output if is_draft else prefix + output
