"""PyTorch's side of the judge's benchmark."""

from collections.abc import Iterator, Sequence
import functools

import numpy as np
import torch
import transformers

from benchmarks import harness, steering, texts
from palign_jax.judging import reading, search as search_lib, trace as trace_lib
from palign_jax.text import prompts, tokenizer as tokenizer_lib

_REPLY = 8  # Tokens of a verdict that is decoded, at most.


class _Base:
  """A model of transformers on the GPU, if there is one, and its tasks."""

  def __init__(self, folder: str, tasks: Sequence[texts.Task], dtype: str):
    cuda = torch.cuda.is_available()
    self.device = torch.device('cuda' if cuda else 'cpu')
    if not cuda:
      torch.set_num_threads(harness.num_cores())
    transformers.utils.logging.disable_progress_bar()
    self.model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation='sdpa'
    )
    self.model.to(self.device).eval()
    self.tokenizer = tokenizer_lib.load(folder)
    self.tasks = tasks

  def peak_bytes(self) -> int | None:
    if self.device.type == 'cpu':
      return None
    return torch.cuda.max_memory_allocated()

  def prompt(self, task: texts.Task, length: int) -> list[int]:
    """Returns what the judge reads of a prefix."""
    trace = trace_lib.Trace(task.id, task.question, task.text, task.ends)
    return reading.prompt_tokens(self.tokenizer, texts.PROMPT, trace, length)

  @functools.cached_property
  def trunk_tokens(self) -> int:
    """What is counted as judged: the trunks, whatever is computed."""
    return sum(map(len, texts.trunks(self.tokenizer, self.tasks)))

  def last_logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Returns the logits after each row, float32, on the host.

    Rows are padded on the right, where causal attention never sees the
    padding: without a mask sdpa takes its fastest path.
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
      ids[i, : len(row)] = torch.as_tensor(np.asarray(row, np.int64))
    with torch.inference_mode():
      x = self.model.model(ids.to(self.device), use_cache=False)
      last = x.last_hidden_state[torch.arange(len(rows)), lengths - 1]
      return self.model.lm_head(last).float().cpu()  # Waits for the GPU.

  def read(
      self, rows: Sequence[Sequence[int]], size: int
  ) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yields places and logits of rows, sorted by length in batches."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for begin in range(0, len(order), size):
      batch = order[begin : begin + size]
      yield batch, self.last_logits([rows[i] for i in batch])

  def best_batch(self, rows: Sequence[Sequence[int]]) -> int:
    """Returns the batch size in which these rows are read fastest."""
    sizes = harness.batch_sizes(len(rows), self.device.type == 'cpu')
    run = lambda size: list(self.read(rows, size))
    return harness.fastest(sizes, run, len(rows))


class Reference(_Base):
  """The reference's algorithm, without its sleeps.

  One trace at a time, a prompt per probe, a reply decoded greedily.  Random
  weights would ramble on: replies are as long as the right label and the end
  of the turn, at most 8 tokens.
  """

  def __init__(
      self, folder: str, tasks: Sequence[texts.Task], dtype: str, case: str
  ):
    super().__init__(folder, tasks, dtype)
    self._case = case
    size = lambda label: min(len(self.tokenizer.encode(label)) + 1, _REPLY)
    self._sizes = {
        True: size(prompts.ENOUGH),
        False: size(prompts.NOT_ENOUGH),
    }
    self.model.generation_config.eos_token_id = None

  def warm_up(self) -> None:
    self._reply(self.tasks[0], 1)

  def run(self):
    found = {}
    for task in self.tasks:
      judge = lambda probes, task=task: [
          self._reply(task, probe.length) for probe in probes
      ]
      search = {task.id: steering.begin(self._case, task)}
      found |= search_lib.drive(search, judge)
    sizes = sorted(self._sizes.values())
    return {
        'tokens': self.trunk_tokens,
        'note': f'replies of {sizes[0]} or {sizes[1]} tokens',
        **steering.facts(found, self.tasks),
    }

  def _reply(self, task: texts.Task, length: int) -> search_lib.Verdict:
    ids = torch.tensor([self.prompt(task, length)], device=self.device)
    out = self.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=self._sizes[length >= task.boundary],
        do_sample=False,
        pad_token_id=0,
    )
    reply = self.tokenizer.decode(out[0, ids.shape[1] :].tolist())
    return search_lib.Verdict(prompts.parse_verdict(reply), response=reply)


class Strong(_Base):
  """What a careful engineer would write with transformers.

  All traces in lockstep, prompts sorted by length and read in batches of the
  best size, the verdict from the logits after them.
  """

  def __init__(
      self,
      folder: str,
      tasks: Sequence[texts.Task],
      dtype: str,
      case: str,
      batch: int = 0,
  ):
    """Loads.

    Args:
      folder: A checkpoint.
      tasks: What to judge.
      dtype: Of weights and computation.
      case: A search.
      batch: Prompts read together; 0 for the best size.
    """
    super().__init__(folder, tasks, dtype)
    self._case, self._batch = case, batch
    yes, no = (
        self.tokenizer.encode(label)
        for label in (prompts.ENOUGH, prompts.NOT_ENOUGH)
    )
    num = next(i for i in range(len(yes)) if yes[i] != no[i])
    self._shared, self._yes, self._no = yes[:num], yes[num], no[num]

  def warm_up(self) -> None:
    if self._batch:
      self.last_logits([self.prompt(self.tasks[0], 1)])
    else:
      self._batch = self.best_batch(self._round())

  def _round(self) -> list[list[int]]:
    """Returns prompts of such lengths as are read together."""
    if self._case == 'curve':  # Sorted, neighbours are about as long.
      return [self.prompt(t, len(t.ends)) for t in self.tasks for _ in range(4)]
    # A round of the search has one of each trace, at any of its cuts.
    num = len(self.tasks)
    cut = lambda i, task: max(len(task.ends) * (2 * i + 1) // (2 * num), 1)
    return [self.prompt(t, cut(i, t)) for i, t in enumerate(self.tasks)]

  def run(self):
    searches = {t.id: steering.begin(self._case, t) for t in self.tasks}
    found = search_lib.drive(searches, self._judge)
    margins = [v.margin for f in found.values() for v in f.verdicts.values()]
    num = len(self.tasks)
    return {
        'tokens': self.trunk_tokens,
        'num_traces': num,  # For a curve fewer than the others get.
        'mean_trunk_tokens': round(self.trunk_tokens / num, 1),
        'batch': self._batch,
        'mean_margin': round(float(np.mean(margins)), 6),
        **steering.facts(found, self.tasks),
    }

  def _judge(self, probes):
    by_id = {task.id: task for task in self.tasks}
    rows = [
        [*self.prompt(by_id[p.trace_id], p.length), *self._shared]
        for p in probes
    ]
    verdicts: list[search_lib.Verdict | None] = [None] * len(rows)
    # All together, if nothing was measured.
    for batch, logits in self.read(rows, self._batch or len(rows)):
      margins = (logits[:, self._yes] - logits[:, self._no]).tolist()
      for i, margin in zip(batch, margins, strict=True):
        verdicts[i] = search_lib.Verdict(margin >= 0, margin=margin)
    return verdicts


class TrunkPass(_Base):
  """One plain forward pass of all trunks, the head at their last tokens."""

  def __init__(self, folder: str, tasks: Sequence[texts.Task], dtype: str):
    super().__init__(folder, tasks, dtype)
    self._trunks = texts.trunks(self.tokenizer, tasks)
    self._batch = 1

  def warm_up(self) -> None:
    self._batch = self.best_batch(self._trunks)

  def run(self):
    for begin in range(0, len(self._trunks), self._batch):
      self.last_logits(self._trunks[begin : begin + self._batch])
    return {'tokens': sum(map(len, self._trunks)), 'batch': self._batch}
