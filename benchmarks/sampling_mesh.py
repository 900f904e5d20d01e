"""How often a mesh draws another token than one device does, and how close.

    JAX_PLATFORMS=cpu python -m benchmarks.sampling_mesh [--json=FILE]

On 8 simulated devices, with random weights of a few million parameters.  A row
may differ only where two candidates are within rounding of one another: the
gap at the first difference says how far apart they were, in nats of their
score (log-probability and noise together), with what one device computes.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, rows as rows_lib
from palign_jax.core import keys
from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import mesh as mesh_lib, rules
from palign_jax.sampling import noise, sampler as sampler_lib

_CONFIG = config_lib.ModelConfig(
    vocab_size=4096,
    num_layers=4,
    embed_dim=256,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    mlp_dim=640,
    norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
    qkv_bias=True,
    qk_norm=False,
    tied=True,
)
_MESHES = ((8, 1, 1), (1, 8, 1), (1, 2, 4), (2, 2, 2))
_ROWS, _TOKENS = 32, 128


def draw(params, mesh, requests) -> dict[str, tuple[int, ...]]:
  """Returns the completions by name."""
  sampler = sampler_lib.Sampler(
      params,
      _CONFIG,
      mesh=mesh,
      dtype=jnp.float32,
      num_rows=_ROWS,
      stop_ids=[],
      vocab_limit=_CONFIG.vocab_size,
      max_positions=1024,
      sampling=sampler_lib.SamplingConfig(
          temperature=1.0, top_p=0.95, top_k=0, repetition_penalty=1.0
      ),
      loop_rule=None,
      prefill_tokens=1024,
  )
  return {done.id: done.tokens for done in sampler.run(requests)}


def gap(params, request, one, other) -> float:
  """Returns how far apart the two tokens at the first difference were."""
  pairs = zip(one, other, strict=True)  # Nothing stops but the limit.
  at = next(i for i, (a, b) in enumerate(pairs) if a != b)
  text = jnp.asarray([[*request.tokens, *one[:at]]], jnp.int32)
  places = jnp.arange(text.shape[1], dtype=jnp.int32)[None]
  x = decoder.hidden(params, _CONFIG, text, places, None, dtype=jnp.float32)
  logits = np.asarray(decoder.logits(params, _CONFIG, x[0, -1]))
  ids = jnp.asarray([[one[at], other[at]]], jnp.int32)
  step = jnp.asarray([at], jnp.int32)
  e = np.asarray(noise.exponential(jnp.asarray(request.key)[None], step, ids))
  score = logits[[one[at], other[at]]] - np.log(e[0])
  return abs(float(score[0] - score[1]))


def compare(params, mesh, requests, want) -> list[float]:
  """Returns the gaps of the rows that a mesh draws differently."""
  where = rules.tree_shardings(params, decoder.logical_axes(_CONFIG), mesh)
  got = draw(jax.device_put(params, where), mesh, requests)
  return [
      gap(params, r, want[r.id], got[r.id])
      for r in requests
      if want[r.id] != got[r.id]
  ]


def run() -> list[rows_lib.Row]:
  """Draws on one device and on each mesh; returns a row per mesh."""
  rng = np.random.default_rng(0)
  params = decoder.init(_CONFIG, jax.random.key(0), jnp.float32)
  requests = [
      sampler_lib.Request(
          str(i),
          tuple(rng.integers(0, _CONFIG.vocab_size, 20 + i).tolist()),
          keys.fold(0, 'mesh', i),
          _TOKENS,
      )
      for i in range(2 * _ROWS)
  ]
  want = draw(params, None, requests)
  machine, rows = harness.machine(), []
  for sizes in _MESHES:
    named = dict(zip(mesh_lib.AXES, sizes, strict=False))
    gaps = compare(params, mesh_lib.make(named), requests, want)
    rows.append(
        {
            'bench': 'sampling_mesh',
            'mesh': named,
            'rows': len(requests),
            'tokens': _TOKENS,
            'share_of_rows_that_differ': len(gaps) / len(requests),
            'largest_gap_nats': max(gaps, default=None),
            **machine,
        }
    )
    print(json.dumps(rows[-1]), flush=True)
  return rows


def main():
  """Reads flags, draws, prints a JSON line per mesh."""
  parser = argparse.ArgumentParser(usage=__doc__)
  parser.add_argument('--json', help='Also writes the rows there.')
  args = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', 8)
  rows_lib.write(run(), args.json)


if __name__ == '__main__':
  main()
