# SPDX-License-Identifier: Apache-2.0
"""Whole calls, drawn: heads and widths, a batch, element types and codecs, where caches lie, the variant, and the path."""

import numpy as np

import gqa
from definition import Call, defined
from drawn_variants import Extents, draw_variant

try:
    import ml_dtypes

    BF16 = [np.dtype(ml_dtypes.bfloat16)]
except ImportError:
    BF16 = []
FLOATS = [np.dtype(np.float32), np.dtype(np.float16)] + BF16
CODECS = ["int8", "int4", "q8_0", "q5_1", "q5_0", "q4_0", "iq4_nl", "q8_kv", "fp8_e4m3", "fp8_e5m2", "mxfp4"]
LEVELS = {"int8": 127, "int4": 7}
STORAGES = ["pair", "strided", "head-major", "paged", "ring", "parts", "owned", "owned pages", "owned ring"]
OWNED = STORAGES[-3:]
F32_PATHS = [path for path in gqa.paths() if path in ("portable", "avx2", "avx512", "neon", "wasm")]
NAN = np.nan


def cut_up(rng, total):
    """Lengths of chunks that add up to total."""
    chunks = []
    while sum(chunks) < total:
        chunks.append(int(min(rng.integers(1, 200), total - sum(chunks))))
    return chunks


def spoilt(shape, dtype):
    array = np.empty(shape, dtype)
    array.fill(NAN)
    return array


def store(rng, storage, k, v, types):
    """A cache of k (tokens, heads, D) and v. What holds no token is NaN. types: names of k's and v's storage, of owning caches."""
    tokens, heads, dim = k.shape
    if storage == "pair":
        return k, v
    if storage in OWNED:
        made = dict(k_type=types[0], v_type=types[1], value_dim=v.shape[2], layout=["token_major", "head_major"][rng.integers(2)])
        if storage == "owned":
            cache = gqa.ContiguousKvCache(heads, dim, tokens + int(rng.integers(1, 50)), **made)
        elif storage == "owned ring":
            cache = gqa.RingKvCache(heads, dim, tokens + int(rng.integers(1, 50)), **made)
        else:
            size = int(rng.integers(1, 70))
            cache = gqa.PagedKvPool(heads, dim, tokens // size + 2, page_size=size, **made).sequence()
        first = 0
        for chunk in cut_up(rng, tokens):
            cache.append(k[first : first + chunk], v[first : first + chunk])
            first += chunk
        return cache
    room = int(rng.integers(0, 30))
    if storage == "strided":  # keys and values of all heads side by side, every second token
        rows = spoilt((2 * (tokens + room) + 1, heads, dim + v.shape[2]), k.dtype) if k.dtype == v.dtype else None
        if rows is not None:
            keys, values = rows[::2, :, :dim], rows[::2, :, dim:]
        else:
            keys, values = spoilt((2 * (tokens + room), heads, dim), k.dtype)[::2], spoilt((tokens + room, heads, v.shape[2]), v.dtype)
            values = values[: len(keys)]
        keys[:tokens], values[:tokens] = k, v
        return gqa.KvCacheView.contiguous(keys, values, tokens)
    if storage == "head-major":
        keys, values = spoilt((heads, tokens + room, dim), k.dtype), spoilt((heads, tokens + room, v.shape[2]), v.dtype)
        keys[:, :tokens], values[:, :tokens] = k.swapaxes(0, 1), v.swapaxes(0, 1)
        return gqa.KvCacheView.contiguous(keys, values, tokens, layout="head_major")
    if storage == "ring":
        slots = tokens + room + 1
        keys, values = spoilt((slots, heads, dim), k.dtype), spoilt((slots, heads, v.shape[2]), v.dtype)
        keys[:tokens], values[:tokens] = k, v
        return gqa.KvCacheView.ring(keys, values, tokens)
    if storage == "parts" and tokens > 64:
        cut = 64 * int(rng.integers(1, (tokens - 1) // 64 + 1))
        earlier = store(rng, ["strided", "head-major", "paged"][rng.integers(3)], k[:cut], v[:cut], types)
        return gqa.KvCacheView.contiguous(k[cut:], v[cut:], earlier=[earlier])
    size = int(rng.integers(1, 70))
    pages = -(-tokens // size) + int(rng.integers(0, 3))
    k_pool, v_pool = spoilt((pages + 1, size, heads, dim), k.dtype), spoilt((pages + 1, size, heads, v.shape[2]), v.dtype)
    table = rng.permutation(pages + 1)[: -(-tokens // size)].astype(np.int32)
    for i, page in enumerate(table):
        part = slice(i * size, min((i + 1) * size, tokens))
        k_pool[page, : part.stop - part.start], v_pool[page, : part.stop - part.start] = k[part], v[part]
    if rng.random() < 0.5:
        k_pool, v_pool = k_pool.swapaxes(1, 2).copy(), v_pool.swapaxes(1, 2).copy()
        return gqa.KvCacheView.paged(k_pool, v_pool, table, tokens, layout="head_major")
    return gqa.KvCacheView.paged(k_pool, v_pool, table, tokens)


def stored_numbers(rows, codec):
    """Rows (tokens, heads, width) as a codec's cache holds them: each is the output of a row that sees it alone."""
    tokens, heads, width = rows.shape
    if tokens == 0:
        return rows.astype(np.float64)
    cache = gqa.ContiguousKvCache(heads, 1, tokens, value_dim=width, v_type=codec)
    cache.append(np.zeros((tokens, heads, 1), np.float32), rows)
    alone = gqa.Attention()(
        np.zeros((tokens, heads, 1), np.float32), cache, gqa.causal_window(1), out=np.empty((tokens, heads, width), np.float32)
    )
    return alone.astype(np.float64)


class DrawnCall:
    """A call with all that it needs."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.coded = rng.random() < 0.35
        self.kv_heads = int(rng.integers(1, 4))
        self.group = int(rng.choice([1, 2, 3, 4, 5, 7, 8, 16]))
        self.heads = self.kv_heads * self.group
        widths = [32, 64, 96, 128] if self.coded else [*range(1, 41), 64, 80, 128, 192]
        self.dim = int(rng.choice(widths))
        self.value_dim = self.dim if rng.random() < 0.5 else int(rng.choice(widths))
        self.path = str(rng.choice(gqa.paths()))
        self.q_type, self.k_type, self.v_type, self.out_type = (FLOATS[i] for i in rng.integers(0, len(FLOATS), 4))
        if rng.random() < 0.5:
            self.q_type = self.v_type = self.k_type
        names = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
        self.types = [names[self.k_type.name], names[self.v_type.name]]
        if self.coded:
            which = rng.integers(3)
            self.types = [rng.choice(CODECS) if which != 1 else self.types[0], rng.choice(CODECS) if which != 2 else self.types[1]]
            self.types = [str(t) for t in self.types]
        self.scale = float(np.float32(rng.uniform(0.02, 0.5))) if rng.random() < 0.25 else None
        most = 90 if self.path == "portable" else [20, 90, 200, 700, 1200][rng.integers(5)]
        self.keys = [int(rng.integers(0, most)) for _ in range(int(rng.integers(1, 4)))]
        self.queries = [int(min(n, rng.integers(0, 12) if rng.random() < 0.7 else 1)) for n in self.keys]
        if rng.random() < 0.2 and most <= 200:
            self.queries = list(self.keys)
        normal = lambda n, heads, width, dtype: rng.standard_normal((n, heads, width)).astype(dtype)  # noqa: E731
        self.q = [normal(n, self.heads, self.dim, self.q_type) for n in self.queries]
        self.k = [normal(n, self.kv_heads, self.dim, self.k_type) for n in self.keys]
        self.v = [normal(n, self.kv_heads, self.value_dim, self.v_type) for n in self.keys]
        self.positions = [np.arange(t - n, t) for n, t in zip(self.queries, self.keys)]
        self.parts = draw_variant(rng, Extents(self.heads, self.kv_heads, self.value_dim, self.queries, self.keys), FLOATS)
        self.variant = [part.part for part in self.parts]
        self.attention = gqa.Attention(self.heads, self.kv_heads, self.dim, self.value_dim, scale=self.scale, path=self.path)

    def __str__(self):
        parts = ", ".join(part.name for part in self.parts)
        return (
            f"{self.heads}/{self.kv_heads} heads, D {self.dim}, Dv {self.value_dim}, q {self.queries} of {self.keys}, q {self.q_type}, "
            f"cache {self.types}, out {self.out_type}, {self.path}, {parts}"
        )

    def draw_storage(self):
        return str(self.rng.choice(OWNED if self.coded else STORAGES))

    def caches(self):
        return [store(self.rng, self.draw_storage(), k, v, self.types) for k, v in zip(self.k, self.v)]

    def out(self, sequence):
        """Memory for an output, at times with strides, and NaN in it."""
        shape = (self.queries[sequence], self.heads, self.value_dim)
        if self.rng.random() < 0.5:
            return spoilt(shape, self.out_type)
        return spoilt((shape[1], shape[2], shape[0]), self.out_type).transpose(2, 0, 1)

    def run(self, caches, **options):
        """Outputs and log-sum-exps of all sequences, in one call."""
        outs = [self.out(s) for s in range(len(self.keys))]
        got, lse = self.attention.batch(self.q, caches, self.variant, out=outs, lse=True, **options)
        assert all(a is b for a, b in zip(got, outs))
        return outs, lse

    def bf16_products(self):
        plain = [self.q_type.name, *self.types]
        return plain == ["bfloat16", "bf16", "bf16"] and self.path not in F32_PATHS

    def definition(self, s):
        numbers = [
            stored_numbers(rows, name) if name in CODECS else rows.astype(np.float64)
            for rows, name in ((self.k[s], self.types[0]), (self.v[s], self.types[1]))
        ]
        position, key = self.positions[s][:, None], np.arange(self.keys[s])
        call = Call(
            self.q[s].astype(np.float64),
            *numbers,
            np.ones((1, 1, 1), bool),
            self.scale or 0,
            bf16_products=self.bf16_products(),
            k_levels=LEVELS.get(self.types[0], 0),
            v_levels=LEVELS.get(self.types[1], 0),
        )
        for part in self.parts:
            if part.sees:
                call.seen = call.seen & np.atleast_2d(part.sees(s, position, key))
            if part.changes:
                call.changes.append(part.changes(s, position, key))
            if part.sinks is not None:
                call.sinks, call.sinks_in_lse = part.sinks, part.sinks_in_lse
            if part.factor:
                call.factor = part.factor(s) * (1 if call.factor is None else call.factor)
        out, lse, bound, lse_bound = defined(call, self.out_type.name)
        return out, lse, bound, lse_bound + (2.0**-8 if self.path == "amx" and self.bf16_products() else 0)
