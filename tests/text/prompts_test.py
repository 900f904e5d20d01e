"""Prompts hold question and prefix as they are, in the reference's words."""

import hashlib

from hypothesis import given, strategies as st
import pytest

from palign_jax.core import errors
from palign_jax.text import prompts

QUESTION, PREFIX = '{question}', '{prefix}'
TEXTS = st.text(alphabet='{}ab\\0[]: \nquestionprefix', max_size=30)


def digest(text):
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    'text, want',
    [
        (prompts.judge('code', 'Q', 'P'), '92275b87259c5fe8'),
        (prompts.align('code', 'Q', 'P'), 'd2952fc5f104cc08'),
        (prompts.answer('code', 'Q'), 'db544a3bfb6c3e2a'),
    ],
)
def test_words_of_the_code(text, want):
  # Digests of what the reference's own f-strings give for Q and P.
  assert digest(text) == want


def test_code_by_eye():
  assert prompts.judge('code', 'Q{x}', 'P').endswith(
      '[NOT_ENOUGH].\n\nQuestion:\nQ{x}\n\nPartial reasoning:\nP\n'
  )
  assert prompts.answer('code', 'Q') == (
      'Please reason step by step, and put your final answer within \\boxed{}.Q'
  )


def test_brief():
  assert prompts.judge('brief', 'Q?', 'P.') == (
      'Question: Q?\nEnough to finish? [ENOUGH] or [NOT_ENOUGH]\nReasoning: P.'
  )
  assert prompts.align('brief', 'Q?', 'P.') == (
      'Question: Q?\nReasoning: P.\nContinue.'
  )
  assert prompts.answer('brief', 'Q?') == 'Question: Q?'


@pytest.mark.parametrize('name', ['paper', 'code', 'brief'])
def test_fields(name):
  for template in (prompts.JUDGE[name], prompts.ALIGN[name]):
    assert template.count('{question}') == template.count('{prefix}') == 1
  assert prompts.JUDGE[name].rstrip('\n').endswith('{prefix}')
  assert prompts.ENOUGH in prompts.JUDGE[name]
  assert prompts.NOT_ENOUGH in prompts.JUDGE[name]
  assert prompts.ANSWER[name].count('{question}') == 1
  assert '{prefix}' not in prompts.ANSWER[name]


@pytest.mark.parametrize('name', ['paper', 'code', 'brief'])
@given(question=TEXTS, prefix=TEXTS)
def test_fields_are_filled_once_and_as_they_are(name, question, prefix):
  for templates, fill in (
      (prompts.JUDGE, prompts.judge),
      (prompts.ALIGN, prompts.align),
  ):
    head, rest = templates[name].split(QUESTION)
    middle, tail = rest.split(PREFIX)
    want = head + question + middle + prefix + tail
    assert fill(name, question, prefix) == want
  head, tail = prompts.ANSWER[name].split(QUESTION)
  assert prompts.answer(name, question) == head + question + tail


@pytest.mark.parametrize(
    'reply, enough',
    [
        ('[ENOUGH]', True),
        (' ENOUGH\n', True),
        ('I say [ENOUGH].', True),
        ('[ENOUGH] or [NOT_ENOUGH]', True),
        ('[NOT_ENOUGH]', False),
        ('ENOUGH.', False),
        ('[ENOUGH', False),
        ('[enough]', False),
        ('', False),
    ],
)
def test_parse_verdict(reply, enough):
  assert prompts.parse_verdict(reply) is enough


@pytest.mark.parametrize(
    'ask, kind',
    [
        (lambda: prompts.judge('papr', 'Q', 'P'), 'judge'),
        (lambda: prompts.align('papr', 'Q', 'P'), 'align'),
        (lambda: prompts.answer('papr', 'Q'), 'answer'),
    ],
)
def test_unknown_name(ask, kind):
  match = f"{kind} prompt 'papr': .*'paper', 'code', 'brief'"
  with pytest.raises(errors.ConfigError, match=match):
    ask()
