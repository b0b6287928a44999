#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what the benchmarks measured (needs matplotlib):

    roofline.png          every call against the machine's limits
    decode_kv_heads.png   a decode step over fewer and fewer KV heads; the rivals beside it, where compare_rivals.py was run
    decode_context.png    a decode step as the cache grows
"""

import argparse
import json
import os
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("results", help="benchmarks.json")
parser.add_argument("--rivals", help="what compare_rivals.py --json wrote")
parser.add_argument("--out", default=".", help="folder for the pictures (default: here)")
options = parser.parse_args()

with open(options.results, encoding="utf-8") as file:
    results = json.load(file)
entries = {entry["name"]: entry for entry in results["benchmarks"] if "percent_of_limit" in entry}
context = results["context"]
path = context.get("gqa_path", "")
where = f"{context.get('gqa_machine', '')}, path {path}, {context['date'][:10]}"
rivals = []
if options.rivals:
    with open(options.rivals, encoding="utf-8") as file:
        rivals = json.load(file)["rows"]
os.makedirs(options.out, exist_ok=True)


def limit(name):
    entry = entries.get(f"limits/{name}/t1")
    reached = entry and entry.get("bytes_per_s", entry.get("flop_per_s"))
    if name != "memory_read":
        return reached
    # Other programs take memory at times. The line is the fastest that it was read beside any call.
    calls = [e["memory_bytes_per_s"] for n, e in entries.items() if "memory_bytes_per_s" in e and n.endswith("/t1") and not n.startswith(("decode_l2", "append"))]
    return max(calls + [reached]) if reached else None


def save(figure, axes, name, title, legend=None):
    axes.set_title(f"{title}\n{where}", fontsize=10)
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8, **(legend or {}))
    figure.tight_layout()
    file = os.path.join(options.out, name)
    figure.savefig(file, dpi=150)
    plt.close(figure)
    print(file)


def roofline():
    figure, axes = plt.subplots(figsize=(8, 5.5))
    intensity = [0.25 * 2 ** (i / 8) for i in range(0, 128)]
    memory, l2 = limit("memory_read"), limit("l2_read")
    peaks = [(name, limit(name)) for name in ("f32_avx2", "f32_avx512", "bf16_dot", "bf16_tile") if limit(name)]
    if memory is None or not peaks:
        return print("no roofline: the file has no entries of limits_bench")
    top = max(rate for _, rate in peaks)
    axes.plot(intensity, [min(memory * x, top) / 1e9 for x in intensity], color="black", label="memory read")
    if l2:
        axes.plot(intensity, [min(l2 * x, top) / 1e9 for x in intensity], color="black", linestyle=":", label="L2 read")
    for name, rate in peaks:
        if name == "f32_avx2" and limit("f32_avx512") and limit("f32_avx512") < 1.1 * rate:
            continue  # one line over the other
        axes.axhline(rate / 1e9, linewidth=0.8, linestyle="--", color="grey")
        axes.text(intensity[-1], rate / 1e9, name, ha="right", va="bottom", fontsize=7)
    for number, operation in enumerate(("decode", "verify", "batch", "prefill")):
        points = [(e["flop_per_s"] / e["bytes_per_s"], e["flop_per_s"] / 1e9) for n, e in entries.items()
                  if n.startswith(operation) and n.endswith(f"/{path}/t1") and e.get("bytes_per_s") and "flop_per_s" in e]
        if points:
            axes.scatter(*zip(*points), s=18, color=f"C{number}", label=operation)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte of K and V")
    axes.set_ylabel("GFLOP/s, one thread")
    save(figure, axes, "roofline.png", "Calls against the machine's limits")


def decode_by_kv_heads():
    pattern = re.compile(rf"decode/(?:mha|gqa|mqa)_32_(\d+)/bf16/8192/{path}/t1$")
    points = sorted((int(m[1]), e["real_time"] / 1e3, e["bytes_per_s"]) for n, e in entries.items() if (m := pattern.match(n)))
    if len(points) < 2:
        return print("no picture of KV heads: the file has no entries of decode_bench")
    figure, axes = plt.subplots(figsize=(9, 5))
    heads = [p[0] for p in points]
    axes.plot(heads, [p[1] for p in points], marker="o", linewidth=2, label="gqa, bf16")
    memory = limit("memory_read")
    if memory:
        axes.plot(heads, [p[1] * p[2] / memory for p in points], color="black", linestyle=":", label="reading the cache at full speed")
    lines = {}
    for row in rivals:
        same = row["operation"] == "decode" and row["query_heads"] == 32 and row["tokens"] == 8192 and row["threads"] == 1
        if same and row["side"] != "gqa":
            lines.setdefault((row["side"], row["type"]), []).append((row["kv_heads"], row["ms"]))
    for (side, kind), values in sorted(lines.items()):
        axes.plot(*zip(*sorted(values)), marker="s", markersize=4, linewidth=1, linestyle="--", label=f"{side}, {kind}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(heads, [str(h) for h in heads])
    axes.set_xlabel("KV heads (32 query heads, D = 128)")
    axes.set_ylabel("ms for one token over 8192")
    save(figure, axes, "decode_kv_heads.png", "A decode step from MQA (left) over GQA to MHA (right)",
         {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if lines else None)


def decode_by_context():
    pattern = re.compile(rf"decode/gqa_32_8/bf16/(\d+)/{path}/t1$")
    points = sorted((int(m[1]), e["real_time"] / 1e3, e["bytes_per_s"]) for n, e in entries.items() if (m := pattern.match(n)))
    if len(points) < 2:
        return print("no picture of context: the file has no entries of decode_bench")
    figure, axes = plt.subplots(figsize=(7, 5))
    axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label="gqa, 32/8, bf16")
    memory = limit("memory_read")
    if memory:
        axes.plot([p[0] for p in points], [p[1] * p[2] / memory for p in points], color="black", linestyle=":",
                  label="reading the cache at full speed")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens in the cache")
    axes.set_ylabel("ms for one token")
    save(figure, axes, "decode_context.png", "A decode step as the cache grows")


roofline()
decode_by_kv_heads()
decode_by_context()
