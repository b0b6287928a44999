# SPDX-License-Identifier: Apache-2.0
"""Owning caches and the pool: what they hold, that older views are refused, and what they take."""

import numpy as np
import pytest

import gqa

HEADS, KV_HEADS, DIM = 4, 2, 64
attention = gqa.Attention(HEADS, KV_HEADS, DIM)
CODECS = ["int8", "int4", "q8_0", "q5_1", "q5_0", "q4_0", "iq4_nl", "q8_kv", "fp8_e4m3", "fp8_e5m2", "mxfp4"]
# Least errors of outputs over normal rows, relative and root mean square: README.md of the library, "What fewer bits cost".
ERRORS = {
    "int8": 0.014,
    "q8_0": 0.011,
    "q8_kv": 0.014,
    "fp8_e4m3": 0.059,
    "fp8_e5m2": 0.12,
    "q5_1": 0.082,
    "q5_0": 0.093,
    "iq4_nl": 0.17,
    "q4_0": 0.18,
    "int4": 0.26,
    "mxfp4": 0.26,
}


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def rows(rng, n, heads=KV_HEADS, dim=DIM):
    return rng.standard_normal((n, heads, dim), dtype=np.float32)


def every_cache(**made):
    pool = gqa.PagedKvPool(KV_HEADS, DIM, 40, page_size=5, **made)
    return [gqa.ContiguousKvCache(KV_HEADS, DIM, 200, **made), gqa.RingKvCache(KV_HEADS, DIM, 200, **made), pool.sequence()]


def test_tokens_come_and_go(rng):
    k, v, q = rows(rng, 120), rows(rng, 120), rows(rng, 1, HEADS)
    for cache in every_cache():
        cache.append(k[:50], v[:50])
        cache.append(k[50:], v[50:])
        assert cache.length == len(cache) == 120
        cache.truncate(100)
        cache.keep(90, [0, 3, 4])
        cache.erase(10, 20)
        left = [*range(10), *range(20, 90), 90, 93, 94]
        assert cache.length == len(left)
        assert np.array_equal(attention(q, cache), attention(q, (k[left], v[left])))
        cache.clear()
        assert cache.length == 0
        with pytest.raises(gqa.Error, match="cache.length|length"):
            cache.truncate(5)


def test_a_ring_keeps_the_newest(rng):
    k, v, q = rows(rng, 300), rows(rng, 300), rows(rng, 1, HEADS)
    ring = gqa.RingKvCache(KV_HEADS, DIM, 64)
    ring.append(k, v)
    assert (ring.length, ring.first_position, ring.capacity) == (300, 236, 64)
    assert np.array_equal(attention(q, ring, gqa.causal_window(64)), attention(q, (k, v), gqa.causal_window(64)))


def test_forks_share_pages(rng):
    k, v, q = rows(rng, 40), rows(rng, 40), rows(rng, 1, HEADS)
    pool = gqa.PagedKvPool(KV_HEADS, DIM, 12, page_size=8)
    prompt = pool.sequence()
    prompt.append(k[:20], v[:20])
    assert (prompt.pages_to_append(20), pool.pages, pool.free_pages, pool.page_size) == (2, 12, 9, 8)
    fork, short = prompt.fork(), prompt.fork(16)
    assert pool.free_pages == 9 and fork.pages == prompt.pages and pool.reference_count(prompt.pages[0]) == 3
    fork.append(k[20:], v[20:])
    assert fork.pages[:2] == prompt.pages[:2] and fork.pages[2] != prompt.pages[2]
    assert np.array_equal(attention(q, fork), attention(q, (k, v)))
    assert np.array_equal(attention(q, prompt), attention(q, (k[:20], v[:20])))
    assert np.array_equal(attention(q, short), attention(q, (k[:16], v[:16])))
    with pytest.raises(gqa.StorageExhausted):
        prompt.append(rows(rng, 80), rows(rng, 80))
    assert prompt.length == 20
    del fork, short
    prompt.release()
    assert pool.free_pages == 12


def test_a_full_cache_says_so(rng):
    cache = gqa.ContiguousKvCache(KV_HEADS, DIM, 10)
    with pytest.raises(gqa.StorageExhausted):
        cache.append(rows(rng, 11), rows(rng, 11))
    assert cache.length == 0


def test_older_views_are_refused_once_tokens_are_gone(rng):
    k, v, q = rows(rng, 90), rows(rng, 90), rows(rng, 1, HEADS)
    for cache in every_cache():
        cache.append(k, v)
        view = cache.view()
        for change in (lambda c: c.truncate(80), lambda c: c.keep(70, [1]), lambda c: c.erase(3, 4), lambda c: c.clear()):
            view = cache.view()
            attention(q[:0], view)
            change(cache)
            with pytest.raises(gqa.Error, match="dropped or moved since; expected the cache itself, or a new view"):
                attention(q, view)
    cache = gqa.ContiguousKvCache(KV_HEADS, DIM, 200)
    cache.append(k, v)
    view = cache.view()
    cache.append(k, v)  # moves nothing
    assert view.length == 90 and np.array_equal(attention(q, view), attention(q, (k, v)))


@pytest.mark.parametrize("codec", CODECS)
def test_codecs(rng, codec):
    """Errors are about those that the library publishes, and token by token is the same as at once."""
    k, v, q = rows(rng, 4096), rows(rng, 4096), rows(rng, 64, HEADS)
    exact = attention(q, (k, v), "full")
    for cache in [gqa.ContiguousKvCache(KV_HEADS, DIM, 4096, k_type=codec), gqa.PagedKvPool(KV_HEADS, DIM, 64, k_type=codec).sequence()]:
        cache.append(k[:4000], v[:4000])
        for t in range(4000, 4096):
            cache.append(k[t : t + 1], v[t : t + 1])
        got = attention(q, cache, "full")
        error = np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean())
        assert 0.5 * ERRORS[codec] < error < 1.3 * ERRORS[codec], error
    assert np.array_equal(got, attention(q, cache, "full", threads=2))


def test_bytes_are_what_the_budget_says():
    for codec in ["f32", "bf16", "int8", "q8_0", "q4_0", "mxfp4"]:
        model = gqa.ModelShape()
        model.add_layers(3, query_heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM)
        plan = gqa.KvPlan(codec, "f16")
        cache = gqa.ContiguousKvCache(KV_HEADS, DIM, 100, k_type=codec, v_type="f16")
        assert 3 * cache.bytes == model.sequence_bytes(100, plan) == 100 * model.bytes_per_token(plan)
        pool = gqa.PagedKvPool(KV_HEADS, DIM, 7, page_size=16, k_type=codec, v_type="f16")
        assert 3 * pool.bytes == model.sequence_bytes(7 * 16, gqa.KvPlan(codec, "f16", page_size=16))


def test_rotation_and_plain_tokens(rng):
    k, v, q = rows(rng, 1000), rows(rng, 1000), rows(rng, 3, HEADS)
    k[:, :, 5] += 16  # a strong dim, which rotation spreads
    exact = attention(q, (k, v))
    off = {}
    for name, made in {
        "plain": {},
        "rotated": dict(k_rotation=64, v_rotation=64),
        "kept": dict(first_tokens=64, newest_tokens=128, plain_type="f32"),
    }.items():
        cache = gqa.ContiguousKvCache(KV_HEADS, DIM, 1000, k_type="int4", **made)
        cache.append(k, v)
        off[name] = abs(attention(q, cache) - exact).mean()
    assert off["rotated"] < 0.7 * off["plain"]
    short = gqa.ContiguousKvCache(KV_HEADS, DIM, 1000, k_type="int4", first_tokens=64, newest_tokens=64, plain_type="f32")
    short.append(k[:100], v[:100])
    assert np.array_equal(attention(q, short), attention(q, (k[:100], v[:100])))
    view = short.view()
    short.append(k[100:], v[100:])
    with pytest.raises(gqa.Error, match="dropped or moved since"):  # a view of three parts, which change with the length
        attention(q, view)
    turned = k.copy()
    gqa.hadamard_rotate(turned, 64)
    assert not np.allclose(turned, k)
    assert np.allclose(gqa.hadamard_rotate(turned, 64), k, atol=1e-5)


def rope_definition(x, positions, base):
    half = x.shape[2] // 2
    angle = np.asarray(positions)[:, None, None] * base ** (-np.arange(half) / half)
    a, b = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], 2)


def test_rope_and_norms_on_the_way_in(rng):
    k, v, q = rows(rng, 50), rows(rng, 50), rows(rng, 50, HEADS)
    rope, weights = gqa.Rope(DIM, 1000, base=500.0), rng.uniform(0.5, 2, DIM).astype(np.float32)
    norm = gqa.RmsNorm(weights, epsilon=1e-5)
    turned = rope(q.copy(), 0)
    assert np.allclose(turned, rope_definition(q, range(50), 500.0), atol=1e-5)
    normed = norm(k.copy())
    mean = (k.astype(np.float64) ** 2).mean(2, keepdims=True)
    assert np.allclose(normed, k / np.sqrt(mean + 1e-5) * weights, rtol=1e-6)
    for cache in every_cache():
        cache.append(k, v, rope=rope, norm=norm)
        assert np.array_equal(attention(turned, cache), attention(turned, (rope(normed.copy(), 0), v)))
    given = every_cache()[0]
    given.append(k, v, rope=rope, positions=[7] * 50)
    assert np.array_equal(attention(q, given), attention(q, (rope(k.copy(), [7] * 50), v)))
    with pytest.raises(gqa.Error, match="rope.positions"):
        every_cache()[0].append(k, v, rope=gqa.Rope(DIM, 10))


def test_context_shift(rng):
    """Tokens in the middle go, and keys behind them are moved: nearly what would have been appended."""
    k, v, q = rows(rng, 60), rows(rng, 60), rows(rng, 1, HEADS)
    rope = gqa.Rope(DIM, 100)
    left = [*range(10), *range(30, 60)]
    for cache, fresh in zip(every_cache(), every_cache()):
        cache.append(k, v, rope=rope)
        cache.erase(10, 30)
        cache.change_keys(10, 40, rope, -20)
        fresh.append(k[left], v[left], rope=rope)
        assert np.allclose(attention(q, cache), attention(q, fresh), atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: gqa.ContiguousKvCache(0, 8, 4), "config.kv_heads is 0; expected 1 or more"),
        (lambda: gqa.ContiguousKvCache(1, 8, 4, k_type="int3"), 'k_type is "int3"; expected one of f32, bf16, f16, int8'),
        (lambda: gqa.ContiguousKvCache(1, 33, 4, k_type="q8_0"), "33"),
        (lambda: gqa.ContiguousKvCache(1, 8, 4, layout="rows"), 'layout is "rows"'),
        (lambda: gqa.PagedKvPool(1, 8, 0), "config.pages is 0"),
        (
            lambda: gqa.ContiguousKvCache(1, 8, 4).append(np.zeros((1, 1, 7), np.float32), np.zeros((1, 1, 8), np.float32)),
            "k.dim is 7; expected",
        ),
        (lambda: gqa.ContiguousKvCache(1, 8, 4).append(np.zeros((1, 8), np.float32), np.zeros((1, 8), np.float32)), r"k.shape is \(1, 8\)"),
        (lambda: gqa.Rope(7, 10), "options.dims is 7"),
        (lambda: gqa.Rope(8, 10, scaling="cubic"), 'scaling is "cubic"; expected one of none, linear'),
    ],
)
def test_wrong_caches_are_named(make, message):
    with pytest.raises(gqa.Error, match=message):
        make()
