r"""The words put to a model, by name; one place for training and evaluation.

  'paper'  figures 5 to 7 of the paper (arXiv 2601.10064), in content: roles,
           criteria, labels and order are theirs, the sentences are ours.
  'code'   the reference code (4ddef39), letter by letter, its line breaks too:
           judge  src/binary_search.py:78-94
           align  src/prefix-alignment.py:24-29
           answer src/test.py:20 (it puts nothing between instruction and
           problem; the paper has a line break and a label)
  'brief'  ours, few words, for models too small to follow instructions.

In every judge prompt the prefix comes last, so that all prefixes of one trace
share their tokens up to the cut.
"""

from collections.abc import Mapping
import re

from palign_jax.core import errors

ENOUGH = '[ENOUGH]'
NOT_ENOUGH = '[NOT_ENOUGH]'

JUDGE = {
    'paper': (
        'You are an evaluator of mathematical reasoning. You are given a'
        ' question and a prefix of a solution. Judge whether the prefix'
        ' contains enough of the reasoning to complete the solution.\n\n'
        '- Reply "[ENOUGH]" if the prefix already contains the key logic and'
        ' the main transformations, and what remains is routine.\n'
        '- Reply "[NOT_ENOUGH]" if an essential step or a logical link is still'
        ' missing.\n\n'
        'Reply with [ENOUGH] or [NOT_ENOUGH] only, without any explanation.\n\n'
        'Question: {question}\n\n'
        'Prefix: {prefix}'
    ),
    # Lines as long as in the source.
    'code': """
You are a reasoning evaluator.

You are given a partial reasoning prefix extracted from a longer chain-of-thought.
Your task is to judge whether this prefix already contains the essential logical structure and key transformations needed to complete the solution.

- Reply "[ENOUGH]" if the prefix establishes the core reasoning steps such that the remaining reasoning is straightforward or routine.
- Reply "[NOT_ENOUGH]" if any crucial reasoning step is still missing, making it difficult to reliably complete the solution.

Reply with exactly one token: [ENOUGH] or [NOT_ENOUGH].

Question:
{question}

Partial reasoning:
{prefix}
""",  # noqa: E501
    'brief': (
        'Question: {question}\n'
        'Enough to finish? [ENOUGH] or [NOT_ENOUGH]\n'
        'Reasoning: {prefix}'
    ),
}
ALIGN = {
    'paper': (
        'Please continue from the prior knowledge below, solve the problem step'
        ' by step, and put your final answer within \\boxed{}.\n\n'
        'Question: {question}\n\n'
        'Prefix: {prefix}'
    ),
    'code': (
        'Please continue from the draft and solve the problem step by step, and'
        ' put your final answer within \\boxed{}. I will provide you with some'
        ' prior knowledge as a draft to assist you in solving the question.'
        '*Question*:{question}\n'
        '*Prefix*:{prefix}'
    ),
    'brief': 'Question: {question}\nReasoning: {prefix}\nContinue.',
}
ANSWER = {
    'paper': (
        'Please reason step by step, and put your final answer within'
        ' \\boxed{}.\n'
        '*Problem*: {question}'
    ),
    'code': (
        'Please reason step by step, and put your final answer within'
        ' \\boxed{}.{question}'
    ),
    'brief': 'Question: {question}',
}

_FIELD = re.compile(r'\{(question|prefix)\}')


def judge(name: str, question: str, prefix: str) -> str:
  """Returns the user's turn that asks whether `prefix` suffices.

  Raises:
    ConfigError: If there is no judge prompt of this name.
  """
  return _fill(_find(JUDGE, 'judge', name), question=question, prefix=prefix)


def align(name: str, question: str, prefix: str) -> str:
  """Returns the user's turn that asks to go on from `prefix` as a draft.

  Raises:
    ConfigError: If there is no align prompt of this name.
  """
  return _fill(_find(ALIGN, 'align', name), question=question, prefix=prefix)


def answer(name: str, question: str) -> str:
  """Returns the user's turn that asks `question` alone.

  Raises:
    ConfigError: If there is no answer prompt of this name.
  """
  return _fill(_find(ANSWER, 'answer', name), question=question)


def parse_verdict(reply: str) -> bool:
  """Returns whether a judge's reply says enough.

  The rule of src/binary_search.py:98-100, for fidelity: "[ENOUGH" and "enough"
  say no, and a reply that quotes both labels says yes.
  """
  return ENOUGH in reply or reply.strip() == 'ENOUGH'


def _find(prompts: Mapping[str, str], kind: str, name: str) -> str:
  if name not in prompts:
    raise errors.ConfigError(
        f'{kind} prompt {name!r}: no such prompt; there are {tuple(prompts)}.'
    )
  return prompts[name]


def _fill(template: str, **fields: str) -> str:
  """Fills the template alone: braces within a question mean nothing."""
  return _FIELD.sub(lambda match: fields[match[1]], template)
