# SPDX-License-Identifier: Apache-2.0
"""Calls drawn at random, whole: each is held to the definition in double precision, and must have the same bits in other storage, alone, in
chunks, on other threads and on other f32 paths. The twin of tests/property_test.cpp.

GQA_PROPERTY_CASES=5000 runs so many, GQA_PROPERTY_SEED=7 other ones.
"""

import os

import numpy as np
import pytest

import gqa
from definition import holds
from drawn_calls import F32_PATHS, DrawnCall, store

CASES = int(os.environ.get("GQA_PROPERTY_CASES", 240))
SEED = int(os.environ.get("GQA_PROPERTY_SEED", 1))
SHARES = 8
# Parts that say something of a query by its position alone, so that it may be asked for in another company.
OF_POSITIONS = {
    "full",
    "causal",
    "causal window",
    "two-sided window",
    "prefix",
    "first tokens and window",
    "chunked",
    "dilated",
    "causal with blocks",
    "packed documents",
    "block sparse",
    "soft cap",
    "ALiBi",
    "head scale",
    "temperature",
    "sinks",
    "value scale",
}
SEES_NOTHING_AHEAD = {"causal", "causal window", "first tokens and window", "chunked", "dilated"}


def same(a, b, what):
    for x, y in zip(a, b):
        assert np.array_equal(np.asarray(x, np.float64), np.asarray(y, np.float64)), what


def check(drawn):
    caches = drawn.caches()
    outs, lses = drawn.run(caches)
    for s in range(len(outs)):
        out, lse, bound, lse_bound = drawn.definition(s)
        holds(outs[s], out, bound, f"outputs of sequence {s}")
        holds(lses[s], lse, lse_bound, f"log-sum-exp of sequence {s}")

    same(drawn.run(caches, threads=3)[0], outs, "on three threads")
    same(drawn.run(drawn.caches())[0], outs, "in other storage")
    if drawn.path in F32_PATHS or not drawn.bf16_products():
        for path in F32_PATHS if max(drawn.keys) < 200 else F32_PATHS[1:]:
            same(drawn.run(caches, path=path)[0], outs, f"on {path}")
    names = {part.name for part in drawn.parts}
    if not names <= OF_POSITIONS:
        return
    for s, (q, cache) in enumerate(zip(drawn.q, caches)):
        alone = drawn.attention(q, cache, drawn.variant, out=drawn.out(s), lse=True)
        same(alone, (outs[s], lses[s]), "a sequence alone")
        if not len(q):
            continue
        chunk = int(drawn.rng.integers(1, len(q) + 1))
        for first in range(0, len(q), chunk):
            part = slice(first, first + chunk)
            got = drawn.attention(q[part], cache, drawn.variant, out=np.empty_like(drawn.out(s)[part]), positions=drawn.positions[s][part])
            same([got], [outs[s][part]], "a chunk at its positions")
        if names & SEES_NOTHING_AHEAD and not drawn.coded:
            for first in range(0, len(q), chunk):  # in a cache that grows
                part = slice(first, first + chunk)
                length = drawn.positions[s][part][-1] + 1
                grown = store(drawn.rng, "paged", drawn.k[s][:length], drawn.v[s][:length], drawn.types)
                got = drawn.attention(q[part], grown, drawn.variant, out=np.empty_like(drawn.out(s)[part]))
                same([got], [outs[s][part]], "a chunk of a cache that grows")


@pytest.mark.parametrize("share", range(SHARES))
def test_drawn_calls(share):
    for case in range(CASES * share // SHARES, CASES * (share + 1) // SHARES):
        drawn = DrawnCall([SEED, case])
        try:
            check(drawn)
        except Exception as error:
            raise AssertionError(f"seed {SEED}, case {case}: {drawn}: {error}") from error


def test_a_wrong_result_is_found():
    """The bounds are not so wide that anything is right: an output that is off by 1e-4 breaks them."""
    drawn = next(
        d
        for d in map(DrawnCall, range(1000))
        if d.path in F32_PATHS
        and d.out_type == np.float32
        and not d.coded
        and min(d.queries) > 0
        and max(d.keys) > 50
        and [p.name for p in d.parts] == ["causal"]
    )
    outs, _ = drawn.run(drawn.caches())
    out, _, bound, _ = drawn.definition(0)
    outs[0][0, 0, 0] += 1e-4
    with pytest.raises(AssertionError, match="times its bound"):
        holds(outs[0], out, bound, "outputs")
    assert gqa.active_path() in gqa.paths()
