# SPDX-License-Identifier: Apache-2.0
"""Arguments that are wrong in drawn ways: an error of the package's, or a right result; never a crash, and outputs untouched."""

import numpy as np
import pytest

import gqa

HEADS, KV_HEADS, DIM = 4, 2, 16
INTEGERS = [-(2**63), -(2**40), -1, 0, 1, 3, 64, 2**31, 2**40, 2**62, 2**63 - 1]


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def spoilt(rng, array):
    """An array that is not quite this one."""
    changes = [
        lambda a: a[::-1],
        lambda a: a[::2],
        lambda a: a[:0],
        lambda a: a[..., :-1],
        lambda a: a[..., ::-1],
        lambda a: a[..., ::2],
        lambda a: a[None],
        lambda a: a[0],
        lambda a: a.swapaxes(0, 1),
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(">f4"),
        lambda a: a.astype(np.int32),
        lambda a: a.astype(object),
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: a.tolist(),
        lambda a: a[()],
        lambda a: None,
        lambda a: "array",
        lambda a: 3,
        lambda a: np.float32(3),
        lambda a: memoryview(np.ascontiguousarray(a)),
        lambda a: a > 0,
        lambda a: a.view(np.uint8),
        lambda a: a.view([("x", np.float32)]),
        lambda a: np.ma.array(a),
        lambda a: np.ndarray((0, 0, 0), np.float32),
    ]
    if rng.random() < 0.85:
        return array
    try:
        return changes[rng.integers(len(changes))](array)
    except (ValueError, TypeError):  # of too few axes for that
        return array


def number(rng, right):
    return right if rng.random() < 0.85 else INTEGERS[rng.integers(len(INTEGERS))]


def drawn_cache(rng):
    k, v = normal(rng, 70, KV_HEADS, DIM), normal(rng, 70, KV_HEADS, DIM)
    layout = ["token_major", "head_major", "sideways"][rng.choice(3, p=[0.6, 0.35, 0.05])]
    more = {}
    if rng.random() < 0.2:
        more = dict(k_rotation=number(rng, 16), v_rotation=number(rng, 4))
    if rng.random() < 0.2:
        more.update(k_type=str(rng.choice(["f32", "int8", "q8_0", "q9"])), head_dim=number(rng, DIM))
    kind = rng.integers(6)
    if kind == 0:
        return spoilt(rng, k), spoilt(rng, v)
    if kind == 1:
        return gqa.KvCacheView.contiguous(spoilt(rng, k), spoilt(rng, v), number(rng, 60), layout=layout, oldest=number(rng, 0), **more)
    if kind == 2:
        return gqa.KvCacheView.ring(spoilt(rng, k), spoilt(rng, v), number(rng, 60), layout=layout, oldest=number(rng, 0), **more)
    if kind == 3:
        table = rng.permutation(7).astype(np.int32)
        if rng.random() < 0.3:
            table[rng.integers(7)] = np.clip(number(rng, 0), -(2**31), 2**31 - 1)
        pages = k.reshape(7, 10, KV_HEADS, DIM)
        return gqa.KvCacheView.paged(
            spoilt(rng, pages), pages, spoilt(rng, table) if rng.random() < 0.3 else table, number(rng, 66), layout=layout, **more
        )
    made = dict(
        layout=layout,
        k_type=str(rng.choice(["f32", "int8", "q4_0"])),
        first_tokens=int(rng.choice([0, 0, 64, 1])),
        **{k: v for k, v in more.items() if "rotation" in k},
    )
    if kind == 4:
        cache = gqa.ContiguousKvCache(KV_HEADS, number(rng, DIM), 100, **made)
    else:
        cache = gqa.PagedKvPool(KV_HEADS, DIM, 10, page_size=int(rng.choice([1, 8, 64])), **made).sequence()
    cache.append(spoilt(rng, k), v)
    change = rng.integers(6)
    if change == 0:
        cache.truncate(number(rng, 50))
    elif change == 1:
        cache.erase(number(rng, 3), number(rng, 9))
    elif change == 2:
        cache.keep(number(rng, 60), [number(rng, 0), number(rng, 2)])
    elif change == 3:
        cache.change_keys(number(rng, 0), number(rng, 50), gqa.Rope(DIM, 100), number(rng, -3))
    return cache


def drawn_variant(rng):
    makers = [
        lambda: "causal",
        lambda: gqa.causal_window(number(rng, 5)),
        lambda: gqa.two_sided_window(number(rng, 5), number(rng, 5)),
        lambda: gqa.prefix_lm(number(rng, 5)),
        lambda: gqa.first_tokens_and_window(number(rng, 5), number(rng, 5)),
        lambda: gqa.chunked_local(number(rng, 5)),
        lambda: gqa.dilated_window(number(rng, 5), number(rng, 5)),
        lambda: gqa.causal_with_blocks([(number(rng, 5), number(rng, 7))]),
        lambda: gqa.packed_documents([0, number(rng, 70)]),
        lambda: gqa.valid_tokens([(number(rng, 0), number(rng, 50))]),
        lambda: gqa.block_sparse(number(rng, 9), number(rng, 9), [0, number(rng, 2)] * 9, [0, number(rng, 3)]),
        lambda: gqa.draft_tree([-1, number(rng, 0), 1], number(rng, 67)),
        lambda: gqa.boolean_mask(spoilt(rng, np.ones((3, 70), bool))),
        lambda: ["causal", gqa.additive_bias(spoilt(rng, normal(rng, HEADS, 3, 70)))],
        lambda: ["causal", gqa.distance_bias(spoilt(rng, normal(rng, HEADS, 140)), number(rng, -70))],
        lambda: ["causal", gqa.alibi([0.1] * abs(number(rng, 4) % 9))],
        lambda: ["causal", gqa.soft_cap(float(number(rng, 5)))],
        lambda: ["causal", gqa.position_temperature(number(rng, 5), 0.1)],
        lambda: ["causal", gqa.output_gate(spoilt(rng, normal(rng, 3, HEADS, DIM)))],
        lambda: ["causal", 3],
        lambda: [],
        lambda: None,
    ]
    return makers[rng.integers(len(makers))]()


@pytest.mark.parametrize("share", range(4))
def test_wrong_arguments(share):
    ran = failed = 0
    messages = set()
    for case in range(1500):
        rng = np.random.default_rng([share, case])
        q = normal(rng, 3, HEADS, DIM)
        out = np.full((3, HEADS, DIM), 7, np.float32)
        try:
            attention = gqa.Attention(HEADS, KV_HEADS, number(rng, DIM) if rng.random() < 0.1 else None)
            positions = [number(rng, 60), 61, 62] if rng.random() < 0.2 else None
            attention(
                spoilt(rng, q),
                drawn_cache(rng),
                drawn_variant(rng),
                out=spoilt(rng, out),
                lse=bool(rng.random() < 0.5),
                positions=positions,
            )
            ran += 1
        except (gqa.Error, gqa.StorageExhausted) as error:
            assert str(error).startswith("gqa: "), error
            assert (out == 7).all(), (case, error)
            messages.add(str(error))
            failed += 1
        except TypeError:  # a number where a number was not, and the like
            assert (out == 7).all(), case
            failed += 1
        except OverflowError:
            failed += 1
    assert ran > 20 and failed > 500 and len(messages) > 150


def test_backwards_arrays_are_read_backwards():
    rng = np.random.default_rng(1)
    q, k, v = normal(rng, 3, HEADS, DIM), normal(rng, 70, KV_HEADS, DIM), normal(rng, 70, KV_HEADS, DIM)
    attention = gqa.Attention()
    wanted = attention(q, (k, v))
    back = k[::-1].copy()[::-1]
    try:
        got = attention(q[:, :, ::-1].copy()[:, :, ::-1], (back, v))
    except gqa.Error as error:  # refused, by name, is as good
        assert "stride" in str(error)
    else:
        assert np.array_equal(got, wanted)


def test_outputs_must_not_lie_in_inputs():
    rng = np.random.default_rng(1)
    q, k = normal(rng, 3, HEADS, DIM), normal(rng, 70, KV_HEADS, DIM)
    for out in (q, k.reshape(-1)[: q.size].reshape(q.shape)):
        with pytest.raises(gqa.Error, match="overlap|memory"):
            gqa.Attention()(q, (k, k), out=out)
