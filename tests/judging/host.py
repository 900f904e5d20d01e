"""One of two processes that judge together: `python -m tests.judging.host`.

Prints the scores of `trunk_scorer_test` as JSON, from a mesh that spans both.
"""

import json
import sys

import jax
import numpy as np


def main(port: str, index: str) -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 4)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'localhost:{port}', 2, int(index))
  from palign_jax.models import decoder
  from palign_jax.parallel import memory, mesh as mesh_lib, rules
  from tests.judging import trunk_scorer_test as cases

  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  axes = decoder.logical_axes(cases.CONFIG)
  where = rules.tree_shardings(cases.PARAMS, axes, mesh)
  put = lambda x, to: jax.make_array_from_callback(
      x.shape, to, lambda at: np.asarray(x)[at]
  )
  params = jax.tree.map(put, cases.PARAMS, where)
  # Each would allow another amount; they agree on the lesser.
  budget = memory.budget(1 + int(index), mesh)
  scorer = cases.make(params, mesh=mesh, budget=budget)
  margins = np.zeros(len(cases.PROBES), np.float32)
  for group in scorer.groups([len(tokens) for tokens in cases.TRUNKS]):
    batch = scorer.open([cases.TRUNKS[i] for i in group])
    mine = [i for i, p in enumerate(cases.PROBES) if p.trunk in group]
    margins[mine] = batch.score(
        [
            cases.on(group.index(cases.PROBES[i].trunk), cases.PROBES[i])
            for i in mine
        ]
    )
  print(json.dumps({'budget': budget, 'margins': margins.tolist()}))


if __name__ == '__main__':
  main(*sys.argv[1:])
