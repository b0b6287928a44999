# SPDX-License-Identifier: Apache-2.0
"""GqaCache: a model's keys and values in pages or in few bits, read where they are stored."""

import pytest
import torch
from gqa_torch import GqaCache, attention
from models import CONFIGS, make, tokens, transformers


def generate(model, ids, cache=None, new=24, **more):
    more = dict(dict(max_new_tokens=new, min_new_tokens=new, do_sample=False), **more)
    return model.generate(ids, past_key_values=cache, **more)


@pytest.mark.parametrize("kind", ["paged", "contiguous"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_elements_are_exact(name, kind):
    """Rows of the model's own type: the text of transformers' own cache."""
    model = make(name)
    ids = tokens(length=40)
    model.set_attn_implementation("eager")
    wanted = generate(model, ids)
    model.set_attn_implementation("gqa")
    assert torch.equal(generate(model, ids, GqaCache(model.config, codec="float32", kind=kind, page_size=16)), wanted)


@pytest.mark.parametrize("codec, share", [("bfloat16", 0.5), ("float16", 0.5), ("int8", 0.32), ("q8_0", 0.27), ("int4", 0.19)])
def test_codecs(codec, share):
    """Each in the memory that its bits take, close to exact: as far as eight, or four, bits go."""
    model = make("qwen3")
    model.set_attn_implementation("gqa")
    ids = tokens(length=64)
    exact, coded = (GqaCache(model.config, codec=c, page_size=16) for c in ("float32", codec))
    with torch.no_grad():
        wanted, got = (model(input_ids=ids, past_key_values=cache).logits for cache in (exact, coded))
        error = (got - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
    assert coded.bytes_used <= share * exact.bytes_used and exact.bytes_used == 4 * 2 * 2 * 64 * 2 * 32 * 4
    assert 0 < error < dict(bfloat16=0.02, float16=0.003, int8=0.05, q8_0=0.05, int4=0.7)[codec], error


def test_layer_against_decoded_rows():
    """A layer's attention over bf16 rows is the operator's over the same rows as tensors, bit for bit; append in chunks, too."""
    model = make("llama")
    layer, chunked = GqaCache(model.config, kind="paged", page_size=7).layers[:2]
    q, k, v = (torch.randn(2, heads, 100, 16) for heads in (6, 2, 2))
    handle, _ = layer.update(k, v)
    for begin in range(0, 100, 33):
        chunked.update(k[:, :, begin : begin + 33], v[:, :, begin : begin + 33])
    assert handle.shape == k.shape and handle.dtype == k.dtype
    settings = dict(causal=True, window=0, soft_cap=0.0, sinks=None, scale=None)
    wanted = attention(q, k.bfloat16(), v.bfloat16(), causal=True)
    assert torch.equal(layer.attention(q, settings), wanted) and torch.equal(chunked.attention(q, settings), wanted)


@pytest.mark.parametrize("codec", ["int8", "bfloat16"])
def test_chunks_are_the_same_bits(codec):
    """Prefill at once or in chunks: what attention gives over the cache does not change."""
    model = make("llama")
    q, k, v = (torch.randn(2, heads, 100, 16) for heads in (6, 2, 2))
    settings = dict(causal=True, window=0, soft_cap=0.0, sinks=None, scale=None)
    at_once, chunked = GqaCache(model.config, codec=codec).layers[:2]
    at_once.update(k, v)
    wanted = at_once.attention(q, settings)
    for begin in range(0, 100, 30):
        part = slice(begin, begin + 30)
        chunked.update(k[:, :, part], v[:, :, part])
        assert torch.equal(chunked.attention(q[:, :, part], settings), wanted[:, :, part])


@pytest.mark.parametrize("kind", ["paged", "contiguous"])
@pytest.mark.parametrize("side", ["left", "holes"])
def test_padding(kind, side):
    model = make("gemma2")
    ids = tokens(length=40)
    there = torch.ones_like(ids)
    there[0, slice(0, 13) if side == "left" else slice(5, 9)] = 0
    model.set_attn_implementation("eager")
    wanted = generate(model, ids, attention_mask=there)
    model.set_attn_implementation("gqa")
    assert torch.equal(generate(model, ids, GqaCache(model.config, codec="float32", kind=kind), attention_mask=there), wanted)


def test_beams_share_pages():
    model = make("llama")
    model.set_attn_implementation("gqa")
    ids = tokens(length=40)
    cache = GqaCache(model.config, codec="float32", page_size=8)
    assert torch.equal(generate(model, ids, cache, num_beams=4), generate(model, ids, num_beams=4))
    one_by_one = 8 * 4 * 2 * (cache.get_seq_length() + 7) // 8 * 8 * 2 * 16 * 4  # 8 beams, 4 layers, K and V, whole pages, 2 heads, 16 dims
    assert cache.bytes_used < one_by_one


def test_crop_reset_and_select():
    model = make("llama")
    model.set_attn_implementation("gqa")
    ids = tokens(batch=3, length=40)
    cache = GqaCache(model.config, codec="float32")
    with torch.no_grad():
        wanted = model(input_ids=ids, past_key_values=cache).logits
        cache.crop(-10)
        assert cache.get_seq_length() == 30
        torch.testing.assert_close(model(input_ids=ids[:, 30:], past_key_values=cache).logits, wanted[:, 30:], rtol=1e-4, atol=1e-4)
        cache.crop(-10)
        cache.batch_select_indices(torch.tensor([2, 0]))
        torch.testing.assert_close(model(input_ids=ids[[2, 0], 30:], past_key_values=cache).logits, wanted[[2, 0], 30:], rtol=1e-4, atol=1e-4)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.bytes_used == 0


def test_other_uses_of_the_keys_are_refused():
    model = make("llama")
    keys, values = GqaCache(model.config).update(torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16), 0)
    assert keys.shape == (1, 2, 5, 16)
    for use in (lambda: keys + 1, lambda: keys[:, :, 0], lambda: torch.cat([keys, keys]), lambda: keys.sum()):
        with pytest.raises(RuntimeError, match="expected a model with attn_implementation='gqa'"):
            use()
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="gqa: the keys and values of a GqaCache are encoded"), torch.no_grad():
        model(input_ids=tokens(), past_key_values=GqaCache(model.config))


def test_errors():
    model = make("llama")
    model.set_attn_implementation("gqa")
    with pytest.raises(ValueError, match="gqa: codec is 'int3'; expected 'float32'"):
        GqaCache(model.config, codec="int3")
    with pytest.raises(ValueError, match="gqa: kind is 'ring'; expected 'paged' or 'contiguous'"):
        GqaCache(model.config, kind="ring")
    for kind in ("paged", "contiguous"):
        with pytest.raises(RuntimeError, match="gqa: .*"), torch.no_grad():
            model(input_ids=tokens(), past_key_values=GqaCache(model.config, max_tokens=63, page_size=8, kind=kind))
    with pytest.raises(RuntimeError, match="expected torch.no_grad"):
        model(input_ids=tokens(), past_key_values=GqaCache(model.config))
    with pytest.raises(ValueError, match="gqa: kind is 'contiguous'; expected 'paged' for beams"):
        generate(model, tokens(), GqaCache(model.config, kind="contiguous"), num_beams=2)
