"""Our side of the fine-tuning benchmark."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sft_work
from palign_jax.checkpoints import hf_import
from palign_jax.models import kernels
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.training import loss, optim, packing, step


class Train:
  """Steps as the stage `sft` makes them."""

  def __init__(
      self,
      work: sft_work.Work,
      remat: str,
      loss_chunk: int,
      rows_per_device: int,
      attention: str,
  ):
    """Loads.

    Args:
      work: What is trained.
      remat: As in config.sft.
      loss_chunk: As in config.compute.
      rows_per_device: As in config.compute.
      attention: One of `kernels.NAMES`.
    """
    self._work = work
    self._mesh = mesh_lib.make({'fsdp': -1})
    self._losses: list[float] = []
    frozen, trained, scale = self._load()
    self._num_adapted = sum(x.size for x in jax.tree.leaves(trained))
    config = optim.OptimConfig(
        name='adamw',
        peak_lr=sft_work.LR,
        warmup_frac=0.0,
        decay='constant',
        final_lr_frac=1.0,
        weight_decay=0.0,
        b1=sft_work.BETAS[0],
        b2=sft_work.BETAS[1],
        eps=sft_work.EPS,
        clip_norm=sft_work.CLIP,
    )
    rate = optim.schedule(config, 1)
    optimizer = optim.make(config, rate)
    self._state = step.init(trained, optimizer)
    how = loss.LossConfig(
        dtype=work.dtype,
        remat=remat,
        chunk_size=loss_chunk,
        lora_scale=scale,
        attention=kernels.Backend(attention, self._mesh),
    )
    where = jax.tree.map(lambda x: x.sharding, self._state.params)
    pure = step.make(
        self._model.config, how, optimizer, rate, config.clip_norm, where
    )
    at_once = rows_per_device * mesh_lib.num_row_shards(self._mesh)
    self._step = step.compile(
        pure,
        step.StepConfig(work.num_rows // at_once),
        frozen,
        self._state,
        self._mesh,
    )
    self._note = f'remat {remat}, {rows_per_device} rows at once'

  def _load(self):
    """Returns what is frozen, what is trained, and the adapters' scale."""
    work, full = self._work, self._work.adapter is None
    dtype = jnp.dtype('float32' if full else work.dtype)
    self._model = hf_import.load(work.folder, dtype=dtype, mesh=self._mesh)
    if full:
      return {}, self._model.params, 0.0
    adapters, scale = hf_import.load_adapter(
        work.adapter, self._model.config, mesh=self._mesh
    )
    return self._model.params, adapters, scale

  def warm_up(self) -> None:
    self._losses = [self._next() for _ in range(self._work.num_steps)]

  def run(self):
    self._next()
    work = self._work
    num_adapted = self._num_adapted if work.adapter else 0
    return {
        'tokens': work.num_rows * work.num_tokens,
        'flops': sft_work.flops(self._model.config, work, num_adapted),
        'losses': self._losses,
        'note': self._note,
    }

  def _next(self) -> float:
    ids = self._work.tokens(self._model.config.vocab_size)
    ones = np.ones_like(ids)
    batch = packing.Batch(
        tokens=ids,
        positions=ones * np.arange(ids.shape[1], dtype=np.int32)[None],
        segments=ones,
        weights=ones.astype(np.float32),
    )
    self._state, scalars = self._step(self._state, batch)
    jax.block_until_ready(self._state)
    return float(scalars['loss'])

  def peak_bytes(self) -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return stats and stats.get('peak_bytes_in_use')
