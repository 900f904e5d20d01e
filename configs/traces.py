r"""Long traces from a teacher of one's own: the stage `teach` and no other.

  python -m palign_jax.main --config=configs/traces.py:teacher=qwq_32b \
      --config.teacher.path=/models/QwQ-32B --stages=teach \
      --config.teach.questions=/data/questions.jsonl --workdir=/data/traces

  python -m palign_jax.plan --config=configs/traces.py --topology=v5p:2x2x2

A student's run then takes teach/traces.jsonl of that workdir as its
`config.teach.traces`, with `config.teach.fields=palign`.

Needs  the teacher's folder and a question file.
Takes  not measured yet; `plan` says what it would take at least.

The teacher is split over tensor, as far as a host of TPUs has chips: each host
samples by itself.  On a host of eight GPUs, QwQ-32B goes over all of them with
--config.mesh.tensor=8.  Weights are not split over fsdp, where each token would
gather them anew.
"""

from configs import common

# Name on the Hub, and rows that each host draws together.
_TEACHERS = {
    'qwq_32b': ('Qwen/QwQ-32B', 24),
    'r1_distill_qwen_7b': ('deepseek-ai/DeepSeek-R1-Distill-Qwen-7B', 64),
}


def get_config(arg=None):
  """Takes teacher: qwq_32b (32 billion) or r1_distill_qwen_7b."""
  arg = common.parse_arg(arg, teacher='qwq_32b')
  if arg.teacher not in _TEACHERS:
    raise ValueError(
        f'teacher={arg.teacher}: it can be {", ".join(_TEACHERS)}.'
    )
  path, num_rows = _TEACHERS[arg.teacher]
  config = common.base()
  config.teacher.path = path
  config.mesh.update(data=-1, fsdp=1, tensor=4)
  config.compute.num_rows = num_rows
  return config
