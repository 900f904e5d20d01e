r"""Trains the sandbox's teacher and student from nothing.

  python -m palign_jax.make_sandbox --config=configs/sandbox.py \
      --workdir=runs/sandbox

Takes  0.57 s a step on 2 CPU cores that do nothing else, 5,540 steps.
Gives  runs/sandbox/<run>/export/, Hugging Face folders, and two question
       files.  The folders of `student` and `teacher` and the files are
       committed under palign_jax/sandbox/assets/.

The runs are one education: sums and the shortest stories, then stories of one
to four steps.  From there the student sees a few hundred longer ones and
stops, with too little practice at them; the teacher goes on with all lengths.
"""

import ml_collections

_SHORT = {str(k): 1.0 for k in range(1, 5)}  # Weights by number of steps.
_ALL = {str(k): 1.0 for k in range(1, 9)}


def get_config():
  """Takes no argument."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.prompts = dict(judge='brief', align='brief', answer='paper')
  config.model = dict(
      num_layers=4,
      embed_dim=128,
      num_heads=4,
      num_kv_heads=2,
      head_dim=32,
      mlp_dim=384,
      norm_eps=1e-6,
      rope_theta=1e4,
      vocab_multiple=64,  # The table is rounded up to this many rows.
      max_positions=1024,
  )
  config.data = dict(
      max_tokens=416,  # The longest example has about 410.
      batch_size=8,
      max_waiting=64,
  )
  config.optim = dict(
      name='muon',
      warmup_frac=0.03,
      decay='cosine',
      final_lr_frac=0.05,
      weight_decay=0.0,
      b1=0.9,
      b2=0.95,
      eps=1e-8,
      clip_norm=1.0,
      muon_beta=0.95,
  )
  config.loop = dict(log_every=50, save_every=500, save_every_s=120.0)
  config.runs = [
      dict(
          name='facts',
          init_from='',
          num_steps=600,
          peak_lr=5e-3,
          kinds={'fact': 1.0, 'chain': 1.0},
          steps={'1': 1.0, '2': 1.0},
          first_row=1_298_315_657,
      ),
      dict(
          name='short',
          init_from='facts',
          num_steps=1500,
          peak_lr=5e-3,
          kinds={'fact': 0.1, 'chain': 1.0, 'judge': 0.3},
          steps=_SHORT,
          first_row=632_056_475,
      ),
      dict(
          name='student',
          init_from='short',
          num_steps=240,
          peak_lr=1.5e-3,
          kinds={'chain': 1.0, 'judge': 0.3},
          steps=_SHORT | {'5': 0.2, '6': 0.2, '7': 0.1, '8': 0.1},
          first_row=1_000_000_000,
      ),
      dict(
          name='teacher',
          init_from='short',
          num_steps=3200,
          peak_lr=5e-3,
          kinds={'chain': 1.0},
          steps=_ALL,
          first_row=2_112_761_944,
      ),
  ]
  config.judge_steps = _ALL  # Stories of judge rows, in every run.
  # Stories of 5 to 7 steps: where the student lacks practice.
  config.questions = dict(count=320, seed=1, split='train', steps=(5, 6, 7))
  config.benchmark = dict(count=500, seed=2, split='eval', steps=(5, 6))
  return config
