"""Do real traces and a real tokenizer pass through the stages unharmed?

  python -m benchmarks.real_traces --traces=FILE --tokenizer=FOLDER_OR_FILE \
      --workdir=DIR [--shape=small|0.5b] [--limit=N] [--long_tokens=30000]

Makes a Qwen2.5-shaped student of random weights (once, kept in the workdir),
runs teach to assemble with it and checks what must hold whatever a student
says.  Exits with 1 if anything does not.
"""

import argparse
from collections.abc import Sequence
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time

from etils import epath
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import transformers

from benchmarks import invariants
from configs import common
from palign_jax import main as palign
from palign_jax.checkpoints import hf_config, hf_export, hf_import
from palign_jax.core import command, jsonl
from palign_jax.data import traces as traces_lib
from palign_jax.models import decoder
from palign_jax.text import sentences, tokenizer as tokenizer_lib

_STAGES = ('teach', 'truncate', 'align', 'assemble')
_COMMON = dict(
    architectures=['Qwen2ForCausalLM'],
    model_type='qwen2',
    vocab_size=151_936,
    max_position_embeddings=32_768,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
    eos_token_id=151_645,
)
_SHAPES = {
    'small': dict(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=176,
    ),
    '0.5b': dict(  # Qwen2.5-0.5B's config.json.
        num_hidden_layers=24,
        hidden_size=896,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
    ),
}


def parse() -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(usage=__doc__)
  add = parser.add_argument
  add('--traces', required=True)
  add('--tokenizer', required=True, help='Folder, or a tokenizer.json.')
  add('--tokenizer_config', help='tokenizer_config.json, beside a file.')
  add('--chat_template', help='chat_template.jinja, beside a file.')
  add('--workdir', required=True, help='Its run/ must be new.')
  add('--shape', default='small', choices=list(_SHAPES))
  add('--limit', type=int, default=None, help='At most so many traces.')
  add('--shortest', action='store_true', help='Takes the shortest ones.')
  add('--long_tokens', type=int, help='One trace so long, made of real ones.')
  add('--splitter', default='sentence', choices=sentences.SPLITTERS)
  add('--threshold', type=float, default=0.5, help='Near 1: never enough.')
  add('--max_tokens', type=int, default=24, help='Of a continuation.')
  add('--num_rows', type=int, default=8, help='Rows decoded together.')
  add('--batch_tokens', type=int, default=16_384, help='Read together.')
  add('--dtype', default='float32', help='Of the computation.')
  add('--json', help='Also writes the facts there.')
  return parser.parse_args()


def make_tokenizer(args, folder: epath.Path) -> epath.Path:
  """Returns a folder with the tokenizer's files."""
  source = epath.Path(args.tokenizer)
  if source.is_dir():
    return source
  folder.mkdir(parents=True, exist_ok=True)
  files = {
      'tokenizer.json': source,
      'tokenizer_config.json': args.tokenizer_config,
      'chat_template.jinja': args.chat_template,
  }
  for name, path in files.items():
    if path:
      shutil.copyfile(path, folder / name)
  return folder


def make_student(args, folder: epath.Path, tokenizer: epath.Path) -> None:
  """Writes a model folder of random weights, unless it is there."""
  if (folder / 'config.json').exists():
    return
  raw = _COMMON | _SHAPES[args.shape]
  config = hf_config.read(raw)
  params = decoder.init(config, jax.random.key(0), jnp.float32)
  model = hf_import.Model(
      config=config,
      params=params,
      stop_ids=(raw['eos_token_id'],),
      max_positions=raw['max_position_embeddings'],
      raw_config=raw,
      raw_generation={},
      folder=None,
  )
  hf_export.save(folder, model, tokenizer_folder=tokenizer, dtype='bfloat16')


def choose(args, tokenizer: tokenizer_lib.Tokenizer) -> list[jsonl.Row]:
  """Returns the traces that the flags ask for."""
  fields = traces_lib.PRESETS['palign']
  rows = traces_lib.read_traces(args.traces, fields)
  if args.long_tokens:
    return [_joined(args, rows, tokenizer)]
  if args.shortest:
    rows = sorted(rows, key=lambda row: len(row['Long-CoT']))
  return rows[: args.limit]


def _joined(args, rows: Sequence[jsonl.Row], tokenizer) -> jsonl.Row:
  """Returns one trace of about `--long_tokens` tokens, of whole sentences."""
  text = '\n\n'.join(row['Long-CoT'] for row in rows)
  ids, offsets = tokenizer.encode_with_offsets(text)
  if len(ids) < args.long_tokens:
    sys.exit(f'Error: --traces has {len(ids)} tokens, fewer than are asked.')
  limit = offsets[args.long_tokens - 1][1]
  ends = sentences.cuts(text[:limit], args.splitter)
  return {**rows[0], 'id': 'long', 'Long-CoT': text[: ends[-2]]}


def make_config(args, student: epath.Path, traces: epath.Path):
  """Returns the config of the run."""
  config = common.base()
  config.student.path, config.student.dtype = str(student), args.dtype
  config.teach.traces = str(traces)
  config.truncate.splitter = args.splitter
  config.truncate.threshold = args.threshold
  config.align.max_tokens = args.max_tokens
  config.compute.num_rows = args.num_rows
  config.compute.judge_tokens = args.batch_tokens
  config.compute.prefill_tokens = args.batch_tokens
  return config_dict.FrozenConfigDict(config)


def machine() -> dict[str, object]:
  """Returns where this runs."""
  cpu = platform.processor()
  info = epath.Path('/proc/cpuinfo')
  if info.exists():
    lines = [x for x in info.read_text().splitlines() if 'model name' in x]
    cpu = lines[0].split(':')[1].strip() if lines else cpu
  commit = subprocess.run(
      ['git', 'describe', '--always', '--dirty'],
      capture_output=True,
      text=True,
  )
  return {
      'commit': commit.stdout.strip(),
      'cpu': cpu,
      'cores': os.cpu_count(),
      'devices': [d.device_kind for d in jax.devices()],
      'jax': jax.__version__,
      'python': platform.python_version(),
  }


def main():
  """Runs, checks, prints; see the top of the file."""
  args = parse()
  command.quiet_libraries()
  place = epath.Path(args.workdir)
  run, student = place / 'run', place / f'student-{args.shape}'
  if run.exists():
    sys.exit(f'Error: {run} is there; its probes cannot be seen any more.')
  make_student(args, student, make_tokenizer(args, place / 'tokenizer'))
  traces = choose(args, tokenizer_lib.load(student))
  jsonl.write(place / 'traces.jsonl', traces)
  config = make_config(args, student, place / 'traces.jsonl')
  where, seen = machine(), invariants.Seen()
  begin = time.monotonic()
  with seen, command.one_line_errors():
    palign.run(config, run, _STAGES)
  seconds = time.monotonic() - begin
  # In KiB on Linux.  Workers that grade are processes of their own.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  oracle = transformers.PreTrainedTokenizerFast.from_pretrained(str(student))
  checks = invariants.check(run, traces, config, oracle, seen.tokens)
  facts = {
      **where,
      'shape': args.shape,
      'dtype': args.dtype,
      'splitter': args.splitter,
      'threshold': args.threshold,
      'trace_tokens': sum(len(oracle.encode(t['Long-CoT'])) for t in traces),
      'seconds': round(seconds, 1),
      'peak_rss_gib': round(peak, 2),
      'longest_probe': max(map(len, seen.tokens), default=0),
      'stages': {
          stage: json.loads((run / stage / 'summary.json').read_text())
          for stage in _STAGES
      },
      'violations': {name: len(wrong) for name, wrong in checks.items()},
  }
  print(json.dumps(facts, indent=2))
  for name, wrong in checks.items():
    print(f'{name:60} {f"{len(wrong)}: {wrong[:3]}" if wrong else "holds"}')
  if args.json:
    epath.Path(args.json).write_text(json.dumps(facts, indent=2) + '\n')
  sys.exit(int(any(checks.values())))


if __name__ == '__main__':
  main()
