# SPDX-License-Identifier: Apache-2.0
"""Layers with a sliding window keep what the next token sees: the same bits as a cache that keeps all, in less memory."""

import copy

import gqa_torch
import pytest
import torch
from gqa_torch import GqaCache
from gqa_torch.cache import attend
from models import make, tokens, transformers

WINDOWED = ["mistral", "gemma2", "gemma3", "qwen2, sliding", "gpt_oss"]


def run(model, cache, ids, sizes, **more):
    """Logits of all tokens, which come in chunks of these sizes, the last of them again and again."""
    out, begin = [], 0
    with torch.no_grad():
        while begin < ids.shape[1]:
            size = sizes[min(len(out), len(sizes) - 1)]
            there = {"attention_mask": more["attention_mask"][:, : begin + size]} if more else {}
            out.append(model(input_ids=ids[:, begin : begin + size], cache=cache, **there).logits)
            begin += size
    return torch.cat(out, 1)


@pytest.mark.parametrize("kind", ["paged", "contiguous"])
@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("sizes", [(200,), (1,), (23, 24, 25, 1), (100, 3, 90, 1), (7,), (63, 65, 1), (130, 1)])
def test_same_bits_in_chunks(sizes, codec, kind):
    """Chunks shorter and longer than the window and the pages, at their edges and not."""
    model = make("gemma3")
    model.set_attn_implementation("gqa")
    ids = tokens(length=200)
    settings = dict(codec=codec, kind=kind, page_size=16, rotation=8 if codec == "int4" else 0)
    kept, whole = GqaCache(model.config, **settings), GqaCache(model.config, all_tokens=True, **settings)
    assert torch.equal(run(model, kept, ids, sizes), run(model, whole, ids, sizes))
    assert kept.get_seq_length() == 200 and kept.bytes_used < 0.8 * whole.bytes_used
    for layer, other in zip(kept.layers, whole.layers):
        if layer.is_sliding:
            assert 200 - 23 - 64 < layer.storage.first_held <= 200 - 23
            assert layer.storage.bytes_used <= 0.5 * other.storage.bytes_used
        else:
            assert layer.storage.bytes_used == other.storage.bytes_used


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WINDOWED)
def test_same_bits_of_models(name, dtype):
    model = make(name, dtype)
    model.set_attn_implementation("gqa")
    ids = tokens(length=300)
    codec = str(dtype).split(".")[1]
    kept, whole = (GqaCache(model.config, codec=codec, all_tokens=a) for a in (False, True))
    assert torch.equal(run(model, kept, ids, (150, 130, 1)), run(model, whole, ids, (150, 130, 1)))
    assert kept.bytes_used < whole.bytes_used


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("chunk", [None, 30, 5])
def test_text_is_eager_s(name, chunk):
    """Far beyond the window, one token at a time and a prompt that is longer than it, at once or in chunks."""
    model = make(name)
    texts = []
    for implementation, cache in (("eager", None), ("gqa", GqaCache(model.config, codec="float32", page_size=16))):
        model.set_attn_implementation(implementation)
        texts.append(model.generate(tokens(length=70), cache=cache, max_new_tokens=60, min_new_tokens=60, do_sample=False,
                                    prefill_chunk_size=chunk if cache else None))
    assert torch.equal(*texts)


@pytest.mark.parametrize("chunk", [40, 1])
@pytest.mark.parametrize("side", ["left", "holes"])
@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_padding(name, side, chunk):
    model = make(name)
    ids = tokens(length=130)
    there = torch.ones_like(ids)
    there[0, slice(0, 33) if side == "left" else slice(5, 9)] = 0
    there[1, 100:103] = 0 if side == "holes" else 1
    model.set_attn_implementation("gqa")
    kept, whole = (GqaCache(model.config, codec="float32", page_size=16, all_tokens=a) for a in (False, True))
    got = run(model, kept, ids, (70, chunk), attention_mask=there)
    assert torch.equal(got, run(model, whole, ids, (70, chunk), attention_mask=there))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=there).logits
    torch.testing.assert_close(got[there == 1], wanted[there == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_beams(name):
    model = make(name)
    ids = tokens(length=40)
    texts = []
    for implementation in ("gqa", "eager"):
        cache = GqaCache(model.config, codec="float32", page_size=8) if implementation == "gqa" else None
        model.set_attn_implementation(implementation)
        texts.append(model.generate(ids, cache=cache, num_beams=4, max_new_tokens=90, min_new_tokens=90, do_sample=False))
    assert torch.equal(*texts)


def test_copies_and_batch_operations():
    """Each sequence goes its own way after copies, repetitions and selections, which share pages; nothing of one reaches another."""
    model = make("gemma3")
    model.set_attn_implementation("gqa")
    ids = tokens(batch=3, length=90)
    ends = [tokens(batch=4, length=80, seed=s) for s in (5, 6)]
    found = []
    for all_tokens in (False, True):
        cache = GqaCache(model.config, codec="int8", page_size=16, all_tokens=all_tokens)
        out = [run(model, cache, ids, (90,))]
        before = cache.bytes_used
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        assert cache.bytes_used <= before
        other = copy.deepcopy(cache)
        out += [run(model, one, end, (3, 1, 40, 1)) for one, end in zip((cache, other), ends)]
        other.reorder_cache(torch.tensor([3, 3, 0, 1]))
        out += [run(model, one, end, (1, 60, 1)) for one, end in zip((cache, other), ends)]
        del other
        cache.batch_select_indices(torch.tensor([True, False, False, True]))
        out.append(run(model, cache, ends[0][:2], (1,)))
        found.append((out, cache.bytes_used))
        cache.reset()
        assert cache.bytes_used == 0 and cache.get_seq_length() == 0
        out.append(run(model, cache, ids, (90,)))
        assert torch.equal(out[-1], out[0])
    assert all(torch.equal(*pair) for pair in zip(found[0][0], found[1][0])) and found[0][1] < 0.75 * found[1][1]


def test_crop_is_refused_as_transformers_does():
    """Once the window is full tokens can be removed if the past was recorded; else nothing is changed, in no layer."""
    model = make("gemma3")  # layers 0 and 2 have windows
    model.set_attn_implementation("gqa")
    ids = tokens(length=150)
    kept, whole = (GqaCache(model.config, codec="float32", page_size=16, all_tokens=a) for a in (False, True))
    theirs = transformers.DynamicCache(config=model.config)
    for cache in (kept, whole, theirs):
        run(model, cache, ids[:, :20], (20,))
        cache.crop(-5)  # fewer than the window
        run(model, cache, ids[:, 15:100], (85,))
    for cache in (kept, theirs):
        with pytest.raises(RuntimeError, match="activate_past_recording"):
            cache.crop(-1)
    assert [layer.get_seq_length() for layer in kept.layers] == [100] * 4
    assert torch.equal(run(model, kept, ids[:, 100:110], (10,)), run(model, whole, ids[:, 100:110], (10,)))
    kept.activate_past_recording()
    with pytest.raises(RuntimeError, match="gqa: tokens_to_remove is -110; expected at most the "):
        kept.crop(-110)  # recorded from now on only
    with pytest.raises(ValueError, match="gqa: tokens_to_remove is 1; expected 0, or minus the number"):
        kept.crop(1)
    for removed in (3, 0, 10, 1):  # drafts, of which so many are wrong
        at = whole.get_seq_length()
        assert torch.equal(run(model, kept, ids[:, at : at + 10], (10,)), run(model, whole, ids[:, at : at + 10], (10,)))
        kept.crop(-removed)
        whole.crop(-removed)
        assert kept.get_seq_length() == whole.get_seq_length() == at + 10 - removed
        assert at + 10 - removed - 23 - 64 < kept.layers[0].storage.first_held <= at + 10 - removed - 23


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_assisted_decoding(name):
    """Drafts of a smaller model, which are cropped again and again, over own caches for both."""
    model, assistant = make(name), make(name)
    assistant.lm_head.weight = torch.nn.Parameter(assistant.lm_head.weight + 0.05 * torch.randn(200, 96))
    ids = tokens(batch=1, length=60)
    model.set_attn_implementation("eager")
    wanted = model.generate(ids, max_new_tokens=50, min_new_tokens=50, do_sample=False)
    for one in (model, assistant):
        one.set_attn_implementation("gqa")
    cache = GqaCache(model.config, codec="float32", page_size=16)
    got = model.generate(ids, cache=cache, assistant_model=assistant, max_new_tokens=50, min_new_tokens=50, do_sample=False)
    assert torch.equal(got, wanted) and cache.layers[0].storage.first_held > 0


def test_own_masks():
    """A mask that is no rule may hide what it likes, but not show what is gone."""
    model = make("gemma3")
    model.set_attn_implementation("gqa")
    ids = tokens(length=200)
    positions = torch.arange(200)
    window = (positions[None] <= positions[:, None]) & (positions[None] > positions[:, None] - 24)
    causal = positions[None] <= positions[:, None]
    masks = {"sliding_attention": window[None, None], "full_attention": causal[None, None]}
    found = []
    for all_tokens in (False, True):
        cache = GqaCache(model.config, codec="float32", page_size=16, all_tokens=all_tokens)
        run(model, cache, ids[:, :150], (150,))
        for kind in (torch.bool, torch.float32, torch.bfloat16):
            part = {name: mask[:, :, 150:, :] for name, mask in masks.items()}
            if kind != torch.bool:
                part = {name: torch.zeros(m.shape, dtype=kind).masked_fill(~m, torch.finfo(kind).min) for name, m in part.items()}
            with torch.no_grad():
                found.append(model(input_ids=ids[:, 150:], cache=copy.deepcopy(cache), attention_mask=part).logits)
    assert all(torch.equal(*pair) for pair in zip(found[:3], found[3:]))
    shows = causal[None, None, 149:, :].clone()
    with pytest.raises(ValueError, match="gqa: mask is visible there; expected hidden, as tokens before position 64 are not kept"), torch.no_grad():
        cache = GqaCache(model.config, codec="float32", page_size=16)
        run(model, cache, ids[:, :149], (149,))
        model(input_ids=ids[:, 149:], cache=cache, attention_mask={"sliding_attention": shows, "full_attention": shows})
    assert [layer.get_seq_length() for layer in cache.layers] == [200, 149, 149, 149]  # which nothing may be built upon
    with pytest.raises(RuntimeError, match=r"as there was an error in layer 0; expected reset\(\)"):
        run(model, cache, ids[:, 149:], (51,))
    cache.reset()
    assert torch.equal(run(model, cache, ids, (150, 50))[:, 150:], found[0])


def test_what_is_gone_is_not_seen():
    layer = GqaCache(make("mistral").config, codec="float32", page_size=16).layers[0]
    q, k, v = (torch.randn(2, heads, 200, 16) for heads in (6, 2, 2))
    settings = dict(causal=True, window=24, soft_cap=0.0, sinks=None, scale=None)
    keys, _ = layer.update(k, v)
    assert keys.shape == k.shape and layer.storage.first_held == 128
    wanted = gqa_torch.attention(q, k, v, causal=True, window=24)
    assert torch.equal(gqa_torch.cache.attend(keys.tokens, q, settings), wanted)
    assert torch.equal(attend(layer.held(), q[:, :, 160:], settings), wanted[:, :, 160:])
    assert torch.equal(attend(layer.held(), q[:, :, 160:], dict(settings, window=33)), gqa_torch.attention(q[:, :, 160:], k, v, causal=True, window=33))
    for change, n_q, message in [
        (dict(window=34), 40, "gqa: window is 34; expected 1 to the layer's 24, as tokens before position 128 are not kept"),
        (dict(window=0), 1, "gqa: window is 0; expected 1 to the layer's 24"),
        (dict(window=0, causal=False), 1, "gqa: window is 0; expected 1 to the layer's 24"),
        (dict(), 50, r"gqa: q.size\(2\) is 50; expected at most 49"),
    ]:
        with pytest.raises(ValueError, match=message):
            attend(layer.held(), q[:, :, -n_q:], dict(settings, **change))
    # What update returned shows what was there, whatever comes after it.
    layer.update(k[:, :, :1], v[:, :, :1])
    layer.activate_past_recording()
    layer.update(k[:, :, :20], v[:, :, :20])
    layer.crop(-20)
    layer.update(v[:, :, :20], k[:, :, :20])
    assert torch.equal(gqa_torch.cache.attend(keys.tokens, q, settings), wanted)
    layer.reset()
    assert torch.equal(gqa_torch.cache.attend(keys.tokens, q, settings), wanted)
    with pytest.raises(ValueError, match="gqa: the cache is empty"):
        attend(layer.held(), q, settings)


def test_memory_does_not_grow():
    """Pages in use stay what they are from the window on, of long prompts as of many tokens; copies of what is gone are gone."""
    config = make("mistral").config
    cache = GqaCache(config, codec="bfloat16", page_size=16)
    layer = cache.layers[0]
    used = set()
    for tokens_at_once in (1000, *(1,) * 24):
        k, v = (torch.randn(2, 2, tokens_at_once, 16) for _ in range(2))
        layer.update(k, v)
        used.add(layer.storage.bytes_used)
    a_page = 2 * 16 * 2 * 16 * 2  # K and V, tokens, heads, dims, bytes
    assert max(used) <= 2 * a_page * (23 + 63 + 16) / 16
    with pytest.raises(RuntimeError, match="gqa: max_tokens is 1024; expected room for 1 tokens more than the 1024 held by each of 2 sequences"):
        layer.update(k, v)


def test_a_pool_that_is_exhausted_midway():
    """Layers with a window have pages left where the others have none: tokens that some layers took are never built upon."""
    model = make("gemma3")
    model.set_attn_implementation("gqa")
    ids = tokens(length=150)
    cache = GqaCache(model.config, codec="float32", max_tokens=128)
    run(model, cache, ids[:, :100], (100,))
    copies = [copy.deepcopy(cache) for _ in range(2)]
    wanted = run(model, copies[0], ids[:, 100:120], (20,))
    with pytest.raises(RuntimeError, match="gqa: the pool, of 128 tokens for each of 2 sequences, has 0 pages free"):
        run(model, copies[1], ids[:, 100:120], (20,))
    assert copies[1].layers[0].get_seq_length() == 120 and copies[1].layers[1].get_seq_length() == 100
    del copies[0]  # there is room now
    with pytest.raises(RuntimeError, match=r"gqa: the cache's layers hold different tokens, as there was an error in layer 1; expected reset\(\)"):
        run(model, copies[0], ids[:, 120:128], (8,))
    copies[0].reset()
    assert torch.equal(run(model, copies[0], ids[:, :120], (100, 20))[:, 100:], wanted)
    del copies
    assert torch.equal(run(model, cache, ids[:, 100:120], (20,)), wanted)


def test_windows_come_from_the_configuration():
    def windows(config, **more):
        return [getattr(layer, "sliding_window", 0) for layer in GqaCache(config, max_tokens=64, **more).layers]

    assert windows(make("mistral").config) == [24] * 4 and windows(make("qwen2, sliding").config) == windows(make("gemma3").config) == [24, 0] * 2
    assert windows(make("llama").config) == windows(make("qwen2").config) == [0] * 4
    assert windows(transformers.MistralConfig(sliding_window=None)) == [0] * 32
    assert windows(transformers.Gemma3TextConfig()) == ([4096] * 5 + [0]) * 4 + [4096] * 2
    assert windows(make("gemma3").config, all_tokens=True) == windows(make("gemma3").config, newest_tokens=64) == [0] * 4
    assert [layer.is_sliding for layer in transformers.DynamicCache(config=make("gemma3").config).layers] == [True, False] * 2
    with pytest.raises(ValueError, match="gqa: config.layer_types has .*'linear_attention'.*; expected full_attention and sliding_attention alone"):
        windows(transformers.Qwen3NextConfig())
