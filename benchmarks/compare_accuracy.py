#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far results with bf16 queries, keys and values are from the definition in double precision: this library's paths and, if it
is installed, PyTorch's two ways (pip install torch==2.13.0), on the same numbers. NumPy is needed.

    exact        the exact result, rounded to bf16: what no bf16 result is better than
    avx512bf16   bf16 products
    amx          bf16 tile products; with --emulated-amx on machines with AVX-512 and bf16 products alone, slowly
    avx512       (or avx2, portable) f32 products of the same bf16 numbers
    flash        PyTorch's scaled_dot_product_attention as it usually runs on a CPU: bf16 products, weights rounded to bf16
    math         PyTorch's other way (SDPBackend.MATH): all in f32

For each problem the root of the mean square of errors with results in bf16, times 1e5; behind it, for this library, that of f32
results and of the log-sum-exp, likewise. At the end, for each side, its errors relative to those of PyTorch's two ways."""

import argparse
import datetime
import math
import os
import sys
import types

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--emulated-amx", action="store_true", help="have the amx path without a processor that has it")
parser.add_argument("--most-tokens", type=int, default=8192, help="leave longer problems out (default: 8192)")
parser.add_argument("--seeds", type=int, default=4, help="problems of each kind and shape (default: 4)")
options = parser.parse_args()

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

from rivals import Ours, Problem, to_bf16  # noqa: E402
from rivals_torch import Torch  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
KINDS = {
    "normal": "queries, keys and values of unit variance",
    "peaked": "queries four times as large: a few tokens have nearly all the weight",
    "flat": "queries a tenth as large: all tokens have about the same weight",
    "offset": "values of mean 8 and unit variance",
    "outliers": "one value of a thousand fifty times as large, two dims of the keys ten times",
    "equal": "every value of a dim the same",
}


def shapes():
    """Query heads, KV heads, query tokens, tokens, head dim."""
    for dim in (64, 128):
        for tokens in (16, 64, 512, 2048, 8192):
            yield 8, 2, 1, tokens, dim
        for tokens in (16, 64, 512, 1024):
            yield 4, 2, tokens, tokens, dim


def wide(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def draw(kind, problem, seed):
    random = np.random.default_rng(seed)
    cache = (problem.kv_heads, problem.n_kv, problem.head_dim)
    q = random.standard_normal((problem.n_q, problem.query_heads, problem.head_dim), dtype=np.float32)
    k = random.standard_normal(cache, dtype=np.float32)
    v = random.standard_normal(cache, dtype=np.float32)
    if kind == "peaked":
        q *= 4
    elif kind == "flat":
        q *= 0.1
    elif kind == "offset":
        v += 8
    elif kind == "outliers":
        v[random.random(v.shape) < 0.001] *= 50
        k[:, :, :2] *= 10
    elif kind == "equal":
        v[:] = v[:, :1]
    return types.SimpleNamespace(q=to_bf16(q), copies=[(to_bf16(k), to_bf16(v))], scales=[None, None])


def definition(problem, inputs):
    """Causal attention of the last n_q tokens in double precision: results and log-sum-exps."""
    group = problem.query_heads // problem.kv_heads
    q, k, v = (wide(bits).astype(np.float64) for bits in (inputs.q, *inputs.copies[0]))
    out, lse = np.empty(q.shape), np.empty(q.shape[:2])
    hidden = np.arange(problem.n_kv)[None, :] > np.arange(problem.n_q)[:, None] + (problem.n_kv - problem.n_q)
    for head in range(problem.query_heads):
        scores = q[:, head] @ k[head // group].T / math.sqrt(problem.head_dim)
        scores[hidden] = -np.inf
        most = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - most)
        total = weights.sum(axis=1, keepdims=True)
        out[:, head] = weights @ v[head // group] / total
        lse[:, head] = (most + np.log(total))[:, 0]
    return out, lse


class Errors:
    """Root mean square and maximum over some arrays of errors."""

    def __init__(self):
        self.squares, self.count, self.most = 0.0, 0, 0.0

    def add(self, errors):
        self.squares += float(np.sum(np.square(errors)))
        self.count += errors.size
        self.most = max(self.most, float(np.max(np.abs(errors))))

    @property
    def rms(self):
        return math.sqrt(self.squares / self.count)


def torch_side():
    """PyTorch and its two ways; or none."""
    try:
        side = Torch(1)
    except ImportError as missing:
        print(f"without PyTorch: {missing}", file=sys.stderr)
        return None, {}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return side, {"flash": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION), "math": lambda: sdpa_kernel(SDPBackend.MATH)}


def measure(problem, kind, ours, paths, torch, ways):
    """{side: Errors}; those of f32 results and of log-sum-exps as "side f32" and "side lse"."""
    found = {}
    note = lambda name, errors: found.setdefault(name, Errors()).add(errors)
    for seed in range(options.seeds):
        inputs = draw(kind, problem, seed)
        expected, expected_lse = definition(problem, inputs)
        as_bf16 = lambda result: wide(to_bf16(np.ascontiguousarray(result, np.float32)))
        note("exact", as_bf16(expected) - expected)
        for path in paths:
            ours.take_path(path)
            lse = np.empty(expected_lse.shape, np.float32)
            result = ours.prepare(problem, inputs, lse)(0)
            note(path, as_bf16(result) - expected)
            note(path + " f32", result - expected)
            note(path + " lse", lse - expected_lse)
        for name, way in ways.items():
            with way():
                note(name, torch.prepare(problem, inputs).result(0) - expected)
    return found


def main():
    flags = ["-DGQA_DETAIL_EMULATED_AMX"] if options.emulated_amx else []
    ours = Ours(1, flags=flags)
    f32_path = next(path for path in ("avx512", "avx2", "portable") if ours.take_path(path))
    paths = [path for path in ("avx512bf16", "amx") if ours.take_path(path)] + [f32_path]
    torch, ways = torch_side()
    print(f"{ours.machine()}; {datetime.date.today()}" + (f"; PyTorch {torch.version}" if torch else ""))
    for kind, what in KINDS.items():
        print(f"  {kind:9} {what}")
    sides = ["exact", *paths, *ways]
    rounded = paths[:-1]
    head = f"\n{'errors × 1e5':29}" + "".join(f"{side:>12}" for side in sides)
    print(head + "".join(f" {path + ' f32':>15} {path + ' lse':>15}" for path in rounded))
    ratios = {}
    for kind in KINDS:
        for query_heads, kv_heads, n_q, n_kv, dim in shapes():
            if n_kv > options.most_tokens:
                continue
            problem = Problem("decode" if n_q == 1 else "prefill", "bf16", query_heads, kv_heads, n_q, n_kv, dim)
            found = measure(problem, kind, ours, paths, torch, ways)
            print(f"{kind:9}{problem.name:8}{n_kv:6} × {dim:3}" + "".join(f"{found[side].rms * 1e5:12.3f}" for side in sides) +
                  "".join(f" {found[p + ' f32'].rms * 1e5:15.4f} {found[p + ' lse'].rms * 1e5:15.4f}" for p in rounded), flush=True)
            for way in ways:
                for side in sides:
                    if side != way and found[way].rms > 0 and kind != "equal":
                        ratios.setdefault((side, way), []).append(
                            (found[side].rms / found[way].rms, found[side].most / found[way].most))
    if ratios:
        print(f"\n{'relative to PyTorch (without equal)':38}{'RMS: mean':>10}{'least':>8}{'most':>8}{'maximum: mean':>16}{'most':>8}")
    for (side, way), pairs in ratios.items():
        rms, most = zip(*pairs)
        mean = lambda values: math.exp(sum(map(math.log, values)) / len(values))
        print(f"{side + ' to ' + way:38}{mean(rms):10.3f}{min(rms):8.3f}{max(rms):8.3f}{mean(most):16.3f}{max(most):8.3f}")


if __name__ == "__main__":
    main()
