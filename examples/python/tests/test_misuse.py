# SPDX-License-Identifier: Apache-2.0
"""Misuse that is not a wrong number: objects half made, arrays that say too little, callbacks, shared memory, ends of processes."""

import ctypes
import gc
import os
import signal
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest

import gqa

HEADS, KV_HEADS, DIM = 4, 2, 16
attention = gqa.Attention()


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


q, k, v = normal(3, HEADS, DIM), normal(70, KV_HEADS, DIM), normal(70, KV_HEADS, DIM)
right = attention(q, (k, v))


def every_cache(**made):
    pool = gqa.PagedKvPool(KV_HEADS, DIM, 40, page_size=8, **made)
    for cache in (gqa.ContiguousKvCache(KV_HEADS, DIM, 100, **made), gqa.RingKvCache(KV_HEADS, DIM, 100, **made), pool.sequence()):
        cache.append(k, v)
        yield cache


def test_objects_that_were_not_initialised():
    class Half(gqa.ContiguousKvCache):
        def __init__(self):
            pass

    for half in (Half(), *(kind.__new__(kind) for kind in (gqa.ContiguousKvCache, gqa.RingKvCache, gqa.PagedSequence))):
        for use in (lambda: attention(q, half), lambda: half.view(), lambda: attention.batch([q], [half])):
            with pytest.raises(TypeError, match="has not been initialised"):
                use()
    with pytest.raises(TypeError, match="PagedKvPool has not been initialised"):
        gqa.PagedKvPool.__new__(gqa.PagedKvPool).sequence()


def test_a_change_that_fails_leaves_views_as_they_were():
    for cache in every_cache():
        view = cache.view()
        for change in (
            lambda: cache.truncate(1000),
            lambda: cache.erase(5, 1),
            lambda: cache.keep(0, [5, 1]),
            lambda: cache.append(k, v[:1]),
            lambda: cache.append(k[:, :1], v[:, :1]),
        ):
            with pytest.raises(gqa.Error):
                change()
        if not isinstance(cache, gqa.RingKvCache):  # which is never full
            with pytest.raises(gqa.StorageExhausted):
                cache.append(normal(300, KV_HEADS, DIM), normal(300, KV_HEADS, DIM))
        assert np.array_equal(attention(q, view), right)


def test_views_are_refused_only_where_append_moves_or_drops_tokens():
    for cache in every_cache():
        view = cache.view()
        cache.append(k[:1], v[:1])
        assert len(view) == 70 and np.array_equal(attention(q, view), right)
        if isinstance(cache, gqa.PagedSequence):
            cache.reserve(200)
            assert np.array_equal(attention(q, view), right)
            fork = cache.fork(70)
            other = fork.view()
            fork.append(k[:1], v[:1])  # into the page that both share: the tokens in it are copied
            assert np.array_equal(attention(q, view), right)
            with pytest.raises(gqa.Error, match="dropped or moved"):
                attention(q, other)
        if isinstance(cache, gqa.RingKvCache):
            cache.append(k, v)  # over the oldest ones
            with pytest.raises(gqa.Error, match="dropped or moved"):
                attention(q, view)


def test_a_list_of_parts_in_itself():
    parts = ["causal"]
    parts.append(parts)
    with pytest.raises(RecursionError):
        attention(q, (k, v), parts)


def test_arrays_that_say_less():
    raw = ((ctypes.c_float * DIM) * HEADS * 3)()  # a buffer that leaves its strides out
    np.frombuffer(raw, np.float32)[:] = q.reshape(-1)
    assert np.array_equal(attention(raw, (k, v)), right)
    assert np.array_equal(attention(q.__dlpack__(), (k.__dlpack__(), v)), right)  # capsules can be taken once
    taken = k.__dlpack__()
    with pytest.raises(gqa.Error, match="values is a PyCapsule"):
        attention(q, (taken, taken))


class Raises:
    """Its attribute raises, or its method, on being asked."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __bool__(self):
        raise KeyError("mine")

    __str__ = __repr__ = __bool__


def test_what_callbacks_raise_goes_through():
    for wrong in (Raises(requires_grad=Raises()), Raises(device=Raises(), shape=(1,))):
        with pytest.raises(KeyError, match="mine"):
            attention(wrong, (k, v))

    def positions():
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attention(q, (k, v), positions=positions())

    class Longer:
        def __len__(self):
            return 1

        def __iter__(self):
            return iter([[-1]] * 1000)

    with pytest.raises(gqa.Error, match=r"parents is longer than its len\(\)"):
        gqa.draft_tree(Longer(), [3])


def test_other_byte_orders_and_other_bytes():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: its types were not tried")
    short = q.astype(ml_dtypes.bfloat16)
    with pytest.raises(gqa.Error, match="q is an array of >V2"):
        attention(short.view(short.dtype.newbyteorder(">")), (k, v))
    ones = np.broadcast_to(np.float32(1), (70, KV_HEADS))
    made = dict(head_dim=DIM, k_scales=ones, v_scales=ones)
    for right_type, wrong in (
        ("float8_e4m3fn", "float8_e5m2"),
        ("float8_e4m3fn", "float8_e4m3fnuz"),
        ("float8_e5m2", "float8_e4m3fn"),
        ("float8_e5m2", "bool"),
    ):
        name = right_type[:11].replace("float", "fp").removesuffix("fn")
        given = k.astype(getattr(ml_dtypes, right_type))
        view = gqa.KvCacheView.contiguous(given, given, k_type=name, **made)
        assert np.array_equal(attention(q, view), attention(q, (given.astype(np.float32),) * 2))
        given = k.astype(getattr(ml_dtypes, wrong, bool))
        with pytest.raises(gqa.Error, match=f"keys is {wrong}; expected bytes"):
            gqa.KvCacheView.contiguous(given, given, k_type=name, **made)


def test_elements_that_share_memory_are_not_changed_in_place():
    shared = np.lib.stride_tricks.as_strided(normal(1, 1, DIM), (5, 2, DIM), (0, 0, 4))
    for change in (
        lambda: gqa.Rope(DIM, 10)(shared, 0),
        lambda: gqa.RmsNorm()(shared),
        lambda: gqa.hadamard_rotate(shared, 16),
        lambda: gqa.Rope(DIM, 10).shift(shared, 1),
    ):
        with pytest.raises(gqa.Error, match="rows is of elements that share memory"):
            change()


def test_outputs_must_not_lie_in_what_a_variant_reads():
    bias, gates = np.zeros((HEADS, 3, 70), np.float32), np.zeros((3, HEADS, DIM), np.float32)
    inside = bias.reshape(-1)[: q.size].reshape(q.shape)
    for out, variant, name in (
        (inside, ["causal", gqa.additive_bias(bias)], "bias"),
        (gates, ["causal", gqa.output_gate([gates])], r"gates\[0\]"),
        (inside, gqa.boolean_mask(bias.reshape(-1).view(np.uint8)[: 3 * 70].reshape(3, 70)), "allowed"),
    ):
        with pytest.raises(gqa.Error, match=f"out is in the memory of the variant's {name}; expected memory of its own"):
            attention(q, (k, v), variant, out=out)
    assert not bias.any() and not gates.any()
    room = np.zeros((2, 3, HEADS, DIM), np.float32)
    attention(q, (k, v), ["causal", gqa.output_gate(room[0])], out=room[1])
    assert np.array_equal(room[1], right / 2)
    packed = np.zeros((3, HEADS, 2, DIM), np.float32)  # gates and outputs side by side
    attention(q, (k, v), ["causal", gqa.output_gate(packed[:, :, 0])], out=packed[:, :, 1])
    assert np.array_equal(packed[:, :, 1], right / 2) and not packed[:, :, 0].any()


def test_lse_of_some_sequences():
    outs, lses = attention.batch([q, q], [(k, v)] * 2, lse=[False, True])
    assert len(outs) == len(lses) == 2 and lses[0] is None and lses[1].shape == (3, HEADS)
    assert isinstance(attention.batch([q], [(k, v)], lse=[None]), list)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gqa.Attention(-1), "query_heads is -1; expected 1 or more, or None"),
        (lambda: gqa.Attention(4, 0), "kv_heads is 0; expected 1 or more, or None"),
        (lambda: gqa.row_bytes("q8_0", -32), r"width is -32; expected a multiple of 32, 1 to 2\^16"),
        (lambda: gqa.row_bytes("q8_0", 7), "width is 7; expected a multiple of 32"),
        (lambda: gqa.row_bytes("f32", 2**62), "width is 4611686018427387904"),
        (lambda: gqa.t5_bias(np.ones((16, 4), np.float32), 100, False, 2**62), "distances is 4611686018427387904; expected 1 to"),
        (lambda: gqa.t5_bias(np.ones((16, 4), np.float32), 100, False, -3), "distances is -3; expected 1 to"),
        (lambda: gqa.Rope(8, 10, scaling="longrope", divisors=[1.0, "a"]), r"divisors\[1\] is 'a'; expected a number"),
        (lambda: gqa.KvCacheView.contiguous(k, v, oldest=2**63 - 1), r"oldest is 9223372036854775807; expected 0 to 2\^48"),
        (lambda: gqa.KvCacheView.contiguous(k, v, oldest=-5), "oldest is -5"),
        (lambda: gqa.KvCacheView.ring(k, v, -1), "length is -1"),
        (lambda: gqa.KvCacheView.paged(k[None], v[None], np.zeros(1, np.int32), -4), "length is -4"),
        (lambda: attention.batch(q, [(k, v)] * 3, tokens=[2**63 - 1, 2**63 - 1, 5]), "tokens is 9223372036854775807; expected 0 to"),
        (lambda: attention(q, (k, v), path="\ud800"), r"path is '\\ud800'; expected a name"),
        (lambda: attention(q, (k, v), "\ud800"), r"variant is '\\ud800'"),
    ],
)
def test_numbers_and_names(call, message):
    with pytest.raises(gqa.Error, match=message):
        call()


def test_positions_at_the_ends_of_integers():
    """Several changes of scores, which are computed one at a time, as one: no difference overflows."""
    ends = [2**63 - 1, -(2**63), 0]
    once = attention(q, (k, v), ["full", gqa.alibi([1e-30] * HEADS)], positions=ends)
    many = ["full", gqa.alibi([1e-30] * HEADS), gqa.head_scale([1.0] * HEADS), gqa.head_scale([1.0] * HEADS)]
    assert np.allclose(attention(q, (k, v), many, positions=ends), once, rtol=0, atol=1e-6)


def in_a_process(code):
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    return ran.returncode, ran.stdout + ran.stderr


def test_a_daemon_thread_does_not_stop_python_from_ending():
    for _ in range(3):
        assert in_a_process("""
            import threading, time
            import numpy as np
            import gqa
            q, k = np.ones((100, 8, 64), np.float32), np.ones((1000, 2, 64), np.float32)
            attention = gqa.Attention(threads=2)
            def calls():
                cache = gqa.ContiguousKvCache(2, 64, 1000)
                while True:
                    attention(q, (k, k))
                    cache.append(k, k)
                    cache.clear()
            for _ in range(3):
                threading.Thread(target=calls, daemon=True).start()
            time.sleep(0.3)
        """) == (0, "")


@pytest.mark.skipif(sys.platform != "linux" or "asan" in str(getattr(gqa, "__file__", "")), reason="address space cannot be limited here")
def test_threads_that_the_system_does_not_start_are_an_error():
    code, said = in_a_process("""
        import resource
        import gqa
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        if gqa.ThreadPool.kind != "Eigen's thread pool":
            raise SystemExit("threads is; expected no more than the system starts")
        gqa.ThreadPool(2000)
    """)
    assert code == 1 and "expected no more than the system starts" in said, said


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no timer here")
def test_an_iterator_without_an_end_can_be_interrupted():
    code, said = in_a_process("""
        import itertools, signal
        import numpy as np
        import gqa
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        gqa.Attention()(np.ones((3, 4, 16), np.float32), (np.ones((9, 2, 16), np.float32),) * 2, positions=itertools.count())
    """)
    assert code != 0 and "KeyboardInterrupt" in said, said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_of_a_process_with_threads():
    assert in_a_process("""
        import os, sys
        import numpy as np
        import gqa
        q, k = np.ones((100, 8, 64), np.float32), np.ones((1000, 2, 64), np.float32)
        attention, pool = gqa.Attention(threads=2), gqa.ThreadPool(2)
        calls = [lambda: attention(q, (k, k)), lambda: attention(q, (k, k), threads=pool), lambda: attention(q, (k, k), threads=3)]
        right = [call() for call in calls]
        child = os.fork()
        if child == 0:
            sys.exit(0 if all(np.array_equal(call(), was) for call, was in zip(calls, right)) else 3)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """) == (0, "")


def test_cycles_are_collected():
    class Cache(gqa.ContiguousKvCache):
        pass

    class Pool(gqa.PagedKvPool):
        pass

    class Here:
        pass

    def made():
        cache, pool, here = Cache(KV_HEADS, DIM, 100), Pool(KV_HEADS, DIM, 9), [Here(), Here()]
        cache.shown, cache.here, pool.sequences, pool.here = cache.view(), here[0], [pool.sequence()], here[1]
        return [weakref.ref(one) for one in here]

    alive = made()
    gc.collect()
    assert [one() for one in alive] == [None, None]
