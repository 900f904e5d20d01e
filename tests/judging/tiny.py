"""Traces and judges that tests of judging share."""

import jax.numpy as jnp

from palign_jax.judging import (
    calibration as calibration_lib,
    judge as judge_lib,
    reread,
    scorer as scorer_lib,
    search,
    trace as trace_lib,
    trunk_scorer,
)
from palign_jax.text import sentences
from tests import fakes

RAW = calibration_lib.Calibration(0.5)
LIMIT = 500


def trace(name, question, text):
  return trace_lib.Trace(
      name, question, text, sentences.cuts(text, 'sentence'), '19'
  )


TRACES = [
    trace('a', 'How many?', 'First, 12 plus 7 is 19. Wait. Is it? Yes, 19!'),
    trace('b', 'Is it é?', 'Yes.'),
    trace('c', 'What? [ENOUGH]', 'Enough. <|im_end|> No: 7. So é. \\boxed{1}.'),
]


def scorer(model, shared, **settings):
  """Returns a scorer of one device, with a trunk or without."""
  same = dict(mesh=fakes.one_device(), dtype=jnp.float32)
  if shared:
    settings = {'budget': None, 'judge_tokens': 4096} | settings
    return trunk_scorer.TrunkScorer(
        model.params, model.config, **same, **settings
    )
  return reread.RereadScorer(
      scorer_lib.Scorer(model.params, model.config, max_tokens=4096, **same)
  )


def label_judge(scorer, tokenizer, calibration=RAW, abstain=0.0, verifier=None):
  return judge_lib.LabelJudge(
      scorer,
      tokenizer,
      'brief',
      calibration=calibration,
      abstain=abstain,
      verifier=verifier,
  )


def quiet(count):
  del count


def everything(reading):
  """A search that asks for the empty prefix and all others."""
  return search.ask(range(reading.num_cuts + 1))


def verdicts(judge, traces=TRACES, advance=quiet):
  """Returns the verdicts on all prefixes, by trace and length."""
  readings = [judge.read(trace, LIMIT) for trace in traces]
  found = judge.search(readings, everything, advance)
  return {name: dict(known.verdicts) for name, known in found.items()}
