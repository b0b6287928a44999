# SPDX-License-Identifier: Apache-2.0
"""Every pair of score changes in either order, with ranges alone and with a mask, beside gates and without; and lists as one part."""

import itertools

import numpy as np
import pytest

import gqa
from definition import Call, defined, holds
from drawn_calls import FLOATS
from drawn_variants import SCORES, Extents, Part, draw_score

QUERIES, KEYS, HEADS, KV_HEADS, DIM = 4, 150, 6, 2, 24
X = Extents(HEADS, KV_HEADS, DIM, [QUERIES], [KEYS])
POSITION, KEY = np.arange(KEYS - QUERIES, KEYS)[:, None], np.arange(KEYS)


def problem(rng):
    return [rng.standard_normal((n, heads, DIM), dtype=np.float32) for n, heads in ((QUERIES, HEADS), (KEYS, KV_HEADS), (KEYS, KV_HEADS))]


def check(rng, variant, seen, changes, factor=None):
    q, k, v = problem(rng)
    out, lse = gqa.Attention(path="portable")(q, (k, v), variant, lse=True)
    call = Call(
        *(x.astype(np.float64) for x in (q, k, v)), seen, changes=[part.changes(0, POSITION, KEY) for part in changes], factor=factor
    )
    wanted, wanted_lse, bound, lse_bound = defined(call)
    holds(out, wanted, bound, variant)
    holds(lse, wanted_lse, lse_bound, variant)
    for path in gqa.paths():
        assert np.array_equal(gqa.Attention(path=path)(q, (k, v), variant), out), path


@pytest.mark.parametrize("floats", FLOATS, ids=str)
@pytest.mark.parametrize(
    "kinds", [(i,) for i in range(SCORES)] + list(itertools.product(range(SCORES), repeat=2)) + [(0, 1, 2), (2, 0, 4, 1)], ids=str
)
def test_score_changes(kinds, floats):
    rng = np.random.default_rng([*kinds, FLOATS.index(floats)])
    changes = [draw_score(rng, X, [floats], kind) for kind in kinds]
    scores = [part.part for part in changes]
    check(rng, ["causal", *scores], KEY <= POSITION, changes)
    flags = rng.random((HEADS, QUERIES, KEYS)) < 0.5
    check(rng, [*scores, gqa.boolean_mask(flags)], flags, changes)
    gates = rng.standard_normal((QUERIES, HEADS, DIM)).astype(np.float32)
    check(rng, [gqa.output_gate(gates), "causal", *scores], KEY <= POSITION, changes, 1 / (1 + np.exp(-gates.astype(np.float64))))


def test_lists_are_what_their_parts_are():
    q, k, v = problem(np.random.default_rng(1))
    call = gqa.Attention()
    parts = ["causal", gqa.soft_cap(3.0), gqa.head_scale([0.5] * HEADS)]
    wanted = call(q, (k, v), parts)
    for same in (tuple(parts), gqa.compose(*parts), [gqa.compose(*parts[:2]), parts[2]], [parts[:2], parts[2]]):
        assert np.array_equal(call(q, (k, v), same), wanted)
    assert not np.array_equal(call(q, (k, v), [parts[0], parts[2], parts[1]]), wanted)
    assert repr(gqa.compose("causal", gqa.causal_window(4))) == "Variant(causal, causal_window(4))"


def test_masks_and_biases_broadcast():
    rng = np.random.default_rng(2)
    q, k, v = problem(rng)
    call = gqa.Attention()
    flags = rng.random((QUERIES, KEYS)) < 0.5
    bias = np.where(flags, np.float32(0), -np.inf).astype(np.float32)
    wanted = call(q, (k, v), gqa.boolean_mask(flags))
    for same in (
        flags[None],
        flags[None, None],
        np.broadcast_to(flags, (HEADS, QUERIES, KEYS)),
        np.asfortranarray(flags),
        flags.astype(np.uint8),
    ):
        assert np.array_equal(call(q, (k, v), gqa.boolean_mask(same)), wanted)
    assert np.allclose(call(q, (k, v), ["full", gqa.additive_bias(bias)]), wanted, rtol=0, atol=1e-6)
    batch = [rng.random((1, QUERIES, KEYS)) < 0.5 for _ in range(3)]
    alone = [call(q, (k, v), gqa.boolean_mask(m)) for m in batch]
    for given in (batch, np.stack(batch)):
        outs = call.batch([q] * 3, [(k, v)] * 3, gqa.boolean_mask(given))
        assert all(np.array_equal(a, b) for a, b in zip(outs, alone))


def test_t5_bias():
    """Buckets: one for each near distance, then logarithmic ones; by the words of the paper's appendix."""
    rng = np.random.default_rng(3)
    q, k, v = problem(rng)
    table = rng.standard_normal((16, HEADS)).astype(np.float32)

    def bucket(back):
        if back < 8:
            return max(back, 0)
        return min(15, 8 + int(np.log(back / 8) / np.log(100 / 8) * 8))

    buckets = np.array([[bucket(p - t) for t in KEY] for p in POSITION[:, 0]])
    part = Part(
        "T5", None, changes=lambda s, p, t: lambda score, e: (score + table.astype(np.float64)[buckets].transpose(2, 0, 1), e + 1e-6)
    )
    check(rng, ["causal", gqa.t5_bias(table, 100, False, KEYS + QUERIES, -QUERIES)], KEY <= POSITION, [part])


def test_an_array_of_a_mask_is_kept_alive():
    q, k, v = problem(np.random.default_rng(4))
    call = gqa.Attention()
    part = gqa.boolean_mask(np.tri(QUERIES, KEYS, 3, dtype=bool))
    for _ in range(20):
        np.zeros((QUERIES, KEYS), bool)
    assert np.array_equal(call(q, (k, v), part), call(q, (k, v), gqa.boolean_mask(np.tri(QUERIES, KEYS, 3, dtype=bool))))
