"""A reply is kept and read by the reference's rule, and goes to its cut."""

import jax.numpy as jnp
import pytest

from palign_jax.checkpoints import hf_import
from palign_jax.core import errors
from palign_jax.judging import reading as reading_lib, reply
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.text import prompts, tokenizer as tokenizer_lib
from tests import fakes
from tests.judging import tiny


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = fakes.model_folder(tmp_path_factory.mktemp('reply') / 'student')
  return hf_import.load(folder, dtype=jnp.float32)


@pytest.fixture(scope='module')
def tokenizer(model):
  return tokenizer_lib.load(model.folder)


def generate_judge(model, tokenizer, temperature):
  sampler = sampler_lib.Sampler(
      model.params,
      model.config,
      mesh=None,
      dtype=jnp.float32,
      num_rows=4,
      stop_ids=model.stop_ids,
      vocab_limit=tokenizer.size,
      max_positions=model.max_positions,
      sampling=sampler_lib.SamplingConfig(
          temperature=temperature, top_p=1.0, top_k=0, repetition_penalty=1.0
      ),
      loop_rule=None,
      prefill_tokens=1024,
  )
  return reply.GenerateJudge(sampler, tokenizer, 'brief', seed=0, max_tokens=6)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_reply_is_kept_and_read(model, tokenizer, temperature):
  judge, done = generate_judge(model, tokenizer, temperature), []
  run, drawn = judge._sampler.run, []

  def spy(requests):
    for completion in run(requests):
      drawn.append(len(completion.tokens))
      yield completion

  judge._sampler.run = spy
  found = tiny.verdicts(judge, advance=done.append)
  for known in found.values():
    for verdict in known.values():
      assert verdict.enough == prompts.parse_verdict(verdict.response)
      assert verdict.p_enough is None and verdict.margin is None
  assert len(done) == sum(map(len, found.values()))
  # Draws are named by trace and length, not by who else is asked.
  alone = {}
  for trace in tiny.TRACES:
    alone |= tiny.verdicts(judge, [trace])
  assert alone == found
  assert judge.prompt_tokens == 2 * sum(
      len(reading_lib.prompt_tokens(tokenizer, 'brief', trace, n))
      for trace in tiny.TRACES
      for n in range(len(trace.ends) + 1)
  )
  assert (sum(drawn) > 0) == (temperature > 0)  # Greedily it ends at once.
  assert judge.num_tokens == judge.prompt_tokens + sum(drawn)


class Parrot(sampler_lib.Sampler):
  """Says whether the prompt ends a sentence; finishes in reverse."""

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer

  def run(self, requests):
    for request in reversed(list(requests)):
      text = self._tokenizer.decode(request.tokens, skip_specials=False)
      says = '[ENOUGH]' if '19.<|im_end|>' in text else '[NOT_ENOUGH]'
      tokens = tuple(self._tokenizer.encode(says))
      yield sampler_lib.Completion(request.id, tokens, 'stop')


def test_replies_go_to_their_cuts(tokenizer):
  judge = reply.GenerateJudge(
      Parrot(tokenizer), tokenizer, 'brief', seed=0, max_tokens=6
  )
  found = tiny.verdicts(judge)
  enough = [(k, n) for k, f in found.items() for n in f if f[n].enough]
  assert enough == [('a', 1)]
  assert found['a'][2].response == '[NOT_ENOUGH]'


def test_how_much_of_a_trace_the_context_holds(tokenizer):
  judge = reply.GenerateJudge(
      Parrot(tokenizer), tokenizer, 'brief', seed=0, max_tokens=6
  )
  size = len(reading_lib.prompt_tokens(tokenizer, 'brief', tiny.TRACES[0], 2))
  assert judge.read(tiny.TRACES[0], size).num_cuts == 2
  assert judge.read(tiny.TRACES[0], size - 1).num_cuts == 1


def test_an_unknown_prompt_is_met_before_any_work(tokenizer):
  with pytest.raises(errors.ConfigError, match="'nope': no such prompt"):
    reply.GenerateJudge(
        Parrot(tokenizer), tokenizer, 'nope', seed=0, max_tokens=6
    )
