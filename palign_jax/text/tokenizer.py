"""A model folder's tokenizer: ids, offsets, chat template, files.

tokenizer.json is taken as it stands, read by `tokenizers` (Rust) without what
it adds around a text: no beginning-of-sequence token but the one a chat
template writes.  transformers is used for the template and for folders of older
formats; neither needs torch or a network.
"""

from collections.abc import Sequence
import functools
import os
from typing import Any

from etils import epath
import jinja2

# It would tell every user that there is no PyTorch, which nobody wants here.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
import transformers  # noqa: E402

from palign_jax.core import errors
from palign_jax.text import chat as chat_lib

# Any one of these makes a tokenizer, in this order of preference.
_SOURCES = ('tokenizer.json', 'tokenizer.model', 'vocab.json')
# Characters encoded together: some 100 bytes each while Rust has them.
_BATCH_SIZE = 1_000_000
# Stands for the clock in templates that ask it (chat.py says why).
_FIXED_CLOCK = (
    '{% macro strftime_now(format) %}'
    + chat_lib.DATE
    + "{% endmacro %}{{ '' }}"
)


class Tokenizer:
  """Text to ids and back.  Made by `load`."""

  def __init__(self, folder: epath.Path, tokenizer: Any):
    """Takes over `tokenizer`, which nobody else may use.

    Args:
      folder: Where it came from.
      tokenizer: A fast tokenizer of transformers.
    """
    self.name = str(folder)
    self._hf = tokenizer
    self._rust = tokenizer.backend_tokenizer
    # The post-processor would also trim white space off the offsets.
    self._rust.post_processor = None
    self._rust.no_truncation()
    self._rust.no_padding()

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`; special tokens written in it are recognised.

    Nothing is added.  Tokenizers may normalise (Qwen's: to NFC), so decoding
    gives back an equal text only if `text` is normal.
    """
    return self._rust.encode(text, add_special_tokens=False).ids

  def encode_with_offsets(
      self, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the ids of `text` and where each stands in it.

    Returns:
      Ids as `encode` gives them, and [start, end) in characters of `text`, the
      space before a word included.  Tokens that share the bytes of a character
      all span it.
    """
    encoding = self._rust.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets

  def encode_with_words(
      self, text: str
  ) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Returns what `encode_with_offsets` does, and the word of each token.

    Words are numbered in order.  A word is what the model (BPE, ...) sees at
    once: a token never depends on another word.  An added token is a word.
    Tokenizers that do not divide a text have one word between added tokens.
    """
    encoding = self._rust.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets, encoding.word_ids

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns `encode` of each text, at less cost for many short ones."""
    ids, batch, size = [], [], 0
    for i, text in enumerate(texts):
      batch.append(text)
      size += len(text)
      if size >= _BATCH_SIZE or i == len(texts) - 1:
        found = self._rust.encode_batch_fast(batch, add_special_tokens=False)
        ids += [encoding.ids for encoding in found]
        batch, size = [], 0
    return ids

  def overhang(self, text: str) -> int:
    """Returns how far before `text` an added token may begin that ends in it.

    Args:
      text: What follows some other text.

    Returns:
      Characters; 0 if none can, which is usual.  An upper bound.
    """
    longest = 0
    for token in self._rust.get_added_tokens_decoder().values():
      content = token.content
      if token.normalized and self._rust.normalizer is not None:
        longest = max(longest, len(content))  # Text may differ from content.
        continue
      for i in range(len(content) - 1, longest, -1):
        if text.startswith(content[i:]):
          longest = i
          break
    return longest

  def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
    """Returns the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
    return self._rust.decode(list(ids), skip_special_tokens=skip_specials)

  @functools.cached_property
  def size(self) -> int:
    """One more than the greatest id, added tokens included."""
    return 1 + max(self._rust.get_vocab(with_added_tokens=True).values())

  @functools.cached_property
  def eos_ids(self) -> tuple[int, ...]:
    """Ids that end a reply: the tokenizer's own, then the chat's end of turn.

    A model's generation_config.json may know more.

    Raises:
      CheckpointError: If there is neither.
    """
    ids = [] if self._hf.eos_token_id is None else [self._hf.eos_token_id]
    if self._hf.chat_template is not None:
      ids.append(self.encode(self.chat.turn_end)[-1])
    if not ids:
      raise errors.CheckpointError(
          f'{self.name}: the tokenizer names no eos_token and has no chat'
          ' template; set eos_token in tokenizer_config.json.'
      )
    return tuple(dict.fromkeys(ids))

  @functools.cached_property
  def specials(self) -> frozenset[str]:
    """The special tokens, as written."""
    added = self._rust.get_added_tokens_decoder().values()
    return frozenset(token.content for token in added if token.special)

  @functools.cached_property
  def chat(self) -> chat_lib.Chat:
    return chat_lib.Chat(self)

  def render(
      self, messages: Sequence[chat_lib.Message], *, generate: bool
  ) -> str:
    """Returns the text of a conversation, by the folder's own template.

    Args:
      messages: Turns with `role` and `content`.
      generate: Whether to open the assistant's turn at the end.

    Raises:
      CheckpointError: If the folder has no chat template, or one that fails.
    """
    try:
      return self._hf.apply_chat_template(
          list(messages),
          chat_template=self._template,
          tokenize=False,
          add_generation_prompt=generate,
          enable_thinking=False,
          date_string=chat_lib.DATE,
      )
    except (jinja2.TemplateError, TypeError) as e:
      raise errors.CheckpointError(
          f'{self.name}: the chat template fails ({_first_line(e)}); it must'
          ' render a user turn and an assistant turn without a system turn.'
      ) from e

  @functools.cached_property
  def _template(self) -> str:
    if self._hf.chat_template is None:
      raise errors.CheckpointError(
          f'{self.name}: the tokenizer has no chat template; add'
          ' chat_template.jinja, or take the instruction-tuned model.'
      )
    try:
      template = self._hf.get_chat_template()
    except ValueError as e:  # Several by name, none of them the default.
      raise errors.CheckpointError(
          f'{self.name}: the tokenizer has chat templates'
          f' {sorted(self._hf.chat_template)}, none named default.'
      ) from e
    return _FIXED_CLOCK + template if 'strftime_now' in template else template


class Streamer:
  """Turns ids into text as they come, without half a character."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._ids: list[int] = []
    # Ids since `_start` are decoded together, since a decoder may look back;
    # the text of those before `_done` was given out.
    self._start = 0
    self._done = 0

  def push(self, token_id: int) -> str:
    """Returns what `token_id` completes, which may be nothing."""
    self._ids.append(token_id)
    text = self._pending()
    # A character whose bytes are not all here decodes to U+FFFD for now.
    if not text or text.endswith('\ufffd'):
      return ''
    self._start, self._done = self._done, len(self._ids)
    return text

  def finish(self) -> str:
    """Returns the rest, complete or not; all texts together are `decode`'s."""
    text = self._pending()
    self._start = self._done = len(self._ids)
    return text

  def _pending(self) -> str:
    given = self._tokenizer.decode(self._ids[self._start : self._done])
    text = self._tokenizer.decode(self._ids[self._start :])
    return text[len(given) :]


def check_stop(tokenizer: Tokenizer, strings: Sequence[str], at: str) -> None:
  """Raises if a stop string can never appear in a completion's text.

  Args:
    tokenizer: Of the model that writes.
    strings: Before which a completion is to end.
    at: Where they were given, for the message.

  Raises:
    ConfigError: If one holds a special token.
  """
  for string in strings:
    for special in sorted(tokenizer.specials):
      if special in string:
        raise errors.ConfigError(
            f'{at}: {string!r} has {special!r} in it, a special token, which'
            ' is no part of a text; leave it out (the ends of turns stop a'
            ' completion anyway).'
        )


def load(folder: epath.PathLike) -> Tokenizer:
  """Reads the tokenizer of a model folder on disk.

  Raises:
    CheckpointError: If there is none, or it cannot be read.
  """
  folder = epath.Path(folder)
  if not folder.is_dir():
    raise errors.CheckpointError(f'{folder}: no such folder.')
  present = [name for name in _SOURCES if (folder / name).exists()]
  if not present:
    raise errors.CheckpointError(
        f'{folder}: no tokenizer there (none of {", ".join(_SOURCES)}); copy'
        ' the tokenizer files of the model into the folder.'
    )
  # AutoTokenizer would rebuild some tokenizers by their class name, not by
  # tokenizer.json.
  source = (
      transformers.PreTrainedTokenizerFast
      if present[0] == 'tokenizer.json'
      else transformers.AutoTokenizer
  )
  try:
    tokenizer = source.from_pretrained(str(folder), local_files_only=True)
  except Exception as e:  # tokenizers raises bare Exception on a broken file.
    raise errors.CheckpointError(
        f'{folder}: {present[0]} cannot be read as a tokenizer'
        f' ({_first_line(e)}).'
    ) from e
  if not tokenizer.is_fast:
    raise errors.CheckpointError(
        f'{folder}: {present[0]} is a tokenizer of the slow kind; convert it to'
        ' tokenizer.json with transformers.'
    )
  return Tokenizer(folder, tokenizer)


def _first_line(error: Exception) -> str:
  return (str(error) or type(error).__name__).splitlines()[0]
