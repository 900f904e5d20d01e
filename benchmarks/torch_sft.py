"""PyTorch's side of the fine-tuning benchmark: transformers and PEFT."""

import contextlib

from etils import epath
import numpy as np
import peft
import torch
import transformers

from benchmarks import harness, sft_work
from palign_jax.checkpoints import hf_config, hf_files


class Train:
  """What a careful engineer would write.

  sdpa; rows in microbatches of the best size; activations computed again only
  if they do not fit otherwise; autocast to bfloat16 over float32 weights.
  """

  def __init__(self, work: sft_work.Work):
    cuda = torch.cuda.is_available()
    self._device = torch.device('cuda' if cuda else 'cpu')
    if not cuda:
      torch.set_num_threads(harness.num_cores())
    transformers.utils.logging.disable_progress_bar()
    self._work, self._at_once = work, 1
    self._checkpointing = False
    frozen = work.adapter is not None
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
        work.folder,
        dtype=getattr(torch, work.dtype) if frozen else torch.float32,
        attn_implementation='sdpa',
    )
    self._config = hf_config.read(
        hf_files.read_json(epath.Path(work.folder) / 'config.json')
    )
    if frozen:
      self._model = peft.PeftModel.from_pretrained(
          self._model, work.adapter, is_trainable=True
      )
    self._model.to(self._device).train()
    self._trained = [p for p in self._model.parameters() if p.requires_grad]
    self._optimizer = torch.optim.AdamW(
        self._trained,
        lr=sft_work.LR,
        betas=sft_work.BETAS,
        eps=sft_work.EPS,
        weight_decay=0.0,
        fused=True,
    )
    self._losses: list[float] = []

  def warm_up(self) -> None:
    """Finds the best size; then takes the steps that are compared."""
    is_cpu = self._device.type == 'cpu'
    sizes = harness.batch_sizes(self._work.num_rows, is_cpu)
    sizes = [n for n in sizes if self._work.num_rows % n == 0]
    self._at_once = self._best(sizes)
    self._optimizer.zero_grad(set_to_none=True)
    self._losses = [self._next() for _ in range(self._work.num_steps)]

  def _best(self, sizes: list[int]) -> int:
    ids = self._ids()
    fit = []
    for size in sizes:
      try:
        self._gradient(ids[:size], size)
        fit.append(size)
      except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        break
    if fit:
      return harness.fastest(fit, lambda n: self._gradient(ids[:n], n))
    if self._checkpointing:
      raise MemoryError('one row does not fit, even if computed again')
    self._checkpointing = True
    self._model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={'use_reentrant': False}
    )
    return self._best(sizes)

  def run(self):
    self._next()
    work = self._work
    adapted = sum(p.numel() for p in self._trained) if work.adapter else 0
    again = ', activations computed again' if self._checkpointing else ''
    return {
        'tokens': work.num_rows * work.num_tokens,
        'flops': sft_work.flops(self._config, work, adapted),
        'losses': self._losses,
        'note': f'{self._at_once} rows at once{again}',
    }

  def _ids(self) -> torch.Tensor:
    ids = self._work.tokens(self._config.vocab_size)
    return torch.as_tensor(ids.astype(np.int64), device=self._device)

  def _next(self) -> float:
    ids = self._ids()
    total = 0.0
    for part in ids.split(self._at_once):
      total += self._gradient(part, len(ids))
    torch.nn.utils.clip_grad_norm_(self._trained, sft_work.CLIP)
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    if self._device.type == 'cuda':
      torch.cuda.synchronize()
    return float(total)

  def _gradient(self, ids: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Adds the gradient of some rows; returns their part of the mean loss."""
    half = self._work.dtype == 'bfloat16'
    cast = torch.autocast(self._device.type, torch.bfloat16)
    with cast if half else contextlib.nullcontext():
      logits = self._model(ids, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction='sum'
    ) / (num_rows * (ids.shape[1] - 1))
    loss.backward()
    return loss.detach()

  def peak_bytes(self) -> int | None:
    if self._device.type == 'cpu':
      return None
    return torch.cuda.max_memory_allocated()
