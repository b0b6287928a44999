# SPDX-License-Identifier: Apache-2.0
"""What it costs this library that its spans follow from positions alone: compare_determinism.py --cost. Its own kernels with spans of 512 tokens, in turn with
the same kernels with as few spans as the threads ask for (per_thread_spans.hpp)."""

import dataclasses
import datetime
import os
import statistics
import time

from rivals import HERE, Inputs, Ours, Problem

COLUMNS = ("call", "type", "threads", "spans by threads, tokens", "processor time", "elapsed time", "rounds")


def problems(types, heads):
    for kind in types:
        for pair in heads:
            for tokens in (8192, 32768) if pair[0] > pair[1] else (8192,):  # a cache of 32,768 without groups takes 1 GiB
                yield Problem("decode", kind, *pair, 1, tokens)
            yield Problem("prefill", kind, *pair, 2048, 2048)


def spans_of_threads(problem, threads):
    """Tokens of a span, where there are only as many as the threads ask for beyond the KV heads, and tiles of 128 rows."""
    rows = problem.n_q * problem.query_heads // problem.kv_heads
    pieces = problem.kv_heads * -(-rows // 128)
    cuts = -(-threads // pieces)
    return -(-problem.n_kv // cuts // 64) * 64


def measure(types, heads, seconds):
    """Results, and the lines of a Markdown table of them."""
    sides = {"fixed spans": Ours(1), "spans by threads": Ours(1, flags=["-include", os.path.join(HERE, "per_thread_spans.hpp")])}
    fixed, free = sides.values()
    lines = [f"{fixed.machine()}; {datetime.date.today()}; path {fixed.version}; time with spans of 512 tokens over time with spans by threads, in turn: medians (quartiles)",
             "", "| " + " | ".join(COLUMNS) + " |", "|---|---|---:|---:|---:|---:|---:|"]
    print("\n".join(lines))
    results = []
    for problem in problems(types, heads):
        inputs = Inputs(problem, fixed.out_of_cache_bytes(), None)
        calls = [side.prepare(problem, inputs) for side in sides.values()]
        for threads in (1, 2):
            span = spans_of_threads(problem, threads)
            for side in sides.values():
                side.take_threads(threads)
            free.lib.gqa_driver_set_span(span)
            ratios = measure_in_turn(calls, len(inputs.copies), seconds)
            quartiles = [statistics.quantiles(r, n=4) for r in ratios]
            cells = [f"{problem.name} over {problem.n_kv}, {problem.query_heads}/{problem.kv_heads}", problem.type, threads, span,
                     *(f"{q[1]:.3f} ({q[0]:.3f}–{q[2]:.3f})" for q in quartiles), len(ratios[0])]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
            print(lines[-1], flush=True)
            results.append({**dataclasses.asdict(problem), "threads": threads, "span": span, "processor_time": quartiles[0],
                            "elapsed": quartiles[1], "rounds": len(ratios[0])})
    return {"machine": fixed.machine(), "cost": results}, lines


def measure_in_turn(calls, copies, seconds):
    """Ratios of the first call's times to the second's, of processor time and of elapsed time, a pair a round. Who begins changes from round to
    round."""
    clocks = (time.process_time, time.perf_counter)
    ratios = [[], []]
    for call in calls:
        call(0)
    at, end = 0, time.monotonic() + seconds
    while len(ratios[0]) < 9 or (time.monotonic() < end and len(ratios[0]) < 2000):
        times = [None, None]
        for which in ((0, 1), (1, 0))[len(ratios[0]) % 2]:
            at = (at + 1) % copies
            time.sleep(0.001)  # the other's idle threads stop spinning
            start = [clock() for clock in clocks]
            calls[which](at)
            times[which] = [clock() - begin for clock, begin in zip(clocks, start)]
        for i in (0, 1):
            ratios[i].append(times[0][i] / times[1][i])
    return ratios
