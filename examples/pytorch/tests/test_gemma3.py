# SPDX-License-Identifier: Apache-2.0
"""A real model with sliding windows: Gemma 3 270M from a GGUF file, whose path is in GQA_GEMMA3_GGUF. Skipped without."""

import os
from pathlib import Path

import pytest
import torch
from gqa_torch import GqaCache
from models import from_gguf

PATH = os.environ.get("GQA_GEMMA3_GGUF")
pytestmark = pytest.mark.skipif(not PATH, reason="GQA_GEMMA3_GGUF is not set")
PROMPT = 1400  # tokens, of this example's documentation: the window is 512


@pytest.fixture(scope="module")
def loaded():
    tokenizer, model = from_gguf(PATH)
    text = (Path(__file__).parents[1] / "README.md").read_text()
    return tokenizer(text, return_tensors="pt").input_ids[:, :PROMPT], model


@pytest.mark.parametrize("beams", [1, 2])
def test_text_is_that_of_sdpa(loaded, beams):
    ids, model = loaded
    assert ids.shape == (1, PROMPT)
    texts = []
    for implementation in ("sdpa", "gqa"):
        cache = GqaCache(model.config, codec="float32", max_tokens=PROMPT + 32) if implementation == "gqa" else None
        model.set_attn_implementation(implementation)
        texts.append(model.generate(ids, cache=cache, num_beams=beams, max_new_tokens=16, min_new_tokens=16, do_sample=False))
    assert torch.equal(*texts)


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_same_bits_in_less_memory(loaded, codec):
    ids, model = loaded
    model.set_attn_implementation("gqa")
    found = []
    for all_tokens in (False, True):
        cache = GqaCache(model.config, codec=codec, all_tokens=all_tokens)
        out, begin = [], 0
        with torch.no_grad():
            for size in (700, 100, 590, *(1,) * 10):
                out.append(model.model(input_ids=ids[:, begin : begin + size], cache=cache).last_hidden_state)
                begin += size
        assert cache.get_seq_length() == PROMPT
        found.append((torch.cat(out, 1), cache.bytes_used))
    (got, used), (wanted, all_used) = found
    assert torch.equal(got, wanted)
    # Pages of 64 tokens: 22 in all; the newest 511 lie in 13 to 21.
    assert used * 18 * 22 == all_used * (3 * 22 + 15 * 9)
