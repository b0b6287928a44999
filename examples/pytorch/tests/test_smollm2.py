# SPDX-License-Identifier: Apache-2.0
"""A real model: SmolLM2-135M from a GGUF file, whose path is in GQA_SMOLLM2_GGUF. Skipped without."""

import os

import pytest
import torch
from gqa_torch import GqaCache
from models import from_gguf

PATH = os.environ.get("GQA_SMOLLM2_GGUF")
pytestmark = pytest.mark.skipif(not PATH, reason="GQA_SMOLLM2_GGUF is not set")
PROMPT = "The three laws of thermodynamics are as follows. The first law says that"


@pytest.fixture(scope="module")
def loaded():
    return from_gguf(PATH)


def text_of(loaded, implementation, prompts=(PROMPT,), new=64, **more):
    tokenizer, model = loaded
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    model.set_attn_implementation(implementation)
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
    return model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad_token_id, **more)


@pytest.fixture(scope="module")
def of_sdpa(loaded):
    return text_of(loaded, "sdpa")


def test_greedy_text_is_that_of_sdpa(loaded, of_sdpa):
    assert torch.equal(text_of(loaded, "gqa"), of_sdpa)


def test_batch_with_padding(loaded):
    prompts = (PROMPT, "Once upon a time", "def fibonacci(n):\n")
    assert torch.equal(text_of(loaded, "gqa", prompts, new=24), text_of(loaded, "sdpa", prompts, new=24))


@pytest.mark.parametrize("kind", ["paged", "contiguous"])
def test_own_cache(loaded, of_sdpa, kind):
    cache = GqaCache(loaded[1].config, codec="float32", kind=kind)
    assert torch.equal(text_of(loaded, "gqa", cache=cache), of_sdpa)


def test_int8_cache(loaded, of_sdpa):
    """Next-token distributions over the prompt and its continuation are those of exact rows to what 8 bits leave, in a quarter of memory."""
    tokenizer, model = loaded
    model.set_attn_implementation("gqa")
    found = {}
    with torch.no_grad():
        for codec in ("float32", "int8"):
            cache = GqaCache(model.config, codec=codec)
            found[codec] = torch.log_softmax(model(input_ids=of_sdpa, cache=cache).logits, -1), cache.bytes_used
    (exact, exact_bytes), (coded, bytes_used) = found["float32"], found["int8"]
    divergence = (exact.exp() * (exact - coded)).sum(-1).mean()
    print(f"KL divergence of int8 from float32: {divergence:.2e}")
    assert 0 < divergence < 0.02 and bytes_used < 0.27 * exact_bytes
    text = text_of(loaded, "gqa", cache=GqaCache(model.config, codec="int8"))
    print(f"tokens that are the same before the first other one: {int((text == of_sdpa).int().cumprod(1).sum())} of {text.numel()}")
    assert text.shape == of_sdpa.shape
