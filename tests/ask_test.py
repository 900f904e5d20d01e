"""One question, one answer, the same for the same seed; errors in a line."""

import jax.numpy as jnp
import pytest

from palign_jax import ask
from palign_jax.checkpoints import hf_import
from palign_jax.core import keys
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.text import prompts, tokenizer as tokenizer_lib
from tests import fakes

QUESTION = 'What is 1 plus 1?'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  # It never ends its turn by itself: no answer is empty.
  path = tmp_path_factory.mktemp('ask') / 'model'
  return str(fakes.model_folder(path, stop=-9.0))


@pytest.fixture
def said(folder, capsys):
  """Returns what the command prints."""
  command = [f'--model={folder}', '--prompt=brief', '--max_tokens=20']

  def said(*flags):
    assert ask.main([*command, *flags, QUESTION]) == 0
    return capsys.readouterr().out

  return said


def sampled(folder, seed):
  """The text of the same request, not streamed."""
  model = hf_import.load(folder, dtype=jnp.float32)
  tokenizer = tokenizer_lib.load(folder)
  sampler = sampler_lib.Sampler(
      model.params,
      model.config,
      mesh=None,
      dtype=jnp.float32,
      num_rows=1,
      stop_ids=model.stop_ids,
      vocab_limit=tokenizer.size,
      max_positions=model.max_positions,
      sampling=sampler_lib.SamplingConfig(
          temperature=0.6, top_p=0.9, top_k=0, repetition_penalty=1.0
      ),
      loop_rule=None,
      prefill_tokens=64,
  )
  user = prompts.answer('brief', QUESTION)
  tokens = tuple(tokenizer.encode(tokenizer.chat.prompt(user)))
  key = keys.fold(seed, 'ask')
  (done,) = sampler.run([sampler_lib.Request('it', tokens, key, 20)])
  assert len(done.tokens) == 20
  return tokenizer.decode(done.tokens)


def test_prints_what_the_sampler_draws(folder, said):
  answers = [said(f'--seed={seed}') for seed in (0, 0, 1)]
  assert answers[0] == answers[1] != answers[2]
  assert answers[0] == sampled(folder, 0) + '\n'
  assert answers[2] == sampled(folder, 1) + '\n'


def test_ends_before_a_stop_string(said):
  whole = said()
  # Of several tokens: what may be its beginning is not printed too early.
  stop = whole[6:9]
  assert len(stop) == 3 and '\ufffd' not in stop
  assert said('--stop=nowhere') == whole
  want = whole[: whole.index(stop)] + '\n'
  assert said('--stop=nowhere', f'--stop={stop}') == want


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--model=/no/such/folder'], '/no/such/folder'),
        (['--prompt=polite'], "answer prompt 'polite': no such prompt"),
        (['--top_p=0'], 'sampling.top_p is 0.0; it must be above 0'),
        (['--max_tokens=0'], 'max_tokens 0; both must be at least 1'),
        (['--stop='], "--stop '': an empty text stops at once"),
    ],
)
def test_errors_are_one_line(folder, capsys, flags, message):
  assert ask.main([f'--model={folder}', *flags, 'Why?']) == 1
  out, err = capsys.readouterr()
  assert not out and err.count('\n') == 1
  assert err.startswith('error: ') and message in err


def test_a_question_without_room(folder, capsys):
  assert ask.main([f'--model={folder}', 'why ' * 600]) == 1
  assert 'has room for 512; ask a shorter one' in capsys.readouterr().err
