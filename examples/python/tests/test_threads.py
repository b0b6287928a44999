# SPDX-License-Identifier: Apache-2.0
"""Calls and Python's threads: the GIL, several calls at once, caches that are in use, progress and stopping."""

import threading
import time

import numpy as np
import pytest

import gqa


def problem(tokens, seed=1, heads=8, kv_heads=2, dim=64):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((tokens, h, dim), dtype=np.float32) for h in (heads, kv_heads, kv_heads)]


class LongCall:
    """A prefill on another thread, while this lives: long enough to do something meanwhile, and stopped at the end."""

    def __init__(self, kv, q):
        self.control = gqa.CallControl()
        self.raised = None
        self.thread = threading.Thread(target=self.run, args=(kv, q))

    def run(self, kv, q):
        try:
            gqa.Attention()(q, kv, "full", control=self.control)
        except Exception as error:
            self.raised = error

    def __enter__(self):
        self.thread.start()
        while self.control.total == 0 and self.thread.is_alive():
            time.sleep(0.001)
        assert self.control.total > 0
        return self

    def __exit__(self, *_):
        self.control.stop()
        self.thread.join()


def test_the_gil_is_let_go_and_calls_can_be_stopped():
    q, k, v = problem(20000)
    with LongCall((k, v), q) as call:
        seen = set()
        while len(seen) < 5 and call.thread.is_alive():  # Python runs while the call does
            seen.add(call.control.done)
        assert len(seen) == 5 and max(seen) < call.control.total
    assert isinstance(call.raised, gqa.Stopped)
    call.control.reset()
    assert gqa.Attention()(q[:3], (k, v), control=call.control).shape == (3, 8, 64)
    assert call.control.done == call.control.total


def test_a_cache_in_use_is_not_changed():
    q, k, v = problem(20000)
    one = gqa.ContiguousKvCache(2, 64, 20010)
    pool = gqa.PagedKvPool(2, 64, 400)
    for cache in (one, pool.sequence()):
        cache.append(k, v)
        view = cache.view()
        for kv in (cache, view):
            with LongCall(kv, q):
                for change in (lambda: cache.append(k[:1], v[:1]), lambda: cache.truncate(5), cache.clear):
                    with pytest.raises(gqa.Error, match="in use by a call of another thread"):
                        change()
                assert np.array_equal(gqa.Attention()(q[:1], cache), gqa.Attention()(q[:1], view))
        cache.append(k[:1], v[:1])
        assert cache.length == 20001


def test_memory_lives_as_long_as_a_call():
    """Arrays and a cache that are dropped while a call reads them."""
    q, k, v = problem(3000)
    wanted = gqa.Attention()(q, (k, v))
    for make in (lambda: (k.copy(), v.copy()), lambda: gqa.KvCacheView.contiguous(k.copy(), v.copy())):
        got = []
        thread = threading.Thread(target=lambda kv: got.append(gqa.Attention()(q, kv)), args=(make(),))
        thread.start()
        for _ in range(20):
            np.full_like(k, np.nan)
        thread.join()
        assert np.array_equal(got[0], wanted)


def test_many_threads_share_a_functor_and_a_pool():
    attention = gqa.Attention(8, 2, 64)
    pool = gqa.ThreadPool(3)
    assert pool.threads in (1, 3)
    problems = [problem(300, seed) for seed in range(8)]
    wanted = [attention(q, (k, v)) for q, k, v in problems]
    got = [None] * 8

    def run(i):
        q, k, v = problems[i]
        for _ in range(5):
            got[i] = attention(q, (k, v), threads=pool)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(got, wanted):
        assert np.array_equal(a, b)


def test_a_batch_of_everything_is_each_alone():
    rng = np.random.default_rng(9)
    attention = gqa.Attention(8, 2, 64, threads=2)
    pool = gqa.PagedKvPool(2, 64, 100, page_size=16)
    queries, caches = [], []
    for tokens, n in ((1, 1), (70, 1), (200, 200), (600, 5), (33, 0)):
        q, k, v = problem(tokens, tokens)
        cache = [pool.sequence(), gqa.ContiguousKvCache(2, 64, 1000), (k, v)][rng.integers(3)]
        if not isinstance(cache, tuple):
            cache.append(k, v)
        queries.append(q[tokens - n :])
        caches.append(cache)
    alone = [attention(q, kv, gqa.causal_window(50), lse=True) for q, kv in zip(queries, caches)]
    outs, lses = attention.batch(queries, caches, gqa.causal_window(50), lse=True)
    for (out, lse), got, got_lse in zip(alone, outs, lses):
        assert np.array_equal(out, got) and np.array_equal(lse, got_lse)
    tokens = [len(q) for q in queries]
    packed, _ = attention.batch(np.concatenate(queries), caches, gqa.causal_window(50), tokens=tokens, lse=True)
    assert np.array_equal(packed, np.concatenate(outs))
    given = np.empty_like(packed)
    assert attention.batch(np.concatenate(queries), caches, gqa.causal_window(50), tokens=tokens, out=given) is given
    assert np.array_equal(given, packed)
