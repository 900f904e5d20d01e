"""How near do prefill and decoding come to what the device can do?

  python -m benchmarks.limits --shape=55m [--json=FILE]

Both limits are measured first: the fastest chain of matrix products, and the
fastest pass over memory.  Case `prefill` reads whole rows as the judge's plain
pass does; `of_limit` is its products' FLOP/s over the first.  Case `decode`
draws with the sampler after a long prompt that all rows share; its seconds are
those of --steps steps, the difference of a long and a short run, and `of_limit`
is the time that weights and cache take at the second over them.  On a GPU:
--shape=qwen2.5-7b --dtype=bfloat16 --tokens=8192 --rows=128 --context=2048.
"""

import argparse
from collections.abc import Callable, Sequence
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, rows as rows_lib, shapes
from palign_jax.checkpoints import hf_config
from palign_jax.core import keys
from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.planning import flops
from palign_jax.sampling import sampler as sampler_lib

_CHAIN = 4  # Products in a call: what it costs to begin one is then nothing.
_SHORT = 16  # Tokens of the short run.


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(usage=__doc__)
  add = parser.add_argument
  add('--shape', required=True, choices=list(shapes.SHAPES))
  add('--json', help='Also writes the rows there.')
  add('--dtype', default='float32', choices=('float32', 'bfloat16'))
  add('--tokens', type=int, default=2048, help='Of a row that is read.')
  add('--batch', type=int, default=1, help='Rows read together.')
  add('--rows', type=int, default=32, help='Rows decoded together.')
  add('--context', type=int, default=1024, help='Of a row, before drawing.')
  add('--steps', type=int, default=64, help='Of decoding that are timed.')
  add('--repetitions', type=int, default=5)
  add('--product', type=int, help='Width of the products; by the platform.')
  add('--pass_bytes', type=int, help='Read and written; by the platform.')
  return parser.parse_args(argv)


def timed(run: Callable[[], object], repetitions: int) -> list[float]:
  """Returns seconds of each repetition, after one that compiles."""
  jax.block_until_ready(run())
  taken = []
  for _ in range(repetitions):
    begin = time.perf_counter()
    jax.block_until_ready(run())
    taken.append(time.perf_counter() - begin)
  return taken


def product_flops(dtype, width: int, repetitions: int) -> float:
  """Returns the FLOP/s of square matrix products, at their best."""
  x, w = (jnp.full((width, width), c, dtype) for c in (1.0, 1e-3))

  @jax.jit
  def chain(x, w):
    for _ in range(_CHAIN):
      x = x @ w
    return x

  best = min(timed(lambda: chain(x, w), repetitions))
  return _CHAIN * 2 * width**3 / best


def bandwidth(num_bytes: int, repetitions: int) -> float:
  """Returns bytes per second of reading and writing memory, at their best."""
  x = jnp.zeros(num_bytes // 8, jnp.float32)  # Half is read, half written.
  more = jax.jit(lambda x: x + jnp.float32(1))
  return 8 * len(x) / min(timed(lambda: more(x), repetitions))


def prefill(
    args: argparse.Namespace,
    config: config_lib.ModelConfig,
    params,
    most: float,
) -> harness.Measured:
  """Reads rows, with logits at their last place.

  Args:
    args: The flags.
    config: The model.
    params: Its weights.
    most: FLOP/s of products.
  """
  dtype, size = jnp.dtype(args.dtype), (args.batch, args.tokens)
  ids = np.random.default_rng(0).integers(0, config.vocab_size, size)
  places = jnp.broadcast_to(jnp.arange(args.tokens, dtype=jnp.int32), size)
  backend = kernels.Backend('auto', mesh_lib.alone())

  @jax.jit
  def read(params, ids, places):
    x = decoder.hidden(
        params, config, ids, places, None, dtype=dtype, backend=backend
    )
    return decoder.logits(params, config, x[:, -1])

  ids = jnp.asarray(ids, jnp.int32)
  begin = time.perf_counter()
  taken = timed(lambda: read(params, ids, places), args.repetitions)
  work = flops.reading(config, ids.size, args.tokens / 2, args.batch).model
  share = work / statistics.median(taken) / most
  note = f'{share:.0%} of {most / 1e12:.3g} TFLOP/s'
  return _measured('prefill', begin, taken, ids.size, share, note)


def decode(
    args: argparse.Namespace,
    config: config_lib.ModelConfig,
    params,
    most: float,
) -> harness.Measured:
  """Draws tokens after a prompt that all rows share.

  Args:
    args: The flags.
    config: The model.
    params: Its weights.
    most: Bytes per second of memory.
  """
  sampler = sampler_lib.Sampler(
      params,
      config,
      mesh=mesh_lib.alone(),
      dtype=jnp.dtype(args.dtype),
      num_rows=args.rows,
      stop_ids=(),
      vocab_limit=config.vocab_size,
      max_positions=args.context + args.steps + _SHORT,
      sampling=sampler_lib.SamplingConfig(
          temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0
      ),
      loop_rule=None,
      prefill_tokens=8192,
  )
  prompt = np.random.default_rng(0).integers(0, config.vocab_size, args.context)

  def draw(num: int) -> list[sampler_lib.Completion]:
    return list(
        sampler.run(
            sampler_lib.Request(
                str(i), tuple(prompt.tolist()), keys.fold(0, 'limits', i), num
            )
            for i in range(args.rows)
        )
    )

  begin = time.perf_counter()
  run = lambda num: timed(lambda: draw(num) and (), args.repetitions)
  pairs = zip(run(_SHORT), run(_SHORT + args.steps), strict=True)
  taken = [long - short for short, long in pairs]
  seen = args.rows * (args.context + _SHORT + args.steps / 2)
  scale = jnp.dtype(args.dtype).itemsize / 2  # `flops` counts in bfloat16.
  moved = flops.weight_bytes(config) + seen * flops.kv_bytes(config)
  moved *= args.steps
  share = scale * moved / most / statistics.median(taken)
  note = f'{share:.0%} of {most / 1e9:.3g} GB/s'
  tokens = args.rows * args.steps
  return _measured('decode', begin, taken, tokens, share, note)


def _measured(case, begin, taken, tokens, share, note) -> harness.Measured:
  stats = jax.devices()[0].memory_stats() or {}
  return harness.Measured(
      harness.Spec(case, rows_lib.OURS, '', {}),
      time.perf_counter() - begin - sum(taken),
      tuple(taken),
      {'tokens': tokens, 'of_limit': round(share, 4), 'note': note},
      stats.get('peak_bytes_in_use', 0) or harness.process_peak(),
  )


def run(args: argparse.Namespace) -> list[rows_lib.Row]:
  """Measures the limits, then both cases."""
  is_cpu = jax.default_backend() == 'cpu'
  width = args.product or (2048 if is_cpu else 8192)
  num_bytes = args.pass_bytes or (2**29 if is_cpu else 2**32)
  machine, dtype = harness.machine(), jnp.dtype(args.dtype)
  most_flops = product_flops(dtype, width, args.repetitions)
  most_bytes = bandwidth(num_bytes, args.repetitions)
  config = hf_config.read(shapes.config(args.shape, 0, has_own=False))
  params = jax.jit(lambda key: decoder.init(config, key, dtype))(
      jax.random.key(0)
  )
  measured = [prefill(args, config, params, most_flops)]
  params = decoder.unstack(params, consume=True)
  measured.append(decode(args, config, params, most_bytes))
  extra = {
      'shape': args.shape,
      'dtype': args.dtype,
      'product_flops': most_flops,
      'memory_bytes_per_s': most_bytes,
      'read': [args.batch, args.tokens],
      'decoded': [args.rows, args.context],
  }
  return rows_lib.make('limits', measured, machine | extra)


def main():
  """Reads flags, measures, prints."""
  rows_lib.report(run, parse())


if __name__ == '__main__':
  main()
