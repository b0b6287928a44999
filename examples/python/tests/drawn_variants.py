# SPDX-License-Identifier: Apache-2.0
"""Variants, drawn: the package's part, and what it means, pair by pair, in NumPy and double precision."""

from dataclasses import dataclass, field

import numpy as np

import gqa
from definition import U


@dataclass
class Extents:
    """What a variant is drawn for."""

    heads: int
    kv_heads: int
    value_dim: int
    queries: list  # tokens of each sequence
    keys: list  # cached tokens of each sequence

    @property
    def longest(self):
        return max(self.keys + [1])


@dataclass
class Part:
    name: str
    part: object  # what the package is given
    sees: object = None  # (sequence, position (n, 1), key (T,)) -> bool, broadcastable to (Hq, n, T)
    changes: object = None  # (sequence, position, key) -> a change of the definition
    sinks: np.ndarray = None
    sinks_in_lse: bool = True
    factor: object = None  # sequence -> (n, Hq, Dv)
    data: list = field(default_factory=list)


SCORES = 6  # kinds of changes that draw_score knows


def draw_mask(rng, x):
    back = lambda p, k: p - k  # noqa: E731
    size = int(rng.integers(1, x.longest + 20))
    other = int(rng.integers(0, x.longest + 20))

    def boolean():
        flags = [rng.random((x.heads if rng.random() < 0.5 else 1, n, t)) < 0.7 for n, t in zip(x.queries, x.keys)]
        given = [f if rng.random() < 0.5 else f.astype(np.uint8) for f in flags]
        if len(given) == 1 and given[0].shape[0] == 1 and rng.random() < 0.5:
            given = [given[0][0]]
        part = gqa.boolean_mask(given[0] if len(given) == 1 else given)
        return Part("boolean mask", part, lambda s, p, k: flags[s])

    def blocks():
        ends = np.sort(rng.integers(0, x.longest + 5, 4))
        pairs = [(int(ends[0]), int(ends[1])), (int(ends[2]), int(ends[3]))]
        inside = lambda p, k: np.logical_or.reduce([(b <= p) & (p < e) & (b <= k) & (k < e) for b, e in pairs])  # noqa: E731
        return Part("causal with blocks", gqa.causal_with_blocks(pairs), lambda s, p, k: (k <= p) | inside(p, k))

    def documents():
        offsets = [0] + sorted(int(o) for o in rng.integers(0, x.longest, 3)) + [x.longest]
        causal = bool(rng.random() < 0.5)
        of = lambda p: np.searchsorted(offsets, p, side="right")  # noqa: E731
        there = lambda p: (p >= 0) & (p < offsets[-1])  # noqa: E731
        part = gqa.packed_documents(offsets, causal)
        return Part("packed documents", part, lambda s, p, k: (of(p) == of(k)) & there(p) & there(k) & ((k <= p) | (not causal)))

    def valid():
        ranges = [tuple(sorted(int(i) for i in rng.integers(0, t + 1, 2))) for t in x.keys]
        return Part("valid tokens", gqa.valid_tokens(ranges), lambda s, p, k: (ranges[s][0] <= k) & (k < ranges[s][1]))

    def sparse():
        query_block, key_block = int(rng.integers(1, 90)), int(rng.integers(1, 90))
        table = rng.random((x.longest // query_block + 1, x.longest // key_block + 1)) < 0.5
        offsets = np.concatenate([[0], np.cumsum(table.sum(1))])
        listed = np.concatenate([np.flatnonzero(row) for row in table])
        part = gqa.block_sparse(query_block, key_block, offsets, listed)
        return Part("block sparse", part, lambda s, p, k: table[p // query_block, k // key_block])

    def tree():
        parents = [[int(rng.integers(-1, i)) for i in range(n)] for n in x.queries]
        prefixes = [t - n for n, t in zip(x.queries, x.keys)]

        def seen(s, p, k):
            nodes = np.zeros((x.queries[s], x.keys[s]), bool)
            nodes[:, : prefixes[s]] = True
            for i, parent in enumerate(parents[s]):
                if parent >= 0:
                    nodes[i, prefixes[s] :] = nodes[parent, prefixes[s] :]
                nodes[i, prefixes[s] + i] = True
            return nodes

        one = len(parents) == 1
        return Part("draft tree", gqa.draft_tree(parents[0] if one else parents, prefixes[0] if one else prefixes), seen)

    first, window = int(rng.integers(0, 70)), size
    step, count = int(rng.integers(1, 70)), int(rng.integers(1, 40))
    makers = [
        lambda: Part("full", "full", lambda s, p, k: np.broadcast_to(True, (len(p), len(k)))),
        lambda: Part("causal", "causal", lambda s, p, k: back(p, k) >= 0),
        lambda: Part("causal window", gqa.causal_window(size), lambda s, p, k: (back(p, k) >= 0) & (back(p, k) < size)),
        lambda: Part("two-sided window", gqa.two_sided_window(size, other), lambda s, p, k: (back(p, k) <= size) & (-back(p, k) <= other)),
        lambda: Part("prefix", gqa.prefix_lm(other), lambda s, p, k: (back(p, k) >= 0) | ((p < other) & (k < other))),
        lambda: Part(
            "first tokens and window",
            gqa.first_tokens_and_window(first, window),
            lambda s, p, k: (back(p, k) >= 0) & ((k < first) | (back(p, k) < window)),
        ),
        lambda: Part("chunked", gqa.chunked_local(size), lambda s, p, k: (back(p, k) >= 0) & (p // size == k // size)),
        lambda: Part(
            "dilated",
            gqa.dilated_window(step, count),
            lambda s, p, k: (back(p, k) >= 0) & (back(p, k) % step == 0) & (back(p, k) // step < count),
        ),
        blocks,
        documents,
        valid,
        boolean,
        sparse,
    ]
    if all(n <= t for n, t in zip(x.queries, x.keys)):
        makers.append(tree)
    return makers[rng.integers(len(makers))]()


def draw_score(rng, x, floats, which=None):
    def cap():
        c = float(np.float32(rng.uniform(0.5, 30)))
        return Part("soft cap", gqa.soft_cap(c), changes=lambda *_: lambda s, e: (c * np.tanh(s / c), e + 10 * U * abs(s)))

    def alibi():
        published = rng.random() < 0.3
        slopes = rng.uniform(0, 0.5, x.heads).astype(np.float32)
        if published:
            power = 2 ** int(np.log2(x.heads))
            slopes = np.array(
                [2.0 ** (-8 * (i + 1) / power) if i < power else 2.0 ** (-8 * (2 * (i - power) + 1) / (2 * power)) for i in range(x.heads)]
            )

        def change(s, p, k):
            off = slopes.astype(np.float64)[:, None, None] * (p - k)
            return lambda score, e: (score - off, e + 4 * U * (abs(score) + 2 * abs(off)))

        return Part("ALiBi", "alibi" if published else gqa.alibi(slopes), changes=change)

    def bias():
        kind = floats[rng.integers(len(floats))]
        biases = [rng.standard_normal((x.heads if rng.random() < 0.5 else 1, n, t)).astype(kind) for n, t in zip(x.queries, x.keys)]
        part = gqa.additive_bias(biases[0] if len(biases) == 1 else biases)

        def change(s, p, k):
            added = biases[s].astype(np.float64)
            return lambda score, e: (score + added, e + 2 * U * (abs(score) + abs(added)))

        return Part("bias", part, changes=change, data=biases)

    def distances():
        least, most = -x.longest, x.longest + 1
        table = rng.standard_normal((x.heads, most - least)).astype(np.float32)

        def change(s, p, k):
            added = table.astype(np.float64)[:, p - k - least]
            return lambda score, e: (score + added, e + 2 * U * (abs(score) + abs(added)))

        return Part("distance bias", gqa.distance_bias(table, least), changes=change)

    def scale():
        scales = rng.uniform(0.2, 1.5, x.heads).astype(np.float32)
        by = scales.astype(np.float64)[:, None, None]
        return Part("head scale", gqa.head_scale(scales), changes=lambda *_: lambda s, e: (by * s, by * e + 3 * U * abs(by * s)))

    def temperature():
        floor, strength = int(rng.integers(1, 200)), float(np.float32(rng.uniform(0, 0.3)))

        def change(s, p, k):
            by = 1 + strength * np.log1p((p + 1) // floor)
            return lambda score, e: (by * score, by * e + 4 * U * abs(by * score))

        return Part("temperature", gqa.position_temperature(floor, strength), changes=change)

    makers = [cap, alibi, bias, distances, scale, temperature]
    return makers[rng.integers(SCORES) if which is None else which]()


def draw_variant(rng, x, floats):
    """A list of parts: a mask or two, changes of scores, at times a sink and a change of outputs."""
    parts = [draw_mask(rng, x)]
    if rng.random() < 0.25:
        second = draw_mask(rng, x)
        if {second.name, parts[0].name} != {"first tokens and window"}:
            parts.append(second)
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3])):
        parts.append(draw_score(rng, x, floats))
    if rng.random() < 0.2:
        sinks = rng.standard_normal(x.heads).astype(np.float32)
        in_lse = bool(rng.random() < 0.5)
        parts.append(Part("sinks", gqa.learned_sinks(sinks, in_lse), sinks=sinks, sinks_in_lse=in_lse))
    if rng.random() < 0.15:
        gates = [rng.standard_normal((n, x.heads, x.value_dim)).astype(floats[rng.integers(len(floats))]) for n in x.queries]
        sigmoid = lambda s: 1 / (1 + np.exp(-gates[s].astype(np.float64)))  # noqa: E731
        parts.append(Part("gate", gqa.output_gate(gates), factor=sigmoid, data=gates))
    if rng.random() < 0.15:
        factors = rng.uniform(0.5, 2, x.kv_heads).astype(np.float32)
        of_heads = np.repeat(factors, x.heads // x.kv_heads).astype(np.float64)[None, :, None]
        parts.append(Part("value scale", gqa.value_scale(factors), factor=lambda s: of_heads))
    return parts
