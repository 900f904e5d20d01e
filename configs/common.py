"""What configs share: parsing the part after the colon, and all sections.

`base` holds every field that there is, with the choices of the paper where it
states them and of its code where only that does, unless this project departs on
purpose (README, 'How it differs'); a config changes what it is about.
"""

import ml_collections
from ml_collections import config_dict


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
  """Parses 'student=qwen3_8b,smoke' against the names and types of `defaults`.

  An argument stands for a choice that sets several fields.  A single field
  needs none, it has a flag already: `--config.sft.epochs=2`.

  Args:
    arg: Comma-separated name=value; a bare name means True.
    **defaults: Every name allowed, with its default.

  Returns:
    The value of every name.

  Raises:
    ValueError: If a name is unknown or a value has the wrong type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    name, _, text = item.partition('=')
    if name not in defaults:
      raise ValueError(f'Config argument {name!r} is none of {list(defaults)}.')
    if isinstance(defaults[name], bool):
      if text not in ('', 'True', 'False'):
        raise ValueError(f'Config argument {item!r} must be True or False.')
      values[name] = text != 'False'
    else:
      values[name] = type(defaults[name])(text)
  return ml_collections.ConfigDict(values)


def base() -> ml_collections.ConfigDict:
  """Returns every section, for a student of a few billion parameters."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.mesh = dict(  # -1: all that are left.
      data=1, fsdp=-1, tensor=1, sequence=1, dcn_data=1
  )
  config.student = dict(path=config_dict.placeholder(str), dtype='bfloat16')
  config.teacher = dict(path=config_dict.placeholder(str), dtype='bfloat16')
  config.prompts = dict(judge='code', align='code', answer='paper')
  config.teach = dict(
      questions=config_dict.placeholder(str),
      traces=config_dict.placeholder(str),
      fields=config_dict.placeholder(object),  # 'palign' if not set.
      limit=0,  # All.
      temperature=0.6,
      top_k=0,
      top_p=0.95,
      repetition_penalty=1.0,
      max_tokens=16_384,
      stop=(),
  )
  config.truncate = dict(
      search='binary',
      splitter='sentence',
      verdict='label',
      threshold=0.5,
      abstain=0.0,
      abstained='no',
      rule='first',  # The next two: of search='curve' only.
      stable=2,
      calibration='none',
      calibration_rows=config_dict.placeholder(str),
      calibration_fit='threshold',
      none_enough='whole',  # What the code does.
      too_long='drop',
      temperature=0.0,  # The next three: of replies in words only.
      top_p=1.0,
      max_tokens=256,  # The code's.
      verify=dict(  # As `align` draws, but shorter.
          k=4,
          pass_rate=0.5,
          max_cuts=4,
          temperature=0.6,
          top_p=0.9,
          repetition_penalty=1.05,
          max_tokens=1024,
          stop=(),
          limit_s=10.0,
      ),
      yardstick=dict(traces=0, cuts=4, k=4),  # No traces: off.
  )
  config.align = dict(
      mode='prefill',
      n=1,  # The code's, as the four below.
      temperature=0.6,
      top_k=0,
      top_p=0.9,
      repetition_penalty=1.05,
      max_tokens=8192,
      stop=(),
  )
  config.assemble = dict(
      keep='first',
      unverifiable='drop',
      begin='<Begin_of_Prefix>',  # As in the released training file.
      end='<End_of_Prefix>',
      limit_s=10.0,
  )
  config.sft = dict(
      method='lora',
      rank=16,  # The paper does not say; nor alpha.
      alpha=16.0,
      targets=('q', 'k', 'v', 'o', 'gate', 'up', 'down'),
      quantize='none',
      epochs=3,  # Paper, section 4.
      batch_size=8,  # The paper does not say; 32 did worse elsewhere.
      max_tokens=16_384,
      optim=dict(
          name='adamw',
          peak_lr=5e-5,  # Paper, section 4.
          warmup_frac=0.1,  # The paper does not say.
          decay='cosine',
          final_lr_frac=0.0,
          weight_decay=0.0,
          b1=0.9,
          b2=0.999,
          eps=1e-8,
          clip_norm=1.0,
          muon_beta=0.95,
      ),
      weights=dict(
          begin=1.0, prefix=1.0, end=1.0, continuation=1.0, turn_end=1.0
      ),
      masked=(),
      splitter='sentence',
      remat='full',
      export_dtype='bfloat16',
  )
  config.sample = dict(
      n=3,  # The code's, as all below but max_tokens.
      temperature=0.6,
      top_k=0,
      top_p=0.9,
      repetition_penalty=1.05,
      max_tokens=16_384,
      stop=(),
  )
  config.grade = dict(limit_s=10.0, resamples=10_000)
  config.report = dict()
  config.compute = dict(
      num_rows=64,
      judge_tokens=2048,
      memory_gib=0.0,  # Found out.
      shared_trunk=True,
      prefill_tokens=65_536,
      group=64,
      part_rows=64,
      rows_per_device=1,
      loss_chunk=1024,
      attention='auto',
      workers=2,
      log_every=10,
      save_every=100,
      save_every_s=600.0,
      keep=2,
      profile_steps='',  # As '10:12': the first and the last one.
  )
  config.benchmarks = ml_collections.ConfigDict()
  return config


def of_student(
    path: str, *, paper: bool, temperature: float, top_p: float
) -> ml_collections.ConfigDict:
  """Returns P-ALIGN on one of the paper's students, from ready s1K-1.1 traces.

  Args:
    path: The student's name on the Hub.
    paper: Draft mode, the code's splitter and its generated verdicts.
    temperature: Of these verdicts: the reference code leaves the student's own
      generation_config in force.
    top_p: The same.
  """
  config = base()
  config.student.path = path
  config.teach.fields = 's1k-1.1'
  for name in ('math500', 'aime24', 'aime25', 'amc12'):
    config.benchmarks[name] = config_dict.placeholder(str)
  config.sft.update(max_tokens=32_768)
  if paper:
    config.truncate.update(
        splitter='reference',
        verdict='generate',
        temperature=temperature,
        top_p=top_p,
    )
    config.align.mode = 'draft'
    config.align.max_tokens = 32_768
    config.assemble.end = '<End_of_Prefix>\n'
  return config
