"""A verdict is the student's, whoever is asked beside and whatever memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.checkpoints import hf_import
from palign_jax.core import errors
from palign_jax.judging import (
    calibration as calibration_lib,
    judge as judge_lib,
    programs,
    reading as reading_lib,
    rules,
    search,
)
from palign_jax.models import decoder
from palign_jax.parallel import memory
from palign_jax.text import prompts, tokenizer as tokenizer_lib
from tests import fakes
from tests.judging import tiny


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = fakes.model_folder(tmp_path_factory.mktemp('judge') / 'student')
  return hf_import.load(folder, dtype=jnp.float32)


@pytest.fixture(scope='module')
def tokenizer(model):
  return tokenizer_lib.load(model.folder)


@pytest.fixture(scope='module')
def scorers(model):
  """With a shared trunk, and without."""
  return {shared: tiny.scorer(model, shared) for shared in (True, False)}


@pytest.fixture(params=[True, False], ids=['trunk', 'reread'])
def scorer(request, scorers):
  return scorers[request.param]


def chance(model, tokenizer, text):
  """Log-probability of each next token, from the text alone."""
  tokens = jnp.asarray(tokenizer.encode(text), jnp.int32)[None]
  positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  x = decoder.hidden(
      model.params, model.config, tokens, positions, None, dtype=jnp.float32
  )
  logits = decoder.logits(model.params, model.config, x)
  return jax.nn.log_softmax(logits[0, -1])


def test_a_trunk_changes_no_verdict(tokenizer, scorers):
  both = [
      tiny.verdicts(tiny.label_judge(scorers[shared], tokenizer))
      for shared in (True, False)
  ]
  for name, known in both[0].items():
    for n, verdict in known.items():
      assert verdict.p_enough == pytest.approx(
          both[1][name][n].p_enough, abs=1e-6
      )
      assert verdict.enough == both[1][name][n].enough


def test_p_enough_is_that_of_the_labels_in_a_full_forward_pass(
    model, tokenizer, scorers
):
  found = tiny.verdicts(tiny.label_judge(scorers[False], tokenizer))
  yes, no = map(tokenizer.encode, (prompts.ENOUGH, prompts.NOT_ENOUGH))
  assert [len(found[t.id]) - 1 for t in tiny.TRACES] == [4, 1, 3]
  for trace in tiny.TRACES:
    for length in (0, len(trace.ends)):
      verdict = found[trace.id][length]
      user = prompts.judge('brief', trace.question, trace.prefix(length))
      text = tokenizer.chat.prompt(user) + '['  # With which both begin.
      log_p = chance(model, tokenizer, text)
      one, two = math.exp(log_p[yes[1]]), math.exp(log_p[no[1]])
      assert verdict.p_enough == pytest.approx(one / (one + two), abs=1e-6)
      assert verdict.margin == pytest.approx(math.log(one / two), abs=1e-5)
      assert verdict.enough == (verdict.p_enough >= 0.5)
      assert not verdict.abstained and not verdict.rollouts


@pytest.mark.bits
def test_the_same_whatever_else_is_asked(tokenizer, scorer):
  judge = tiny.label_judge(scorer, tokenizer)
  together = tiny.verdicts(judge)
  assert tiny.verdicts(judge, tiny.TRACES[::-1]) == together
  for trace in tiny.TRACES:
    ((name, alone),) = tiny.verdicts(judge, [trace]).items()
    for length, verdict in alone.items():
      p = together[name][length].p_enough
      assert verdict.p_enough == pytest.approx(p, abs=1e-6)


def test_tokens_and_progress_are_counted(tokenizer, scorers):
  for shared, scorer in scorers.items():
    judge, done = tiny.label_judge(scorer, tokenizer), []
    before = judge.num_tokens
    tiny.verdicts(judge, advance=done.append)
    alone = sum(
        len(reading_lib.prompt_tokens(tokenizer, 'brief', trace, n)) + 1
        for trace in tiny.TRACES
        for n in range(len(trace.ends) + 1)
    )
    assert judge.prompt_tokens == alone
    assert sum(done) == sum(len(trace.ends) + 1 for trace in tiny.TRACES)
    if shared:
      assert 0 < judge.trunk_tokens < judge.num_tokens - before < alone
    else:
      assert judge.num_tokens - before == alone


def test_threshold_and_band(tokenizer, scorer):
  flat = lambda judge: [
      v for known in tiny.verdicts(judge).values() for v in known.values()
  ]
  p = [v.p_enough for v in flat(tiny.label_judge(scorer, tokenizer))]
  middle = calibration_lib.Calibration(float(np.median(p)))
  strict = flat(tiny.label_judge(scorer, tokenizer, middle))
  assert [v.enough for v in strict] == [x >= middle.threshold for x in p]
  # A band wide enough for all: none is sure, none is enough.
  wide = tiny.label_judge(scorer, tokenizer, middle, abstain=0.49)
  assert all(v.abstained and not v.enough for v in flat(wide))


def test_the_prior_is_the_empty_prefix_s(tokenizer, scorer):
  raw = tiny.verdicts(tiny.label_judge(scorer, tokenizer))
  prior = calibration_lib.Calibration(0.5, prior=True, slope=2.0, offset=0.1)
  for name, known in tiny.verdicts(
      tiny.label_judge(scorer, tokenizer, prior)
  ).items():
    for n, verdict in known.items():
      margin = 2 * (raw[name][n].margin - raw[name][0].margin) + 0.1
      assert verdict.margin == pytest.approx(margin, abs=1e-5)
      assert verdict.p_enough == pytest.approx(
          calibration_lib.chance(margin), abs=1e-5
      )
    assert known[0].margin == pytest.approx(0.1, abs=1e-6)


def num_caches():
  return sum(x.ndim == 4 and max(x.shape) >= 256 for x in jax.live_arrays())


def test_where_it_abstains_the_verifier_decides(tokenizer, scorer):
  asked, before = [], num_caches()

  class Verifier:
    """Believes in odd lengths, and has the memory for itself."""

    def judge(self, cuts):
      assert num_caches() == before
      asked.extend((trace.id, length) for trace, length in cuts)
      return [
          search.Verdict(n % 2 == 1, rollouts=4, passes=3 * (n % 2))
          for _, n in cuts
      ]

  p = [
      v.p_enough
      for known in tiny.verdicts(tiny.label_judge(scorer, tokenizer)).values()
      for v in known.values()
  ]
  middle = calibration_lib.Calibration(float(np.median(p)))
  width = float(np.median(np.abs(np.array(p) - middle.threshold))) + 1e-6
  judge = tiny.label_judge(scorer, tokenizer, middle, abstain=width)
  judge._verifier = Verifier()
  found = tiny.verdicts(judge)
  asked_at_once = list(asked)
  # One by one: trunks are let go of and read again.
  apart = judge.search(
      [judge.read(trace, tiny.LIMIT) for trace in tiny.TRACES],
      lambda r: search.sequential(r.num_cuts),
      tiny.quiet,
  )
  for name, known in apart.items():
    for n, v in known.verdicts.items():
      both = v.p_enough, found[name][n].p_enough
      assert both[0] == pytest.approx(both[1], abs=1e-6)
      assert v.enough == found[name][n].enough
  asked[:] = asked_at_once
  for name, known in found.items():
    for n, v in known.items():
      assert v.abstained == ((name, n) in asked) == (v.rollouts == 4)
      sure = v.p_enough >= middle.threshold
      assert v.enough == (n % 2 == 1 if v.abstained else sure)
      assert v.passes == (3 * (n % 2) if v.abstained else 0)
  assert 0 < len(asked) < len(p)


def test_how_much_of_a_trace_the_context_holds(tokenizer, scorer):
  judge, (trace, *_) = tiny.label_judge(scorer, tokenizer), tiny.TRACES
  sizes = [
      len(reading_lib.prompt_tokens(tokenizer, 'brief', trace, n))
      for n in range(5)
  ]
  assert sizes == sorted(set(sizes))
  for limit in range(sizes[0] - 1, sizes[-1] + 2):
    fitting = sum(size <= limit for size in sizes[1:])
    assert judge.read(trace, limit).num_cuts == fitting


@pytest.mark.parametrize('fails', [False, True])
def test_one_group_is_in_memory_at_a_time(model, tokenizer, fails):
  """Whether it was judged, or memory ended on the way."""
  scorer = tiny.scorer(model, True, max_rows=2)
  before, opened = num_caches(), []

  class Spy:
    """Looks at the memory before a batch is opened, and may lose the first."""

    def __getattr__(self, name):
      return getattr(scorer, name)

    def open(self, trunks):
      opened.append((programs.capacity(max(map(len, trunks))), len(trunks)))
      assert num_caches() == before
      batch = scorer.open(trunks)
      assert num_caches() > before
      score, first = batch.score, len(opened) == 1

      def score_and_fail(probes):
        margins = score(probes)
        if fails and first:
          raise memory.OutOfMemory('no room')
        return margins

      batch.score = score_and_fail
      return batch

  long = tiny.trace('long', 'How many?', 'Yes, it is 19. ' * 50)
  found = tiny.verdicts(tiny.label_judge(Spy(), tokenizer), [*many(3), long])
  assert len(found) == 4
  halves = [(256, 1)] * 2 if fails else []
  assert opened == [(256, 2), *halves, (256, 1), (512, 1)]
  assert num_caches() == before


class Scarce:
  """A scorer with room for so many tokens; it runs out late or early.

  Its margins tell prompts apart, and it notes what it was given.
  """

  def __init__(self, room, late, narrower=0):
    self.num_tokens, self.opened = 0, []
    self._room, self._late, self._narrower = room, late, narrower

  def narrow(self):
    """Has as much room again, so many times."""
    self._narrower -= 1
    self._room *= 2
    return self._narrower >= 0

  def groups(self, lengths):
    return [list(range(len(lengths)))]

  def open(self, trunks):
    self.opened.append(len(trunks))
    size = sum(map(len, trunks))
    if size > self._room and not self._late:
      raise memory.OutOfMemory(f'no {size}')

    def score(probes):
      if size > self._room and len(self.opened) % 2:
        raise memory.OutOfMemory(f'no {size}')
      text = lambda p: [*trunks[p.trunk][: p.anchor], *p.tokens]
      return np.array([np.sin(sum(text(p))) for p in probes], np.float32)

    batch = lambda: None
    batch.score, batch.release = score, lambda: None
    return batch


def many(num):
  return [
      tiny.trace(f't{i}', f'Is it {i}?', f'It is {i}. ' * (1 + i % 5))
      for i in range(num)
  ]


@pytest.mark.parametrize('late', [False, True])
def test_out_of_memory_halves_the_group_and_loses_nothing(
    tokenizer, caplog, late
):
  traces = many(21)
  binary = lambda reading: search.binary(reading.num_cuts)

  def run(judge):
    readings = [judge.read(trace, tiny.LIMIT) for trace in traces]
    return judge.search(readings, binary, tiny.quiet)

  roomy, scarce = Scarce(10**6, late), Scarce(400, late)
  expected = run(tiny.label_judge(roomy, tokenizer))
  judge = tiny.label_judge(scarce, tokenizer)
  with caplog.at_level('WARNING'):
    found = run(judge)
  assert list(found) == [trace.id for trace in traces]
  assert found == expected
  assert roomy.opened == [21]
  # 1435 tokens, 725 (by luck there is room for them once), 370, 355, 710, ...
  early = [21, 11, 6, 5, 10, 5, 5]
  assert scarce.opened == ([21, 11, 10, 5, 5] if late else early)
  assert 'Out of memory with 21 traces' in caplog.text
  assert 'half' in caplog.text
  assert judge.halved == caplog.text.count('Out of memory') == 3 - late
  # What was too much once is not tried again.
  scarce.opened.clear()
  assert run(judge) == expected
  assert scarce.opened == [6, 5, 5, 5]


def test_of_one_trace_that_does_not_fit_less_is_read_together(
    tokenizer, caplog
):
  judge = tiny.label_judge(Scarce(10, False, narrower=9), tokenizer)
  readings = [judge.read(trace, tiny.LIMIT) for trace in many(3)]
  with caplog.at_level('WARNING'):
    found = judge.search(readings, tiny.everything, tiny.quiet)
  assert list(found) == ['t0', 't1', 't2']
  narrowed = caplog.text.count('reading half as many of them together')
  assert judge.narrowed == narrowed > 0


def test_one_trace_that_does_not_fit_is_an_error_of_the_config(tokenizer):
  judge = tiny.label_judge(Scarce(10, False), tokenizer)
  readings = [judge.read(trace, tiny.LIMIT) for trace in many(3)]
  with pytest.raises(errors.ConfigError) as e:
    judge.search(readings, tiny.everything, tiny.quiet)
  assert 'config.compute.judge_tokens' in str(e.value)
  assert 'does not fit the memory (no ' in str(e.value)


@pytest.mark.parametrize('name', [*search.SEARCHES])
def test_every_search_finds_the_same_with_a_trunk_and_without(
    tokenizer, scorers, name
):
  pick = rules.find('stable', num=2, threshold=0.5)
  begin = search.find(name, pick)
  found = []
  for scorer in scorers.values():
    judge = tiny.label_judge(scorer, tokenizer)
    readings = [judge.read(trace, tiny.LIMIT) for trace in tiny.TRACES]
    known = judge.search(readings, lambda r: begin(r.num_cuts), tiny.quiet)
    found.append({k: (f.cut, list(f.verdicts)) for k, f in known.items()})
  assert found[0] == found[1]


def test_nothing_to_judge(tokenizer, scorer):
  judge = tiny.label_judge(scorer, tokenizer)
  assert judge.search([], tiny.everything, tiny.quiet) == {}


def test_an_unknown_prompt_is_met_before_any_work(tokenizer):
  with pytest.raises(errors.ConfigError, match="'nope': no such prompt"):
    judge_lib.LabelJudge(
        Scarce(1, False), tokenizer, 'nope', calibration=tiny.RAW, abstain=0.0
    )
