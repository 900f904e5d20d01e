"""Learns the sandbox's tokenizer: byte-level BPE on the world's own text.

Any text encodes.  Every digit is a token of its own, at most with the space
before it; a LaTeX command is one unit, so that a boxed answer costs little.
The chat template is ChatML as Qwen2.5 writes it, but without a default system
prompt.  The same texts give the same files, byte for byte.
"""

from collections.abc import Sequence
import json

from etils import epath
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from palign_jax.core import jsonl
from palign_jax.sandbox import corpus

VOCAB_SIZE = 768
SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
CHAT_TEMPLATE = (
    '{% for message in messages %}'
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_PATTERN = (
    r' ?\\[A-Za-z]+\{?'
    r'| ?\p{L}+'
    r'| ?\p{N}'
    r'| ?[^\s\p{L}\p{N}]+'
    r'|\s+(?!\S)'
    r'|\s+'
)
_NUM_ROWS = 2000
_PROMPT_REPEATS = 50  # Their words should be merged though they come once.


def build(
    folder: epath.PathLike, prompts: Sequence[str], units: Sequence[str] = ()
) -> None:
  """Learns the tokenizer and writes it as a Hugging Face folder.

  Args:
    folder: Where tokenizer.json and tokenizer_config.json go.
    prompts: Texts that the models will read beside the world's: prompts,
      labels, markers.
    units: Texts that become one token each, after all others.
  """
  tokenizer = learn(prompts)
  # Not special: they are part of what a model says.
  tokenizer.add_tokens(
      [tokenizers.AddedToken(unit, normalized=False) for unit in units]
  )
  folder = epath.Path(folder)
  jsonl.write_text(folder / 'tokenizer.json', tokenizer.to_str(pretty=True))
  settings = {
      'add_prefix_space': False,
      'bos_token': None,
      'chat_template': CHAT_TEMPLATE,
      'clean_up_tokenization_spaces': False,
      'eos_token': '<|im_end|>',
      'pad_token': '<|endoftext|>',
      'tokenizer_class': 'PreTrainedTokenizerFast',
  }
  text = json.dumps(settings, indent=2) + '\n'
  jsonl.write_text(folder / 'tokenizer_config.json', text)


def learn(prompts: Sequence[str]) -> tokenizers.Tokenizer:
  """Returns a tokenizer learnt on `prompts` and on the world's text."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [
          pre_tokenizers.Split(tokenizers.Regex(_PATTERN), 'isolated'),
          pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=VOCAB_SIZE,
      special_tokens=list(SPECIALS),
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
      show_progress=False,
  )
  rows = corpus.Corpus(
      corpus.CorpusConfig(
          kinds={'fact': 1, 'chain': 4, 'judge': 1},
          steps=dict.fromkeys(range(1, 9), 1),
          seed=0,
      )
  )
  texts = [*prompts] * _PROMPT_REPEATS
  # The assistant's turn follows a line break: no space before its first word.
  texts += ['user\n', 'assistant\n', 'system\n'] * _PROMPT_REPEATS
  for i in range(_NUM_ROWS):
    texts += [rows[i]['question'], rows[i]['reply']]
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer
