"""Real traces, tokenizer and chat templates: every cut, id by id.

Runs only with --shared=FOLDER, a folder with `traces/r1_distill.jsonl`,
`tokenizers/qwen_tokenizer.json`, `tokenizers/qwen3_tokenizer_config.json` and
`tokenizers/templates/*.jinja`.
"""

import pathlib
import shutil

import pytest

from palign_jax.core import jsonl
from palign_jax.judging import trunk as trunk_lib
from palign_jax.text import prompts, sentences, tokenizer as tokenizer_lib

QWEN = 'Qwen-Qwen2.5-7B-Instruct'
TEMPLATES = (
    QWEN,
    'Qwen-QwQ-32B',
    'Qwen-Qwen3-0.6B',
    'deepseek-ai-DeepSeek-R1-Distill-Llama-8B',
    'deepseek-ai-DeepSeek-R1-Distill-Qwen-32B',
    'meta-llama-Llama-3.1-8B-Instruct',
    'meta-llama-Llama-3.2-3B-Instruct',
)


@pytest.fixture(scope='module')
def shared(request):
  return pathlib.Path(request.config.getoption('--shared'))


@pytest.fixture(scope='module')
def traces(shared):
  return list(jsonl.read(shared / 'traces/r1_distill.jsonl'))


@pytest.fixture(scope='module')
def load(shared, tmp_path_factory):
  """Gives the Qwen tokenizer with a chat template."""

  def of(template):
    folder = tmp_path_factory.mktemp('tok')
    files = {
        'tokenizer.json': 'qwen_tokenizer.json',
        'tokenizer_config.json': 'qwen3_tokenizer_config.json',
        'chat_template.jinja': f'templates/{template}.jinja',
    }
    for name, source in files.items():
      shutil.copyfile(shared / 'tokenizers' / source, folder / name)
    return tokenizer_lib.load(folder)

  return of


def num_wrong(tok, prompt, row) -> tuple[int, int]:
  """Returns how many tails there are, and how many are wrong."""
  trace = row['Long-CoT']
  ends = sentences.cuts(trace, 'sentence')
  trunk = trunk_lib.Trunk(tok, prompt, row['question'], trace, ends)
  ids = trunk.tokens.tolist()
  users = [
      prompts.judge(prompt, row['question'], trace[:end]) for end in [0, *ends]
  ]
  alone = tok.encode_many([tok.chat.prompt(user) for user in users])
  wrong = sum(
      ids[: tail.anchor] + list(tail.tokens) != whole
      for tail, whole in zip(
          trunk.tails(range(len(ends) + 1)), alone, strict=True
      )
  )
  return len(ends) + 1, wrong


@pytest.mark.slow
@pytest.mark.parametrize('prompt', ['code', 'paper'])
def test_every_cut_of_every_trace(load, traces, prompt):
  tok = load(QWEN)
  counts = [num_wrong(tok, prompt, row) for row in traces]
  assert len(counts) == 150
  assert sum(n for n, _ in counts) > 10_000
  assert sum(wrong for _, wrong in counts) == 0


@pytest.mark.slow
@pytest.mark.parametrize('template', TEMPLATES)
def test_other_templates(load, traces, template):
  tok = load(template)
  for prompt in prompts.JUDGE:
    for row in traces[::50]:
      assert num_wrong(tok, prompt, row)[1] == 0
