"""The requests, and both sides on one tiny checkpoint."""

from etils import epath
import pytest

from benchmarks import (
    judge,
    requests as requests_lib,
    sampling,
    sampling_ours,
    shapes,
    torch_sampling,
)
from palign_jax.core import errors
from palign_jax.text import tokenizer as tokenizer_lib


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizer_lib.load(judge.SANDBOX)


def test_requests_have_lengths_of_their_own(tokenizer):
  make = lambda: requests_lib.make(
      None, tokenizer, num_prompts=64, num_samples=4
  )
  requests = make()
  lengths = sorted(request.length for request in requests)
  assert len(requests) == 256
  assert lengths[0] >= requests_lib.SHORTEST
  assert lengths[-1] == requests_lib.LONGEST
  assert 70 < lengths[128] < 110
  assert len({request.prompt for request in requests}) == 64
  assert len({request.prompt for request in requests[:4]}) == 1
  assert requests == make()


def test_too_few_questions(tokenizer):
  with pytest.raises(errors.DataError, match='there are 1 questions and 2'):
    requests_lib.make([('What?', '')], tokenizer, num_prompts=2, num_samples=1)


def test_both_systems_draw_what_was_asked_for(tokenizer, tmp_path):
  folder = epath.Path(tmp_path) / 'tiny'
  shapes.make(folder, 'tiny', judge.SANDBOX, 'float32', own=False)
  prompt = tuple(tokenizer.encode('How many?'))
  lengths = [3, 9, 4, 2]
  requests = [requests_lib.Request(prompt, length) for length in lengths]
  args = sampling.parse(['--shape=tiny', '--rows=8'])
  ours, torchs = sampling.specs(str(folder), requests, args, (2,))
  assert ours.system == 'ours' and torchs.system == 'torch_strong'
  found = sampling_ours.Sampling(**ours.options).run()
  assert found['tokens'] == sum(lengths)
  assert 0 < found['useful'] <= 1
  found = torch_sampling.Sampling(**torchs.options).run()
  assert found['tokens'] == sum(lengths)
  # Two batches of two rows, as long as the longer one.
  assert found['useful'] == round(sum(lengths) / (2 * 9 + 2 * 4), 4)
  assert not {'note', 'all_tokens'} & found.keys()
  few = torch_sampling.Sampling(**torchs.options | {'few': 1}).run()
  assert few['tokens'] == 3 + 9 and few['useful'] == round(12 / 18, 4)
  assert few['all_tokens'] == sum(lengths)
  assert few['note'] == '2 of 4 requests'
