"""PyTorch's side of the sampler's benchmark: `generate` in static batches."""

from collections.abc import Sequence
import time

import torch
import transformers

from benchmarks import harness, requests as requests_lib

_TRIED_STEPS = 16  # Tokens decoded to time a batch size.


class _Reached(transformers.StoppingCriteria):
  """Ends each row at its own length, and the batch with its longest."""

  def __init__(self, prompt_width: int, lengths: torch.Tensor):
    self._ends = prompt_width + lengths

  def __call__(self, input_ids, scores, **kwargs):
    return input_ids.shape[1] >= self._ends


class Sampling:
  """`generate` over batches of requests in the order in which they came."""

  def __init__(
      self,
      folder: str,
      requests: Sequence[requests_lib.Request],
      dtype: str,
      batches: Sequence[int],
      temperature: float,
      top_p: float,
      few: int = 0,
  ):
    """Loads.

    Args:
      folder: A checkpoint.
      requests: What to draw.
      dtype: Of weights and computation.
      batches: Sizes to choose from, rising.
      temperature: Of the draws.
      top_p: Likewise.
      few: Draws only so many of the requests, in whole batches; 0 for all.
    """
    cuda = torch.cuda.is_available()
    self._device = torch.device('cuda' if cuda else 'cpu')
    if not cuda:
      torch.set_num_threads(harness.num_cores())
    transformers.utils.logging.disable_progress_bar()
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation='sdpa'
    )
    self._model.to(self._device).eval()
    self._model.generation_config.eos_token_id = None
    self._drawing = dict(
        do_sample=True, temperature=temperature, top_p=top_p, top_k=0
    )
    self._requests, self._few = requests, few
    self._sizes = sorted({min(size, len(requests)) for size in batches})
    self._batch = self._sizes[0]

  def warm_up(self) -> None:
    """Chooses the batch size, knowing the lengths: better than anyone could."""
    times = {size: self._expected(size) for size in self._sizes}
    self._batch = min(times, key=times.__getitem__)

  def run(self):
    torch.manual_seed(0)
    steps = tokens = num = 0
    for batch in self._batches(self._batch):
      lengths = [request.length for request in batch]
      steps += len(batch) * max(lengths)
      width = self._generate(batch, lengths)
      if width != max(lengths):
        raise RuntimeError(f'{width} tokens in place of {max(lengths)}')
      tokens, num = tokens + sum(lengths), num + len(batch)
      if 0 < self._few <= num:
        break
    facts = {
        'tokens': tokens,
        'useful': round(tokens / steps, 4),
        'batch': self._batch,
    }
    if num < len(self._requests):
      facts['note'] = f'{num} of {len(self._requests)} requests'
      facts['all_tokens'] = sum(r.length for r in self._requests)
    return facts

  def peak_bytes(self) -> int | None:
    if self._device.type == 'cpu':
      return None
    return torch.cuda.max_memory_allocated()

  def _batches(self, size: int):
    """Returns the requests in batches."""
    starts = range(0, len(self._requests), size)
    return [self._requests[i : i + size] for i in starts]

  def _expected(self, size: int) -> float:
    """Returns about how many seconds all requests take in such batches."""
    batches = self._batches(size)
    timed = []
    for steps in (1, 1, 1 + _TRIED_STEPS):  # The first one warms up.
      begin = time.perf_counter()
      self._generate(batches[0], [steps] * size)
      timed.append(time.perf_counter() - begin)
    step = (timed[2] - timed[1]) / _TRIED_STEPS
    longest = [max(request.length for request in batch) for batch in batches]
    return sum(timed[1] + step * (length - 1) for length in longest)

  def _generate(
      self, batch: Sequence[requests_lib.Request], lengths: Sequence[int]
  ) -> int:
    """Returns how many tokens the longest row has drawn."""
    width = max(len(request.prompt) for request in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, request in enumerate(batch):
      ids[i, width - len(request.prompt) :] = torch.tensor(request.prompt)
      mask[i, width - len(request.prompt) :] = 1
    ends = torch.tensor(lengths, device=self._device)
    with torch.inference_mode():
      out = self._model.generate(
          ids.to(self._device),
          attention_mask=mask.to(self._device),
          max_new_tokens=requests_lib.LONGEST,
          stopping_criteria=[_Reached(width, ends)],
          pad_token_id=0,
          **self._drawing,
      )
    return out.cpu().shape[1] - width  # Waits for the GPU.
