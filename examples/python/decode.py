#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A decode step of MHA, GQA and MQA: its time and the cache's bytes, beside NumPy and PyTorch's scaled_dot_product_attention.

Everyone computes the same step over the same numbers: one query token of 32 heads of width 128, over a cache of so many tokens. Runs are
interleaved, so that a large cache has to come from memory each time, as it does from layer to layer of a model, and what else the machine does
counts for all alike. Ratios are medians of those of each round.
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--context", type=int, default=8192, help="cached tokens")
parser.add_argument("--threads", type=int, default=1, help="of each side")
parser.add_argument("--repeats", type=int, default=21)
parser.add_argument(
    "--processor-time", action="store_true", help="of all threads, not time: for a machine that others use, with one thread"
)
wanted = parser.parse_args()
clock = time.process_time if wanted.processor_time else time.perf_counter
for library in ("OPENBLAS", "MKL", "OMP"):  # NumPy's threads are chosen before it is imported
    os.environ.setdefault(f"{library}_NUM_THREADS", str(wanted.threads))

import numpy as np  # noqa: E402

import gqa  # noqa: E402

try:
    import torch
except ImportError:
    torch = None

HEADS, DIM = 32, 128


def numpy_step(q, keys, values):
    """(Hq, D), (Hkv, tokens, D): two batched products and a softmax; heads of a group are rows of one product."""
    kv_heads = keys.shape[0]
    scores = q.reshape(kv_heads, -1, DIM) @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(DIM))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights @ values / weights.sum(-1, keepdims=True)).reshape(-1, DIM)


def torch_step(q, keys, values):
    scaled = torch.nn.functional.scaled_dot_product_attention
    return lambda: scaled(q[None], keys[None], values[None], enable_gqa=keys.shape[0] != q.shape[0])


def steps(kv_heads, context, threads, rng):
    """Name → (cache bytes, a function that does a step and returns (Hq, D) as float32)."""
    keys, values = (rng.standard_normal((kv_heads, context, DIM), dtype=np.float32) for _ in range(2))
    q = rng.standard_normal((1, HEADS, DIM), dtype=np.float32)
    attention = gqa.Attention(HEADS, kv_heads, DIM, threads=threads)
    made = {}

    def gqa_step(kind):
        cache = gqa.ContiguousKvCache(kv_heads, DIM, context, k_type=kind)
        cache.append(keys.swapaxes(0, 1), values.swapaxes(0, 1))
        out = np.empty((1, HEADS, DIM), np.float32)
        return cache.bytes, lambda: attention(q, cache, out=out)[0]

    for kind in ("f32", "bf16", "int8"):
        made[f"gqa {kind}"] = gqa_step(kind)
    made["NumPy f32"] = keys.nbytes + values.nbytes, lambda: numpy_step(q[0], keys, values)
    if torch is not None:
        for dtype in (torch.float32, torch.bfloat16):
            tensors = [torch.from_numpy(x).to(dtype) for x in (q.swapaxes(0, 1).copy(), keys, values)]
            run = torch_step(*tensors)
            name = "PyTorch " + ("f32" if dtype == torch.float32 else "bf16")
            made[name] = sum(t.nbytes for t in tensors[1:]), lambda run=run: run()[0, :, 0].float().numpy()
    return made


def main():
    if torch is not None:
        torch.set_num_threads(wanted.threads)
    print(
        f"gqa {gqa.__version__} on {gqa.active_path()}, {wanted.threads} threads, {wanted.context} cached tokens, {HEADS} query heads, D = {DIM}; "
        f"NumPy {np.__version__}" + ("" if torch is None else f"; PyTorch {torch.__version__}")
    )
    print(f"{'':5} {'':13} {'cache MB':>9} {'ms':>8} {'times gqa bf16':>15} {'error':>8}")
    rng = np.random.default_rng(1)
    for name, kv_heads in (("MHA", HEADS), ("GQA-8", 8), ("MQA", 1)):
        made = steps(kv_heads, wanted.context, wanted.threads, rng)
        exact = made["gqa f32"][1]().copy()
        took = {who: [] for who in made}
        for _ in range(wanted.repeats):
            for who, (_, run) in made.items():
                start = clock()
                run()
                took[who].append(clock() - start)
        for who, (size, run) in made.items():
            ratio = statistics.median(a / b for a, b in zip(took[who], took["gqa bf16"]))
            error = np.sqrt(((run() - exact) ** 2).mean() / (exact**2).mean())
            print(f"{name:5} {who:13} {size / 1e6:9.2f} {1e3 * statistics.median(took[who]):8.3f} {ratio:15.2f} {error:8.1e}")


if __name__ == "__main__":
    main()
