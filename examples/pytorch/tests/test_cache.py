# SPDX-License-Identifier: Apache-2.0
"""GqaCache: a model's keys and values in pages or in few bits, read where they are stored."""

import copy
import threading

import pytest
import torch
from gqa_torch import GqaCache, attention
from gqa_torch.cache import attend
from models import CONFIGS, make, tokens, transformers


def generate(model, ids, cache=None, new=24, **more):
    more = dict(dict(max_new_tokens=new, min_new_tokens=new, do_sample=False), **more)
    return model.generate(ids, cache=cache, **more)


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
        wanted, got = (model(input_ids=ids, cache=cache).logits for cache in (exact, coded))
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
    assert torch.equal(attend(layer.held(), q, settings), wanted) and torch.equal(attend(chunked.held(), q, settings), wanted)


@pytest.mark.parametrize("codec", ["int8", "bfloat16"])
def test_chunks_are_the_same_bits(codec):
    """Prefill at once or in chunks: what attention gives over the cache does not change."""
    model = make("llama")
    q, k, v = (torch.randn(2, heads, 100, 16) for heads in (6, 2, 2))
    settings = dict(causal=True, window=0, soft_cap=0.0, sinks=None, scale=None)
    at_once, chunked = GqaCache(model.config, codec=codec).layers[:2]
    at_once.update(k, v)
    wanted = attend(at_once.held(), q, settings)
    for begin in range(0, 100, 30):
        part = slice(begin, begin + 30)
        chunked.update(k[:, :, part], v[:, :, part])
        assert torch.equal(attend(chunked.held(), q[:, :, part], settings), wanted[:, :, part])


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


def test_beams_in_the_fewest_pages():
    """max_tokens is what is there in the end, in one page a sequence: beams that share it need no page for the last to write to it."""
    model = make("llama")
    model.set_attn_implementation("gqa")
    ids = tokens(length=40)
    cache = GqaCache(model.config, codec="float32", max_tokens=64, page_size=64)
    assert torch.equal(generate(model, ids, cache, num_beams=4), generate(model, ids, num_beams=4))


@pytest.mark.parametrize("name, codec", [("llama", "float32"), ("llama", "int4"), ("mistral", "int8"), ("gemma3", "int8")])
def test_copies_share_pages(name, codec):
    """A prompt that is kept and copied for each answer, as transformers' pages do it with copy.deepcopy; answers in threads of their own."""
    model = make(name)
    model.set_attn_implementation("gqa")
    prompt, ends = tokens(length=70), [tokens(length=5, seed=s) for s in (1, 2, 3)]
    kept = GqaCache(model.config, codec=codec, page_size=16, first_tokens=64 if codec == "int4" else 0)
    with torch.no_grad():
        model(input_ids=prompt, cache=kept)
        before = kept.bytes_used
        copies = [copy.deepcopy(kept) for _ in ends]
        assert kept.bytes_used == before and all(c.get_seq_length() == 70 for c in copies)
    wanted = []
    for end in ends:
        alone = GqaCache(model.config, codec=codec, page_size=16, first_tokens=64 if codec == "int4" else 0)
        with torch.no_grad():
            model(input_ids=prompt, cache=alone)
        wanted.append(generate(model, torch.cat([prompt, end], 1), alone, new=60))
    got = [None] * 3

    before_threads = torch.get_num_threads()

    def answer(i):
        torch.set_num_threads(1)  # OpenMP's, of this thread: those of several would wait for each other by spinning
        got[i] = generate(model, torch.cat([prompt, ends[i]], 1), copies[i], new=60)

    threads = [threading.Thread(target=answer, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before_threads)
    assert all(torch.equal(*pair) for pair in zip(got, wanted))
    del copies
    assert kept.bytes_used == before and kept.get_seq_length() == 70


def test_refused_tokens_change_nothing():
    """After an append that is an error the cache is as it was, or as new."""
    settings = dict(causal=True, window=0, soft_cap=0.0, sinks=None, scale=None)
    for kind in ("paged", "contiguous"):
        layer, untouched = GqaCache(make("llama").config, kind=kind).layers[:2]
        wrong = [
            (torch.zeros(2, 2, 5, 16), torch.zeros(2, 2, 5, 8), "gqa: v.dim is 8; expected"),
            (torch.zeros(2, 2, 5, 16), torch.zeros(2, 2, 4, 16), "gqa: v.size(2) is 4; expected k.size(2) = 5"),
            (torch.zeros(2, 2, 5, 16), torch.zeros(2, 1, 5, 16), "gqa: v.size(1) is 1; expected k.size(1) = 2"),
            (torch.zeros(2, 2, 5, 16), torch.zeros(2, 2, 5, 16).double(), "gqa: v.dtype is Double; expected"),
            (torch.zeros(0, 2, 5, 16), torch.zeros(0, 2, 5, 16), "gqa: k.size(0) is 0; expected 1 or more"),
        ]
        for k, v, message in wrong[1:]:
            with pytest.raises(ValueError) as error:
                layer.update(k, v)
            assert message in str(error.value)
        q, k, v = (torch.randn(2, heads, 30, 16) for heads in (6, 2, 2))
        for one in (layer, untouched):
            one.update(k, v)
        for bad_k, bad_v, message in wrong[:1] + wrong[1:4]:
            with pytest.raises(ValueError) as error:
                layer.update(bad_k, bad_v)
            assert message in str(error.value)
        assert layer.get_seq_length() == 30 and torch.equal(attend(layer.held(), q, settings), attend(untouched.held(), q, settings))


def test_crop_reset_and_select():
    model = make("llama")
    model.set_attn_implementation("gqa")
    ids = tokens(batch=3, length=40)
    cache = GqaCache(model.config, codec="float32")
    with torch.no_grad():
        wanted = model(input_ids=ids, cache=cache).logits
        cache.crop(-10)
        assert cache.get_seq_length() == 30
        torch.testing.assert_close(model(input_ids=ids[:, 30:], cache=cache).logits, wanted[:, 30:], rtol=1e-4, atol=1e-4)
        cache.crop(-10)
        cache.batch_select_indices(torch.tensor([2, 0]))
        torch.testing.assert_close(model(input_ids=ids[[2, 0], 30:], cache=cache).logits, wanted[[2, 0], 30:], rtol=1e-4, atol=1e-4)
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
        model(input_ids=tokens(), cache=GqaCache(model.config))


def test_errors():
    model = make("llama")
    model.set_attn_implementation("gqa")
    with pytest.raises(ValueError, match="gqa: codec is 'int3'; expected 'float32'"):
        GqaCache(model.config, codec="int3")
    with pytest.raises(ValueError, match="gqa: kind is 'ring'; expected 'paged' or 'contiguous'"):
        GqaCache(model.config, kind="ring")
    with pytest.raises(ValueError, match="gqa: codec is 'torch.int8'; expected 'float32'"):
        GqaCache(model.config, codec=torch.int8)
    with pytest.raises(ValueError, match="gqa: max_tokens is 0; expected 1 to"):
        GqaCache(model.config, max_tokens=0)
    with pytest.raises(ValueError, match="gqa: max_tokens is None; expected a number, as T5Config has no max_position_embeddings"):
        GqaCache(transformers.T5Config())
    with pytest.raises(ValueError, match="gqa: config is of type LlamaForCausalLM; expected a model's configuration"):
        GqaCache(model)
    with pytest.raises(ValueError, match="gqa: kind is 'contiguous'; expected 'paged' for copies"):
        used = GqaCache(model.config, kind="contiguous")
        used.update(torch.zeros(1, 2, 5, 16), torch.zeros(1, 2, 5, 16), 0)
        copy.deepcopy(used)
    grown = GqaCache(model.config, max_tokens=64, page_size=16).layers[0]
    grown.update(torch.zeros(1, 2, 40, 16), torch.zeros(1, 2, 40, 16))
    grown.batch_repeat_interleave(4)
    with pytest.raises(RuntimeError, match="gqa: the pool, of 64 tokens for each of 1 sequences, has 2 pages free; expected room for 1 tokens"):
        grown.update(torch.zeros(4, 2, 1, 16), torch.zeros(4, 2, 1, 16))
    for kind in ("paged", "contiguous"):
        with pytest.raises(RuntimeError, match="gqa: max_tokens is 69; expected room for 70 tokens more"), torch.no_grad():
            model(input_ids=tokens(), cache=GqaCache(model.config, max_tokens=69, page_size=8, kind=kind))
    with pytest.raises(RuntimeError, match="expected torch.no_grad"):
        model(input_ids=tokens(), cache=GqaCache(model.config))
    with pytest.raises(ValueError, match="gqa: kind is 'contiguous'; expected 'paged' for beams"):
        generate(model, tokens(), GqaCache(model.config, kind="contiguous"), num_beams=2)
