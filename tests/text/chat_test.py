r"""Training and evaluation prompts agree, in every family's manner."""

import pytest

from palign_jax.core import errors
from palign_jax.text import prompts, tokenizer
from tests import fakes

# Templates of our own in the manner of the families that we know.
QWEN2 = "{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}" + fakes.CHATML
# Thinks unless told not to, and wraps the last reply's thinking.
QWEN3 = r"""
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
        {{- m.content.lstrip('\n') + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
# Prints the date, strips turns, begins with the sequence token.
LLAMA3 = r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now('%d %b %Y') %}
{%- endif %}
{{- '<|head|>system<|/head|>\n\nToday: ' + date_string + '<|eot_id|>' }}
{%- for m in messages %}
    {{- '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content']|trim }}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\n\n' }}
{%- endif %}"""
# Opens the thinking in the prompt, and drops it from assistant turns.
R1 = r"""{{- bos_token }}
{%- for m in messages %}
    {%- if m['role'] == 'user' %}
        {{- '<|User|>' + m['content'] }}
    {%- else %}
        {{- '<|Assistant|>' + m['content'].split('</think>')[-1] }}
        {{- '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{%- endif %}"""

CHATML_SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
LLAMA_SPECIALS = ('<|bos|>', '<|head|>', '<|/head|>', '<|eot_id|>')
R1_SPECIALS = ('<|bos|>', '<|User|>', '<|Assistant|>', '<|end|>')
FAMILIES = {
    'qwen2': (
        QWEN2,
        CHATML_SPECIALS,
        '<|im_start|>system\nBe helpful.<|im_end|>\n'
        '<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n',
        '<|im_end|>',
    ),
    'qwen3': (
        QWEN3,
        CHATML_SPECIALS,
        '<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n'
        '<think>\n\n</think>\n\n',
        '<|im_end|>',
    ),
    'llama3': (
        LLAMA3,
        LLAMA_SPECIALS,
        '<|bos|><|head|>system<|/head|>\n\nToday: 26 Jul 2024<|eot_id|>'
        '<|head|>user<|/head|>\n\nHow?<|eot_id|>'
        '<|head|>assistant<|/head|>\n\n',
        '<|eot_id|>',
    ),
    'r1': (
        R1,
        R1_SPECIALS,
        '<|bos|><|User|>How?<|Assistant|><think>\n',
        '<|end|>',
    ),
}


def load(path, template, specials=CHATML_SPECIALS):
  settings = {'bos_token': specials[0]}
  return tokenizer.load(
      fakes.tokenizer_folder(
          path, template=template, specials=specials, settings=settings
      )
  )


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
  template, specials, prompt, turn_end = FAMILIES[request.param]
  return load(tmp_path, template, specials), prompt, turn_end


def test_renders_by_hand(family):
  tok, prompt, turn_end = family
  assert tok.chat.prompt('How?') == prompt
  assert tok.chat.prompt('How?', ' So {') == prompt + ' So {'
  assert tok.chat.turn_end == turn_end


def test_training_ids_begin_with_evaluation_ids(family):
  tok, _, _ = family
  user = prompts.answer('paper', 'What is 2 + 2?')
  asked = tok.encode(tok.chat.prompt(user))
  target = '<Begin_of_Prefix>First, 2.<End_of_Prefix> So \\boxed{4}.'
  trained = tok.encode(tok.chat.prompt(user) + target + tok.chat.turn_end)
  assert trained[: len(asked)] == asked
  assert tok.decode(trained[len(asked) :]) == target
  assert trained[-1] == tok.encode(tok.chat.turn_end)[-1]
  # A reply that goes on from within the target reads what training wrote.
  begun = tok.encode(tok.chat.prompt(user, '<Begin_of_Prefix>First, 2.'))
  assert trained[: len(begun)] == begun


def test_special_tokens_are_single_ids(family):
  tok, _, turn_end = family
  assert len(tok.encode(turn_end)) == 1
  # No beginning-of-sequence token but the template's own.
  bos = tok.encode('<|bos|>')
  ids = tok.encode(tok.chat.prompt('How?'))
  assert len(bos) > 1 or ids.count(bos[0]) == 1


def test_the_clock_does_not_matter(tmp_path):
  clock = "{{ strftime_now('%Y-%m-%d') }}" + fakes.CHATML
  tok = load(tmp_path, clock)
  assert tok.chat.prompt('A') == (
      '26 Jul 2024<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n'
  )


@pytest.mark.parametrize(
    'template, match',
    [
        (
            "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}"
            '{% endfor %}',
            'leaves out what the assistant says',
        ),
        (
            "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}",
            r"writes '\\n' after an assistant turn, no special token",
        ),
        ("{{ raise_exception('No.') }}", r'the chat template fails \(No\.\)'),
        ('{% if %}', 'the chat template fails'),
        ('{{ 1 + bos_token }}', r'the chat template fails \(unsupported'),
        (None, 'no chat template; add chat_template.jinja'),
    ],
)
def test_templates_that_will_not_do(tmp_path, template, match):
  tok = load(tmp_path, template)
  with pytest.raises(errors.CheckpointError, match=match) as caught:
    _ = tok.chat.turn_end
  assert str(tmp_path) in str(caught.value)
  assert '\n' not in str(caught.value)
