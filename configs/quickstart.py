r"""The whole pipeline in minutes on two CPU cores, without a download.

  python -m palign_jax.main --config=configs/quickstart.py

A small teacher writes long traces for word problems; a smaller practised
student judges how much of each it needs, goes on from there, is fine-tuned on
what came out right, and answers problems that nobody has trained on.
"""

import pathlib

from configs import common
import palign_jax

_ASSETS = pathlib.Path(palign_jax.__file__).parent / 'sandbox/assets'


def get_config(arg=None):
  """Takes smoke, for a run of seconds that proves nothing."""
  arg = common.parse_arg(arg, smoke=False)
  config = common.base()
  config.student.update(path=str(_ASSETS / 'student'), dtype='float32')
  config.teacher.update(path=str(_ASSETS / 'teacher'), dtype='float32')
  config.prompts.judge = 'brief'
  config.teach.questions = str(_ASSETS / 'questions.jsonl')
  # Equal settings share their compiled programs, half of the time here.  A
  # penalty on repetition would punish what every sum repeats.
  drawing = dict(top_p=0.9, repetition_penalty=1.0, max_tokens=352)
  config.teach.update(limit=320, **drawing)
  config.truncate.verify.update(drawing)
  config.truncate.yardstick.update(traces=12, cuts=3)
  config.align.update(n=2, **drawing)
  config.sft.update(
      method='full',
      epochs=4,
      max_tokens=480,
      batch_size=4,
      remat='none',
      export_dtype='float32',
  )
  # So few steps are not enough for AdamW to teach a habit (WORKSPACE, log).
  config.sft.optim.update(name='muon', peak_lr=2e-3)
  config.sample.update(n=1, **drawing)
  config.benchmarks.sandbox = str(_ASSETS / 'benchmark.jsonl')
  config.compute.update(
      num_rows=64,
      group=320,
      judge_tokens=1024,
      prefill_tokens=8192,
      rows_per_device=4,
      loss_chunk=0,
      log_every=5,
      save_every=50,
  )
  if arg.smoke:
    config.teach.limit = 8
    config.truncate.yardstick.traces = 0
    config.sft.epochs = 1
    config.align.n = 1
    config.compute.num_rows = 8
  return config
