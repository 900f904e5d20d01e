"""Small stand-ins that many tests share."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' +"
    " m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
_LINES = (
    'Please reason step by step, and put your final answer within \\boxed{}.',
    'Question: Anna has 12 apples and buys 7 more. How many has she now?',
    'First, 12 plus 7 is 19. Wait, let me check that again. Yes, it is 19.',
    'So the answer is \\boxed{19}. Enough to finish? [ENOUGH] [NOT_ENOUGH]',
    '<Begin_of_Prefix> Reasoning: <End_of_Prefix> Continue.',
    'user assistant system',
)


def tokenizer_folder(
    path: epath.PathLike,
    *,
    template: str | None = CHATML,
    specials: tuple[str, ...] = _SPECIALS,
    settings: Mapping[str, Any] | None = None,
) -> epath.Path:
  """Writes a tiny tokenizer as a Hugging Face folder, the same each time.

  Byte-level BPE of some 320 tokens: any text encodes, digits one by one.

  Args:
    path: The folder, made if missing; other files in it are left alone.
    template: Its chat template; None for a tokenizer without.
    specials: Its special tokens, with ids from 0.
    settings: More fields of tokenizer_config.json.

  Returns:
    `path`.
  """
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [
          pre_tokenizers.Digits(individual_digits=True),
          pre_tokenizers.ByteLevel(add_prefix_space=False),
      ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=len(specials) + 317,
      special_tokens=list(specials),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
  )
  tokenizer.train_from_iterator(_LINES, trainer)
  path = epath.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(path / 'tokenizer.json'))
  config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'eos_token': specials[-1],
      'pad_token': specials[0],
      'clean_up_tokenization_spaces': False,
      **({} if template is None else {'chat_template': template}),
      **(settings or {}),
  }
  (path / 'tokenizer_config.json').write_text(json.dumps(config))
  return path
