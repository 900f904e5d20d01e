r"""P-ALIGN on Qwen2.5-7B-Instruct from ready traces (paper: tables 1 and 4).

  python -m palign_jax.main --config=configs/qwen2_5_7b.py \
      --config.student.path=/models/Qwen2.5-7B-Instruct \
      --config.teach.traces=/data/s1k-1.1.jsonl \
      --config.benchmarks.math500=/data/math500.jsonl --workdir=/data/run1

  ... --config=configs/qwen2_5_7b.py:paper ...   # the reference code
  python -m palign_jax.plan --config=configs/qwen2_5_7b.py \
      --topology=v5p:2x2x1

Needs  the student's folder, traces (an s1K-1.1 export by default: `question`,
       `solution`, `deepseek_thinking_trajectory`), benchmark files.
Takes  not measured yet; `plan` says what it would take at least.
Gives  not measured yet; the paper claims 39.64 pass@1 on average over AIME25,
       AIME24, AMC12 and MATH500, an independent run got 33.72.
"""

from configs import common


def get_config(arg=None):
  """Takes paper: draft mode, the code's splitter and its generated verdicts."""
  arg = common.parse_arg(arg, paper=False)
  return common.of_student(
      'Qwen/Qwen2.5-7B-Instruct',
      paper=arg.paper,
      temperature=0.7,
      top_p=0.8,
  )
