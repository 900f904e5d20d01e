"""One of the processes of hosts_test: joins, and adds up over all of them."""

import json

import jax
import numpy as np

from palign_jax.parallel import hosts


def main() -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 2)
  hosts.join()
  mesh = jax.make_mesh((jax.device_count(),), ('all',))
  rows = jax.NamedSharding(mesh, jax.P('all'))
  x = jax.make_array_from_callback(
      (jax.device_count(),),
      rows,
      lambda at: np.full((1,), 1 + jax.process_index(), np.float32),
  )
  whole = jax.NamedSharding(mesh, jax.P())
  total = jax.jit(lambda x: x.sum(), out_shardings=whole)(x)
  print(
      json.dumps(
          {
              'host': jax.process_index(),
              'hosts': jax.process_count(),
              'devices': jax.device_count(),
              'total': float(total),
          }
      )
  )


if __name__ == '__main__':
  main()
