"""A verdict is the student's: of its probabilities, or of its reply."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.checkpoints import hf_import
from palign_jax.core import errors
from palign_jax.judging import judge as judge_lib, scorer as scorer_lib
from palign_jax.models import decoder
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.text import prompts, tokenizer as tokenizer_lib
from tests import fakes

ITEMS = [
    judge_lib.Item('a', 1, 'How many?', 'First, 12 plus 7 is 19.'),
    judge_lib.Item('a', 2, 'How many?', 'First, 12 plus 7 is 19. Wait.'),
    judge_lib.Item('b', 1, 'Is it é?', ''),
    judge_lib.Item('c', 1, 'What? [ENOUGH]', 'Enough. <|im_end|>'),
]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = fakes.model_folder(tmp_path_factory.mktemp('judge') / 'student')
  return hf_import.load(folder, dtype=jnp.float32)


@pytest.fixture(scope='module')
def tokenizer(model):
  return tokenizer_lib.load(model.folder)


def label_judge(model, tokenizer, **settings):
  scorer = scorer_lib.Scorer(
      model.params,
      model.config,
      mesh=fakes.one_device(),
      dtype=jnp.float32,
      max_tokens=4096,
  )
  settings = {'threshold': 0.5, 'abstain': 0.0} | settings
  return judge_lib.LabelJudge(scorer, tokenizer, 'brief', **settings)


def quiet(count):
  del count


def chance(model, tokenizer, text):
  """Log-probability of each next token, from the text alone."""
  tokens = jnp.asarray(tokenizer.encode(text), jnp.int32)[None]
  positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  x = decoder.hidden(
      model.params, model.config, tokens, positions, None, dtype=jnp.float32
  )
  logits = decoder.logits(model.params, model.config, x)
  return jax.nn.log_softmax(logits[0, -1])


def test_p_enough_is_that_of_the_labels_in_a_full_forward_pass(
    model, tokenizer
):
  judge = label_judge(model, tokenizer)
  verdicts = judge(ITEMS, quiet)
  yes, no = map(tokenizer.encode, (prompts.ENOUGH, prompts.NOT_ENOUGH))
  shared = [a for a, b in zip(yes, no, strict=False) if a == b]
  assert tokenizer.decode(shared) == '['  # As with most tokenizers.
  for item, verdict in zip(ITEMS, verdicts, strict=True):
    user = prompts.judge('brief', item.question, item.prefix)
    text = tokenizer.chat.prompt(user) + '['
    log_p = chance(model, tokenizer, text)
    one, two = math.exp(log_p[yes[1]]), math.exp(log_p[no[1]])
    assert verdict.p_enough == pytest.approx(one / (one + two), abs=1e-6)
    assert verdict.margin == pytest.approx(math.log(one / two), abs=1e-5)
    assert verdict.enough == (verdict.p_enough >= 0.5)
    assert verdict.response == '' and not verdict.abstained


def test_the_same_whatever_else_is_asked(model, tokenizer):
  judge = label_judge(model, tokenizer)
  together = judge(ITEMS, quiet)
  assert [judge([item], quiet)[0] for item in ITEMS] == together
  assert judge(ITEMS[::-1], quiet) == together[::-1]


def test_tokens_and_progress_are_counted(model, tokenizer):
  judge, done = label_judge(model, tokenizer), []
  judge(ITEMS, done.append)
  lengths = [len(judge.prompt(i.question, i.prefix)) + 1 for i in ITEMS]
  assert judge.num_tokens == sum(lengths)
  assert sum(done) == len(ITEMS)


def test_threshold_and_band(model, tokenizer):
  p = [v.p_enough for v in label_judge(model, tokenizer)(ITEMS, quiet)]
  middle = float(np.median(p))
  strict = label_judge(model, tokenizer, threshold=middle)(ITEMS, quiet)
  assert [v.enough for v in strict] == [x >= middle for x in p]
  # A band wide enough for all: none is sure, none is enough.
  wide = label_judge(model, tokenizer, threshold=middle, abstain=0.49)
  assert all(v.abstained and not v.enough for v in wide(ITEMS, quiet))


def test_far_margins_do_not_overflow(model, tokenizer):
  judge = label_judge(model, tokenizer)
  assert judge._verdict(2000.0).p_enough == 1.0
  assert judge._verdict(-2000.0).p_enough == 0.0
  assert judge._verdict(1.5).p_enough == pytest.approx(1 / (1 + math.exp(-1.5)))


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
  return judge_lib.GenerateJudge(
      sampler, tokenizer, 'brief', seed=0, max_tokens=6
  )


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_reply_is_kept_and_read_by_the_reference_s_rule(
    model, tokenizer, temperature
):
  judge, done = generate_judge(model, tokenizer, temperature), []
  verdicts = judge(ITEMS, done.append)
  for verdict in verdicts:
    assert verdict.enough == prompts.parse_verdict(verdict.response)
    assert verdict.p_enough is None and verdict.margin is None
  assert len(done) == len(ITEMS)
  # Draws are named by trace and length, not by who else is asked.
  assert [judge([item], quiet)[0] for item in ITEMS] == verdicts


def test_replies_go_to_their_items(tokenizer):
  class Parrot:
    """Says whether the prompt ends a sentence; finishes in reverse."""

    def run(self, requests):
      for request in reversed(list(requests)):
        text = tokenizer.decode(request.tokens, skip_specials=False)
        says = '[ENOUGH]' if '19.<|im_end|>' in text else '[NOT_ENOUGH]'
        tokens = tuple(tokenizer.encode(says))
        yield sampler_lib.Completion(request.id, tokens, 'stop')

  judge = object.__new__(judge_lib.GenerateJudge)
  judge_lib._Prompted.__init__(judge, tokenizer, 'brief')
  judge._sampler, judge._seed, judge._max_tokens = Parrot(), 0, 6
  verdicts = judge(ITEMS, quiet)
  assert [v.enough for v in verdicts] == [True, False, False, False]
  assert verdicts[1].response == '[NOT_ENOUGH]'


def test_an_unknown_prompt_is_met_before_any_work(model, tokenizer):
  del model
  with pytest.raises(errors.ConfigError, match="'nope': no such prompt"):
    judge_lib._Prompted(tokenizer, 'nope')
