# SPDX-License-Identifier: Apache-2.0
"""One sequence's rows by a side of rivals.py, alone and in other company, and how many of them are the same bits: the cases of
compare_determinism.py."""

import dataclasses

import numpy as np

from rivals import Problem, to_bf16

CASES = ("batch", "lengths", "lengths, 2 threads", "threads", "chunks", "layout", "pages", "prefix", "path")
DIM = 128
INT8_SCALE = np.float32(0.04)  # of all keys and of all values: ±5 deviations


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is tried. Lengths are in tokens."""

    tokens: int  # that a decode step is over
    prefill: int  # that are prefilled
    threads: tuple = (2, 3, 4)
    decode_batches: tuple = (2, 5, 16)
    prefill_batches: tuple = (2, 3)
    chunks: tuple = (512, 100)
    one_by_one: int = 32  # at the end
    pages: tuple = (16, 32, 256)
    prefixes: tuple = (1, 64, 100, 333, 512, 700)  # computed before, of those that are shorter than the prefill
    left: tuple = (100, 50, 10)  # and prefixes that leave as many to compute
    path_rows: int = 64  # query tokens that the prefill of `path` is a chunk of

    def all_prefixes(self):
        return sorted({p for p in self.prefixes if p < self.prefill} | {self.prefill - left for left in self.left})


QUICK = Plan(1100, 1100, threads=(2, 3), decode_batches=(2, 5), prefill_batches=(2,), one_by_one=4, pages=(16, 256), prefixes=(64, 700), left=(50,), path_rows=16)


def q8_0(values):
    """Rows of ggml's q8_0, as bytes: 32 at a time, an f16 scale and their codes."""
    blocks = values.reshape(*values.shape[:-1], -1, 32)
    scales = (np.max(np.abs(blocks), axis=-1, keepdims=True) / np.float32(127)).astype(np.float16)
    codes = np.clip(np.rint(blocks / scales.astype(np.float32)), -127, 127).astype(np.int8)
    rows = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=-1).reshape(*values.shape[:-1], -1)
    return rows, (codes * scales.astype(np.float32)).reshape(values.shape)


def stored(values, kind):
    """As a cache of this type has them, and what that is in f32."""
    if kind == "bf16":
        bits = to_bf16(values)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    if kind == "f16":
        halves = values.astype(np.float16)
        return halves, halves.astype(np.float32)
    if kind == "int8":
        codes = np.clip(np.rint(values / INT8_SCALE), -127, 127).astype(np.int8)
        return codes, codes * INT8_SCALE
    return q8_0(values) if kind == "q8_0" else (values, values)


class Tokens:
    """Queries, keys and values of a sequence, seeded; of those that are company to decode steps alone, the last query only. Unit variance, mean 0.25;
    of a token that is `raised` the first KV head's values are 100 more."""

    def __init__(self, seed, problem, first_query, raised=None):
        tokens = problem.n_kv
        draw = lambda seed, *shape: np.random.default_rng(seed).standard_normal((*shape, DIM), dtype=np.float32) + np.float32(0.25)
        self.first_query = first_query
        self.q, self.q_f32 = stored(draw(seed, tokens - first_query, problem.query_heads), problem.query_type)
        keys, values = (draw(seed + i, problem.kv_heads, tokens) for i in (1, 2))
        if raised is not None:
            values[0, raised] += 100
        self.kv, self.kv_f32 = zip(*(stored(rows, problem.type) for rows in (keys, values)))

    def queries(self, name, first, last):
        return getattr(self, name)[first - self.first_query:last - self.first_query]


class Given:
    """What a side's prepare() is given: query tokens [first, last) of sequences over the keys and values before `last`."""

    def __init__(self, sequences, first, last, shared, scales):
        self.q, self.q_f32 = (np.ascontiguousarray(np.stack([s.queries(name, first, last) for s in sequences])) for name in ("q", "q_f32"))
        self.copies = [tuple(np.stack([s.kv[i][:, :last] for s in sequences]) for i in (0, 1))]
        for rows in self.copies[0]:
            rows[:, :, :shared] = rows[0, :, :shared]
        self.scales = scales


class Rows:
    """Rows of a side, for one type and numbers of heads."""

    def __init__(self, side, kind, query_heads, kv_heads, plan):
        self.side, self.kind, self.heads, self.plan = side, kind, (query_heads, kv_heads), plan
        tokens = plan.tokens
        problem = Problem("rows", kind, *self.heads, 1, tokens)
        self.sequences = [Tokens(100 * i, problem, 0 if i < max(plan.prefill_batches) else tokens - 1) for i in range(max(plan.decode_batches))]

    def of(self, first, last, batch=1, place=0, threads=1, shared=0, **storage):
        """n_q × query heads × D of the first sequence, which has this place in the batch; None where the side cannot."""
        company = list(self.sequences[1:batch])
        company.insert(place, self.sequences[0])
        given = Given(company, first, last, shared, self.scales())
        problem = Problem("rows", self.kind, *self.heads, last - first, last, batch=batch, shared=shared, **storage)
        self.side.take_threads(threads)
        call = self.side.prepare(problem, given)
        if call is None:
            return None
        result = np.array(getattr(call, "result", call)(0), dtype=np.float32).reshape(given.q.shape)[place]
        getattr(call, "close", lambda: None)()
        vars(call).clear()  # `result` refers to the call itself, which would keep its memory
        return result

    def scales(self):
        """Of keys and of values, where they lie outside of rows."""
        return [INT8_SCALE if self.kind == "int8" else None] * 2

    def decode(self, **how):
        return self.of(self.plan.tokens - 1, self.plan.tokens, **how)

    def prefill(self, **how):
        return self.of(0, self.plan.prefill, **how)

    def for_path(self):
        """A decode step and a chunk, by their phases."""
        return {"decode": self.decode(), "prefill": self.of(self.plan.prefill - self.plan.path_rows, self.plan.prefill)}

    def errors(self, found, token, of=None):
        """Root mean square errors of this token's rows, of the first sequence or another, against the definition in double precision; and standard deviations
        of the exact rows' elements. Both by query head."""
        own = of or self.sequences[0]
        k, v = (x[:, :token + 1].astype(np.float64) for x in own.kv_f32)
        group = self.heads[0] // self.heads[1]
        both = []
        for head, row in enumerate(found):
            scores = k[head // group] @ own.q_f32[token - own.first_query, head] / np.sqrt(DIM)
            weights = np.exp(scores - scores.max())
            exact = weights / weights.sum() @ v[head // group]
            both.append((np.sqrt(np.mean((row - exact) ** 2)), exact.std()))
        return np.array(both).T

    def check(self, found, token, of=None):
        """That the side computes this problem at all. Errors may be half of what a row's elements spread over (of f16 sums they are a fifth); a row of other
        keys or another mask is off by more than all of it."""
        for head, (off, spread) in enumerate(zip(*self.errors(found, token, of))):
            if not off <= 0.5 * spread:
                raise ValueError(f"{self.side.name}, {self.kind}, token {token}, head {head}: off by {off:.3g}, at most {0.5 * spread:.3g} expected")


class Counts:
    """Rows that were compared and those that were equal, by case and phase."""

    def __init__(self):
        self.all = {}

    def compare(self, case, phase, heads, how, rows, expected):
        if rows is None:
            return
        equal = int(np.sum(np.all(rows == expected, axis=-1)))
        self.all.setdefault((case, phase), []).append(
            {"heads": f"{heads[0]}/{heads[1]}", "how": how, "rows": rows.size // rows.shape[-1], "equal": equal,
             "largest_difference": float(np.max(np.abs(rows - expected)))})


def compare(rows, counts):
    """All cases but `path`."""
    plan, tokens, heads = rows.plan, rows.plan.prefill, rows.heads
    count = lambda case, phase, how, found, expected: counts.compare(case, phase, heads, how, found, expected)
    expected = {"decode": rows.decode(), "prefill": rows.prefill()}
    rows.check(expected["decode"][0], plan.tokens - 1)
    for token in (0, tokens // 3, tokens - 1):
        rows.check(expected["prefill"][token], token)
    for phase, ask, batches in (("decode", rows.decode, plan.decode_batches), ("prefill", rows.prefill, plan.prefill_batches)):
        for batch in batches:
            for place in (0, batch - 1):
                count("batch", phase, f"{place + 1} of {batch}", ask(batch=batch, place=place), expected[phase])
        for threads in plan.threads:
            count("threads", phase, f"{threads}", ask(threads=threads), expected[phase])
        count("layout", phase, "token-major", ask(storage="token-major"), expected[phase])
        for size in plan.pages:
            count("pages", phase, f"{size}", ask(storage="paged", page_size=size), expected[phase])
    whole = expected["prefill"]
    for chunk in plan.chunks:
        for first in range(0, tokens, chunk):
            last = min(first + chunk, tokens)
            found = rows.of(first, last)
            rows.check(found[0], first)
            count("chunks", "prefill", f"{chunk}", found, whole[first:last])
    for token in range(tokens - plan.one_by_one, tokens):
        count("chunks", "prefill", "1", rows.of(token, token + 1), whole[token:token + 1])
    in_pages = {"storage": "paged", "page_size": 32}
    paged = rows.prefill(**in_pages)
    for prefix in plan.all_prefixes():
        count("prefix", "prefill", f"{prefix} computed before", rows.of(prefix, tokens), whole[prefix:])
        if paged is not None:
            count("prefix", "prefill", f"{prefix} in shared pages", rows.of(prefix, tokens, batch=2, shared=prefix, **in_pages), paged[prefix:])
