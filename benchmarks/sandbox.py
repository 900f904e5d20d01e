"""How good are the sandbox's teacher, student and judge?

  python -m benchmarks.sandbox [--num=100] [--rollouts=4] [--json=FILE]

Prints accuracy by number of steps on problems of the evaluation split, and the
AUROC of the student's verdicts against what its own continuations reach.
"""

import json
import pathlib

from absl import app, flags
import jax.numpy as jnp
import numpy as np

from palign_jax.checkpoints import hf_import
from palign_jax.core import keys
from palign_jax.judging import (
    calibration,
    judge as judge_lib,
    search,
    trace as trace_lib,
    trunk_scorer,
    yardstick,
)
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.sandbox import teacher as teacher_lib, world
from palign_jax.text import prompts, tokenizer as tokenizer_lib

_ASSETS = 'palign_jax/sandbox/assets'
_STUDENT = flags.DEFINE_string('student', f'{_ASSETS}/student', 'Folder.')
_TEACHER = flags.DEFINE_string('teacher', f'{_ASSETS}/teacher', 'Folder.')
_NUM = flags.DEFINE_integer('num', 100, 'Problems of each number of steps.')
_ROLLOUTS = flags.DEFINE_integer('rollouts', 4, 'Continuations of a cut.')
_TEMPERATURE = flags.DEFINE_float('temperature', 0.6, '0 is greedy.')
_JSON = flags.DEFINE_string('json', None, 'Also writes the numbers there.')

_STEPS = range(2, 9)
_MAX_TOKENS = 352
_SEED = 77  # No config trains or evaluates on this stream.


class Model:
  """A folder, ready to sample and judge."""

  def __init__(self, folder: str):
    self.mesh = mesh_lib.make({'data': -1, 'fsdp': 1, 'tensor': 1})
    self.model = hf_import.load(folder, dtype=jnp.float32, mesh=self.mesh)
    self.tokenizer = tokenizer_lib.load(folder)
    self._sampler = sampler_lib.Sampler(
        self.model.params,
        self.model.config,
        mesh=self.mesh,
        dtype=jnp.float32,
        num_rows=64,
        stop_ids=self.tokenizer.eos_ids,
        vocab_limit=self.tokenizer.size,
        max_positions=self.model.max_positions,
        sampling=sampler_lib.SamplingConfig(
            temperature=_TEMPERATURE.value,
            top_p=0.9,
            top_k=0,
            repetition_penalty=1.0,
        ),
        loop_rule=None,
        prefill_tokens=8192,
    )

  def right(self, jobs: list[tuple[world.Problem, str]]) -> np.ndarray:
    """Returns whether the continuation of each (problem, prefix) is right."""
    requests = []
    for i, (problem, prefix) in enumerate(jobs):
      user = prompts.answer('paper', problem.question)
      text = self.tokenizer.chat.prompt(user, prefix)
      requests.append(
          sampler_lib.Request(
              id=str(i),
              tokens=tuple(self.tokenizer.encode(text)),
              key=keys.fold(_SEED, 'sandbox', i),
              max_tokens=_MAX_TOKENS,
          )
      )
    right = np.zeros(len(jobs), bool)
    for completion in self._sampler.run(requests):
      problem, prefix = jobs[int(completion.id)]
      text = prefix + self.tokenizer.decode(completion.tokens)
      right[int(completion.id)] = text.rstrip().endswith(
          f'\\boxed{{{problem.answer}}}.'
      )
    return right

  def margins(self, traces: list[trace_lib.Trace]) -> np.ndarray:
    """Returns the log-odds of the labels at the end of each trace."""
    labels = judge_lib.LabelJudge(
        trunk_scorer.TrunkScorer(
            self.model.params,
            self.model.config,
            mesh=self.mesh,
            dtype=jnp.float32,
            budget=None,
            judge_tokens=16_384,
        ),
        self.tokenizer,
        'brief',
        calibration=calibration.Calibration(0.5),
        abstain=0.0,
    )
    limit = self.model.max_positions
    found = labels.search(
        [labels.read(trace, limit) for trace in traces],
        lambda reading: search.ask([1]),
        lambda count: None,
    )
    return np.array([f.verdicts[1].margin for f in found.values()])


def accuracy(model: Model) -> dict[int, float]:
  """Returns the share of right answers by number of steps."""
  problems = [
      world.problem(_SEED, i, steps, 'eval')
      for steps in _STEPS
      for i in range(_NUM.value)
  ]
  right = model.right([(problem, '') for problem in problems])
  by_steps = right.reshape(len(_STEPS), -1).mean(1)
  return dict(zip(_STEPS, by_steps.round(3).tolist(), strict=True))


def judge(model: Model) -> dict[str, float]:
  """Returns how well p_enough predicts the success of continuations."""
  rng, cuts = np.random.default_rng(_SEED), []
  for steps in _STEPS:
    for i in range(_NUM.value // 2):
      problem = world.problem(_SEED, i, steps, 'eval')
      text = teacher_lib.trace(problem, _SEED)
      end = int(rng.choice(teacher_lib.sentence_ends(text)[:-1]))
      cuts.append((problem, text[:end]))
  traces = [
      trace_lib.Trace(str(i), problem.question, prefix, [len(prefix)])
      for i, (problem, prefix) in enumerate(cuts)
  ]
  margins = model.margins(traces)
  again = [cut for cut in cuts for _ in range(_ROLLOUTS.value)]
  wins = model.right(again).reshape(len(cuts), -1)
  return {
      'auroc': round(
          yardstick.auroc(margins.repeat(wins.shape[1]), wins.ravel()), 3
      ),
      'enough': round(float(np.mean(margins > 0)), 3),
      'rollouts_right': round(float(wins.mean()), 3),
      'right_if_enough': round(float(wins[margins > 0].mean()), 3),
      'right_if_not': round(float(wins[margins <= 0].mean()), 3),
      'cuts': len(cuts),
  }


def main(argv):
  """Prints one line per measurement."""
  del argv
  student = Model(_STUDENT.value)
  facts = {'student': accuracy(student)}
  print('student', facts['student'], flush=True)
  facts['judge'] = judge(student)
  print('judge', facts['judge'], flush=True)
  if _TEACHER.value:
    facts['teacher'] = accuracy(Model(_TEACHER.value))
    print('teacher', facts['teacher'], flush=True)
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(facts, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
