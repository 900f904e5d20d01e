"""What transformers computes we compute, from the same files, both ways."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from palign_jax.checkpoints import hf_export, hf_import
from palign_jax.core import keys
from palign_jax.models import lora
from palign_jax.sampling import sampler
from tests.checkpoints import families

pytestmark = pytest.mark.filterwarnings(
    'ignore:.*is_gradient_checkpointing:FutureWarning'  # peft
)
ALL = tuple(families.FAMILIES)
NUM_NEW = 64


def close(got, want):
  assert np.abs(want).max() > 1  # Logits at which 1e-4 means something.
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_configs_differ_in_every_number(cases):
  numbers = ('vocab_size', 'embed_dim', 'mlp_dim', 'norm_eps', 'rope_theta')
  configs = [cases(name).model.config for name in ALL]
  for field in numbers:
    assert len({getattr(c, field) for c in configs}) == len(ALL), field
  groups = {c.num_heads // c.num_kv_heads for c in configs}
  assert groups == {1, 2, 3, 4}
  assert len({c.head_dim for c in configs}) == len(ALL)
  assert {c.tied for c in configs} == {True, False}


@pytest.mark.parametrize('name', ALL)
def test_logits(cases, name):
  case = cases(name)
  got = families.logits(case.model.params, case.model.config)
  close(got, families.torch_logits(case.torch_model))


@pytest.mark.parametrize('name', ALL)
def test_exported_model_in_transformers(cases, name, tmp_path):
  case = cases(name)
  hf_export.save(
      tmp_path / 'out',
      case.model,
      tokenizer_folder=families.write_tokenizer(tmp_path / 'tokenizer'),
      dtype=jnp.float32,
  )
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / 'out', output_loading_info=True
  )
  assert not any(info.values()), info
  assert model.dtype == torch.float32
  want = families.torch_logits(case.torch_model)
  np.testing.assert_array_equal(families.torch_logits(model), want)
  again = hf_import.load(tmp_path / 'out', dtype=jnp.float32)
  assert again.config == case.model.config
  assert again.max_positions == case.model.max_positions


@pytest.mark.parametrize('name', ALL)
def test_config_of_transformers_5_says_the_same(cases, name, tmp_path):
  case = cases(name)
  raw = json.loads((case.folder / 'config_v5.json').read_text())
  assert {'rope_parameters', 'dtype'} <= raw.keys()
  assert 'rope_theta' not in raw
  for path in case.folder.glob('*.safetensors'):
    (tmp_path / path.name).symlink_to(path)
  (tmp_path / 'config.json').write_text(json.dumps(raw))
  model = hf_import.load(tmp_path, dtype=jnp.float32)
  assert model.config == case.model.config
  assert model.max_positions == case.model.max_positions


@pytest.mark.parametrize('name', ['qwen2_tied', 'qwen3'])
def test_adapter_in_peft(cases, name, tmp_path):
  case = cases(name)
  params, config = case.model.params, case.model.config
  shapes = jax.eval_shape(lambda: lora.init(config, 3, jax.random.key(0)))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype)
  adapters = jax.tree.map(draw, shapes)
  hf_export.save_adapter(
      tmp_path, adapters, config, alpha=6, base_name=str(case.folder)
  )
  base = transformers.AutoModelForCausalLM.from_pretrained(case.folder)
  want = families.torch_logits(peft.PeftModel.from_pretrained(base, tmp_path))
  joined = lora.join(params, adapters)
  close(families.logits(joined, config, lora_scale=2.0), want)
  merged = jax.jit(functools.partial(lora.merge, scale=2.0))(params, adapters)
  close(families.logits(merged, config), want)
  plain = families.logits(params, config)
  assert np.abs(plain - want).max() > 0.1

  again, scale = hf_import.load_adapter(tmp_path, config)
  assert scale == 2.0
  jax.tree.map(np.testing.assert_array_equal, again, adapters)


def generate(params, config, prompts):
  """Returns the greedy continuations of some prompts."""
  greedy = sampler.SamplingConfig(
      temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0
  )
  drawing = sampler.Sampler(
      params,
      config,
      mesh=None,
      dtype='float32',
      num_rows=len(prompts),
      stop_ids=(),
      vocab_limit=config.vocab_size,
      max_positions=256,
      sampling=greedy,
      loop_rule=None,
      prefill_tokens=64,
  )
  requests = [
      sampler.Request(str(i), tuple(p), keys.fold(0, i), NUM_NEW)
      for i, p in enumerate(prompts)
  ]
  done = {c.id: c.tokens for c in drawing.run(requests)}
  return [list(done[r.id]) for r in requests]


@pytest.mark.parametrize('name', ALL)
def test_greedy_generation_token_for_token(cases, name):
  case = cases(name)
  prompts = [families.TOKENS[0, :9].tolist(), families.TOKENS[1, :14].tolist()]
  got = generate(case.model.params, case.model.config, prompts)
  for row, prompt in zip(got, prompts, strict=True):
    ids = torch.tensor([prompt])
    want = case.torch_model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NUM_NEW,
        pad_token_id=0,
    )
    assert row == want[0, len(prompt) :].tolist()
