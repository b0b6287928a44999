# SPDX-License-Identifier: Apache-2.0
"""Views: where rows lie, that nothing is copied, and that memory lives as long as it is needed."""

import gc
import weakref

import numpy as np
import pytest

import gqa

HEADS, KV_HEADS, DIM = 6, 2, 32
attention = gqa.Attention(HEADS, KV_HEADS, DIM)


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def address(array):
    return array.__array_interface__["data"][0]


def test_views_point_at_the_arrays(rng):
    k, v = normal(rng, 90, KV_HEADS, DIM), normal(rng, 90, KV_HEADS, DIM)
    view = gqa.KvCacheView.contiguous(k, v)
    assert (view.k_address, view.v_address) == (address(k), address(v))
    assert (view.length, len(view), view.kv_heads, view.head_dim, view.value_dim) == (90, 90, KV_HEADS, DIM, DIM)
    assert (view.k_type, view.storage, view.first_position) == ("f32", "contiguous", 0)
    part = k[10:, :, 8:]
    assert gqa.KvCacheView.contiguous(part, v[10:]).k_address == address(part)
    q = normal(rng, 3, HEADS, DIM)
    before = attention(q, view)
    k[:] = normal(rng, *k.shape)  # seen, as it is the same memory
    assert not np.array_equal(attention(q, view), before)
    assert np.array_equal(attention(q, view), attention(q, (k, v)))


def test_nothing_of_a_large_array_is_touched_or_copied(tmp_path, rng):
    """A file of 1 TiB with holes, of which two rows have been written: copying it could not work."""
    rows = np.memmap(tmp_path / "keys", dtype=np.float32, mode="w+", shape=(1 << 28, KV_HEADS, 16, DIM))
    apart = 1 << 20
    view = gqa.KvCacheView.contiguous(rows[::apart, :, 0], rows[::apart, :, 1], 2)
    rows[0, :, :2], rows[apart, :, :2] = normal(rng, KV_HEADS, 2, DIM), normal(rng, KV_HEADS, 2, DIM)
    q = normal(rng, 1, HEADS, DIM)
    assert np.array_equal(attention(q, view), attention(q, (rows[::apart, :, 0][:2].copy(), rows[::apart, :, 1][:2].copy())))


def test_outputs_are_written_where_they_are_to_lie(rng):
    q, k, v = normal(rng, 4, HEADS, DIM), normal(rng, 9, KV_HEADS, DIM), normal(rng, 9, KV_HEADS, DIM)
    wanted, lse = attention(q, (k, v), lse=True)
    room = np.zeros((HEADS, 5, 4), np.float16).transpose(2, 0, 1)
    room = np.zeros((2 * DIM, HEADS, 4), np.float16).transpose(2, 1, 0)[:, :, ::2]
    got = attention(q, (k, v), out=room)
    assert got is room
    assert np.array_equal(room, wanted.astype(np.float16))
    given = np.empty((4, HEADS), np.float32)
    _, same = attention(q, (k, v), lse=given)
    assert same is given and np.array_equal(given, lse)


def test_read_only_arrays_are_read_and_not_written(rng):
    q, k, v = normal(rng, 4, HEADS, DIM), normal(rng, 9, KV_HEADS, DIM), normal(rng, 9, KV_HEADS, DIM)
    for array in (q, k, v):
        array.flags.writeable = False
    out = attention(q, (k, v))
    out.flags.writeable = False
    with pytest.raises(gqa.Error, match="out is read-only; expected an array that can be written"):
        attention(q, (k, v), out=out)


def test_views_keep_arrays_alive(rng):
    class Kept(np.ndarray):  # plain arrays have no weak references in all versions
        pass

    k, v = normal(rng, 90, KV_HEADS, DIM).view(Kept), normal(rng, 90, KV_HEADS, DIM)
    q = normal(rng, 3, HEADS, DIM)
    wanted = attention(q, (k, v))
    alive = weakref.ref(k)
    view = gqa.KvCacheView.contiguous(k, v)
    later = gqa.KvCacheView.contiguous(k[64:], v[64:], earlier=[gqa.KvCacheView.contiguous(k[:64], v[:64])])
    del k, v
    gc.collect()
    garbage = [np.full((90, KV_HEADS, DIM), np.nan, np.float32) for _ in range(50)]
    assert alive() is not None
    assert np.array_equal(attention(q, view), wanted)
    assert np.array_equal(attention(q, later), wanted)
    del view, later, garbage
    gc.collect()
    assert alive() is None


def test_a_cache_lives_as_long_as_its_views(rng):
    q, k, v = normal(rng, 3, HEADS, DIM), normal(rng, 70, KV_HEADS, DIM), normal(rng, 70, KV_HEADS, DIM)
    pool = gqa.PagedKvPool(KV_HEADS, DIM, 10, page_size=8)
    caches = [gqa.ContiguousKvCache(KV_HEADS, DIM, 100), gqa.RingKvCache(KV_HEADS, DIM, 100), pool.sequence()]
    for cache in caches:
        cache.append(k, v)
    views = [cache.view() for cache in caches]
    del cache, caches, pool
    gc.collect()
    for view in views:
        assert np.array_equal(attention(q, view), attention(q, (k, v)))


def int8_rows(rows):
    """This library's int8: a scale of largest / 127 for each row."""
    scales = (abs(rows).max(2) / np.float32(127)).astype(np.float32)
    return np.rint(rows / scales[..., None]).astype(np.int8), scales


def q8_0_rows(rows):
    """ggml's q8_0: blocks of 32, an f16 scale before 32 signed bytes. And what they are worth."""
    blocks = rows.reshape(*rows.shape[:2], -1, 32)
    scales = (abs(blocks).max(3) / 127).astype(np.float16)
    numbers = np.rint(blocks / scales[..., None].astype(np.float32)).astype(np.int8)
    packed = np.concatenate([scales[..., None].view(np.uint8), numbers.view(np.uint8)], 3)
    return packed.reshape(*rows.shape[:2], -1), (numbers * scales[..., None].astype(np.float32)).reshape(rows.shape)


def test_rows_of_codecs_are_viewed_as_bytes(rng):
    k, v, q = normal(rng, 100, KV_HEADS, 64), normal(rng, 100, KV_HEADS, 64), normal(rng, 3, HEADS, 64)
    k_bytes, k_worth = q8_0_rows(k)
    v_bytes, v_scales = int8_rows(v)
    assert k_bytes.shape[2] == gqa.row_bytes("q8_0", 64) == 68 and gqa.row_bytes("int4", 64) == 32
    call = gqa.Attention()
    room = np.zeros((100, KV_HEADS, 3, 68), np.uint8)
    room[:, :, 1] = k_bytes
    view = gqa.KvCacheView.contiguous(room[:, :, 1], k_bytes, k_type="q8_0", head_dim=64)
    assert view.k_type == "q8_0" and view.k_address == address(room) + 68
    assert np.array_equal(call(q, view), call(q, (k_worth, k_worth)))
    mixed = gqa.KvCacheView.contiguous(k_bytes, v_bytes, k_type="q8_0", v_type="int8", head_dim=64, v_scales=v_scales)
    worth = v_bytes * v_scales[..., None]
    assert np.allclose(call(q, mixed), call(q, (k_worth, worth)), rtol=0, atol=3e-4)
    one = np.broadcast_to(np.float32(0.02), v_scales.shape)  # a scale for all, of which there is one number
    assert np.allclose(
        call(q, gqa.KvCacheView.contiguous(k_bytes, v_bytes, k_type="q8_0", v_type="int8", head_dim=64, v_scales=one)),
        call(q, (k_worth, v_bytes * np.float32(0.02))),
        rtol=0,
        atol=3e-4,
    )


def test_rings_go_round(rng):
    k, v, q = normal(rng, 100, KV_HEADS, DIM), normal(rng, 100, KV_HEADS, DIM), normal(rng, 1, HEADS, DIM)
    slots = 24
    keys, values = np.empty((2, slots, KV_HEADS, DIM), np.float32)
    keys[np.arange(76, 100) % slots], values[np.arange(76, 100) % slots] = k[76:], v[76:]
    view = gqa.KvCacheView.ring(keys, values, 100)
    assert view.first_position == 76
    assert np.array_equal(attention(q, view, gqa.causal_window(24)), attention(q, (k, v), gqa.causal_window(24)))
    with pytest.raises(gqa.Error, match="kv.capacity is 24; expected room for position 0"):
        attention(q, view)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda k, v: gqa.KvCacheView.contiguous(k[0], v), r"keys.shape is \(2, 32\); expected \(tokens, KV heads, dim\)"),
        (lambda k, v: gqa.KvCacheView.contiguous(k, v[:5]), "values.shape is .* as many tokens as keys has, 40"),
        (lambda k, v: gqa.KvCacheView.contiguous(k, v[:, :1]), "as many KV heads as keys has, 2"),
        (lambda k, v: gqa.KvCacheView.contiguous(k, v, 41), "length is 41; expected 0 to 40, the tokens of the arrays"),
        (
            lambda k, v: gqa.KvCacheView.contiguous(k[:, :, ::2], v),
            r"keys.strides\[2\] is 8 bytes; expected rows whose elements lie side by side",
        ),
        (lambda k, v: gqa.KvCacheView.contiguous(k.astype(np.float64), v), "keys is float64; expected float32, bfloat16 or float16"),
        (lambda k, v: gqa.KvCacheView.contiguous(k, v, layout="sideways"), 'layout is "sideways"; expected "token_major" or "head_major"'),
        (lambda k, v: gqa.KvCacheView.contiguous(k, v, k_type="q9"), 'type is "q9"; expected one of f32, bf16, f16, int8'),
        (lambda k, v: gqa.KvCacheView.contiguous(k.view(np.uint8), v.view(np.uint8), k_type="q8_0"), "head_dim is not given"),
        (lambda k, v: gqa.KvCacheView.contiguous(k.view(np.uint8), v.view(np.uint8), k_type="q8_0", head_dim=64), "rows of 68 bytes"),
        (lambda k, v: gqa.KvCacheView.contiguous(k, v, k_scales=np.ones((40, 2), np.float32)), "f32 has no scales outside of rows"),
        (lambda k, v: gqa.KvCacheView.paged(k[None], v[None], np.array([0]), 3), "table is int64; expected int32"),
        (lambda k, v: gqa.KvCacheView.paged(k, v, np.array([0], np.int32), 3), r"expected \(pages, tokens, KV heads, dim\)"),
        (lambda k, v: gqa.KvCacheView.contiguous("keys", v), "keys is a str; expected an array on the CPU"),
    ],
)
def test_wrong_views_are_named(rng, make, message):
    with pytest.raises(gqa.Error, match=message):
        make(normal(rng, 40, KV_HEADS, DIM), normal(rng, 40, KV_HEADS, DIM))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda q, kv: attention(q[:, :5], kv), "q.heads is 5; expected 6"),
        (lambda q, kv: attention(q.astype(np.float64), kv), "q is float64; expected float32, bfloat16 or float16"),
        (lambda q, kv: attention(q, kv[0]), r"kv is a ndarray; expected a KvCacheView, a cache, or a pair"),
        (lambda q, kv: attention(q, kv, "casual"), 'variant is "casual"; expected "causal", "full"'),
        (lambda q, kv: attention(q, kv, [gqa.soft_cap(3)]), "expected a part that says what is seen"),
        (lambda q, kv: attention(q, kv, ["causal", gqa.soft_cap(-1)]), "variant.cap is -1; expected a number above 0"),
        (lambda q, kv: attention(q, kv, ["causal", gqa.alibi([1.0])]), "variant.slopes.size.. is 1; expected the query heads, 6"),
        (lambda q, kv: attention(q, kv, ["causal", gqa.learned_sinks([0] * 6), gqa.learned_sinks([0] * 6)]), "two parts with sinks"),
        (
            lambda q, kv: attention(q, kv, gqa.boolean_mask(np.ones((2, 3), bool))),
            r"variant.allowed.queries is 2; expected 1, or q.tokens = 4",
        ),
        (lambda q, kv: attention(q, kv, path="mmx"), 'path is "mmx"; expected one of portable'),
        (lambda q, kv: attention(q, kv, products="tf32"), 'products is "tf32"'),
        (lambda q, kv: attention(q, kv, threads=0), "threads is 0; expected 1 or more"),
        (lambda q, kv: attention(q, kv, threads="two"), "threads is 'two'; expected a number, or a gqa.ThreadPool"),
        (lambda q, kv: attention(q, kv, out=np.empty((4, 6, 31), np.float32)), "out.dim is 31; expected"),
        (lambda q, kv: attention(q, kv, lse=np.empty((6, 4), np.float32)), r"lse.shape is \(6, 4\); expected \(4, 6\)"),
        (lambda q, kv: attention(q, kv, positions=[1, 2]), "positions.size.. is 2; expected"),
        (lambda q, kv: attention(q, kv, positions=["a"]), r"positions\[0\] is 'a'; expected a sequence of integers"),
        (lambda q, kv: attention.batch([q], [kv, kv]), r"len\(q\) is 1; expected the sequences, 2"),
        (lambda q, kv: attention.batch(q, [kv, kv], tokens=[1, 2]), r"sum\(tokens\) is 3; expected the tokens of q, 4"),
        (lambda q, kv: attention.batch([q, q[:, :, :3]], [kv, kv]), r"batch\[1\].q.dim is 3"),
        (lambda q, kv: gqa.Attention(5, 2, 8), "2"),
    ],
)
def test_wrong_calls_are_named(rng, call, message):
    with pytest.raises(gqa.Error, match=message) as caught:
        call(normal(rng, 4, HEADS, DIM), (normal(rng, 40, KV_HEADS, DIM), normal(rng, 40, KV_HEADS, DIM)))
    assert isinstance(caught.value, ValueError)


def test_outputs_are_untouched_by_a_call_that_fails(rng):
    q, k = normal(rng, 4, HEADS, DIM), normal(rng, 40, KV_HEADS, DIM)
    out = np.full((4, HEADS, DIM), 7, np.float32)
    with pytest.raises(gqa.Error):
        attention.batch([q, q], [(k, k), (k, k)], ["causal", gqa.alibi([1.0])], out=[out, np.empty_like(out)])
    assert (out == 7).all()


def test_products_scale_and_paths(rng):
    """Options of the functor, and of a call, which wins."""
    q, k, v = normal(rng, 4, HEADS, DIM), normal(rng, 90, KV_HEADS, DIM), normal(rng, 90, KV_HEADS, DIM)
    wanted = attention(q, (k, v))
    assert np.array_equal(attention(q * np.float32(0.5), (k, v)), attention(q, (k, v), scale=0.5 / np.sqrt(DIM)))
    fixed = gqa.Attention(HEADS, KV_HEADS, DIM, scale=1.0, path="portable", products="as_stored", threads=2)
    assert fixed.shape == (HEADS, KV_HEADS, DIM, DIM) and gqa.Attention().shape == (None, None, None, None)
    assert not np.array_equal(fixed(q, (k, v)), wanted)
    assert np.array_equal(fixed(q, (k, v), scale=1 / np.sqrt(np.float32(DIM))), attention(q, (k, v), scale=1 / np.sqrt(np.float32(DIM))))
    for path in gqa.paths():
        rounded = attention(q, (k, v), products="bf16", path=path)
        assert np.array_equal(rounded, wanted) == (path in ("portable", "avx2", "avx512", "neon", "wasm")), path
        assert np.allclose(rounded, wanted, rtol=0, atol=0.05)
    with pytest.raises(gqa.Error, match="scale is 'half'; expected a number, or None"):
        attention(q, (k, v), scale="half")
    with pytest.raises(gqa.Error, match="path is 3; expected a name, or None"):
        gqa.Attention(path=3)
    fixed.release_scratch()
    assert fixed(q, (k, v)).shape == q.shape


def test_static_extents_are_checked(rng):
    with pytest.raises(gqa.Error, match="kv.kv_heads is 1; expected 2"):
        attention(normal(rng, 4, HEADS, DIM), (normal(rng, 9, 1, DIM), normal(rng, 9, 1, DIM)))
    wide = gqa.Attention(HEADS, KV_HEADS, DIM, value_dim=7)
    assert wide(normal(rng, 4, HEADS, DIM), (normal(rng, 9, KV_HEADS, DIM), normal(rng, 9, KV_HEADS, 7))).shape == (4, HEADS, 7)


def test_grouping_reduces_to_its_ends(rng):
    """GQA has the bits of MHA over the same heads repeated, and one KV head those of each query head alone."""
    q, k, v = normal(rng, 4, HEADS, DIM), normal(rng, 700, KV_HEADS, DIM), normal(rng, 700, KV_HEADS, DIM)
    wanted = attention(q, (k, v))
    repeated = [np.repeat(x, HEADS // KV_HEADS, 1) for x in (k, v)]
    assert np.array_equal(gqa.Attention(HEADS, HEADS, DIM)(q, tuple(repeated)), wanted)
    shared = np.broadcast_to(k[:, :1], k.shape), np.broadcast_to(v[:, :1], v.shape)  # one head for all: a stride of 0
    one = gqa.Attention(HEADS, 1, DIM)(q, (k[:, :1], v[:, :1]))
    assert np.array_equal(attention(q, shared), one)
    for h in range(HEADS):
        assert np.array_equal(gqa.Attention(1, 1, DIM)(q[:, h : h + 1], (k[:, :1], v[:, :1])), one[:, h : h + 1])
