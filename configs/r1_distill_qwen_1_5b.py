r"""P-ALIGN on R1-Distill-Qwen-1.5B from ready traces.

  python -m palign_jax.main --config=configs/r1_distill_qwen_1_5b.py \
      --config.student.path=/models/DeepSeek-R1-Distill-Qwen-1.5B \
      --config.teach.traces=/data/s1k-1.1.jsonl \
      --config.benchmarks.math500=/data/math500.jsonl --workdir=/data/run1

  ... --config=configs/r1_distill_qwen_1_5b.py:paper ...   # the reference code
  python -m palign_jax.plan --config=configs/r1_distill_qwen_1_5b.py \
      --topology=v5p:2x2x1

Needs  the student's folder, traces (an s1K-1.1 export by default: `question`,
       `solution`, `deepseek_thinking_trajectory`), benchmark files.
Takes  not measured yet; `plan` says what it would take at least.
Gives  not measured yet.
"""

from configs import common


def get_config(arg=None):
  """Takes paper: draft mode, the code's splitter and its generated verdicts."""
  arg = common.parse_arg(arg, paper=False)
  return common.of_student(
      'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B',
      paper=arg.paper,
      temperature=0.6,
      top_p=0.95,
  )
