#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what the benchmarks measured (needs matplotlib):

    roofline.png          every call against the machine's limits
    decode_kv_heads.png   a decode step over fewer and fewer KV heads, over elements and over quantised caches; the rivals beside it,
                          where compare_rivals.py was run
    decode_bits.png       a decode step over caches of fewer and fewer bits an element, likewise
    decode_context.png    a decode step as the cache grows
    determinism.png       which results stay the same bits, where compare_determinism.py was run; without other results, this alone
"""

import argparse
import json
import math
import os
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("results", nargs="?", help="benchmarks.json")
parser.add_argument("--rivals", help="what compare_rivals.py --json wrote")
parser.add_argument("--determinism", help="what compare_determinism.py --json wrote")
parser.add_argument("--out", default=".", help="folder for the pictures (default: here)")
options = parser.parse_args()
if not (options.results or options.determinism):
    parser.error("neither benchmarks.json nor --determinism")

results = {"benchmarks": [], "context": {"date": ""}}
if options.results:
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
    """axes: one, or several side by side, each with its own title, and their legend where `legend` says."""
    several = axes if isinstance(axes, list) else [axes]
    for each in several:
        each.grid(True, which="both", linewidth=0.3)
        each.legend(fontsize=8, **(legend or {}))
    if len(several) > 1:
        figure.suptitle(f"{title}\n{where}", fontsize=10)
    else:
        axes.set_title(f"{title}\n{where}", fontsize=10)
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


ELEMENTS = {"f32": 32, "bf16": 16, "f16": 16}


def decode_steps(kind=None, kv_heads=None):
    """Of 32 query heads over 8192 tokens: (KV heads, type, ms, entry) of the types, and heads, that were measured."""
    pattern = re.compile(rf"decode/(?:mha|gqa|mqa)_32_(\d+)/([^/]+)/8192/{path}/t1$")
    found = [(int(m[1]), m[2], e["real_time"] / 1e3, e) for n, e in entries.items() if (m := pattern.match(n))]
    return sorted((f for f in found if kind in (None, f[1]) and kv_heads in (None, f[0])), key=lambda f: f[:2])


def rivals_steps():
    """Rows of the same, on one thread."""
    return [row for row in rivals if row["operation"] == "decode" and row["query_heads"] == 32 and row["tokens"] == 8192 and
            row["threads"] == 1 and row["side"] != "gqa"]


def quickest(lines):
    """Of each side's quantised caches the one of 8 bits or more that is quickest with MHA, and the one of fewer."""
    bits = {(row["side"], row["type"]): row["bits"] for row in rivals_steps()}
    chosen = {}
    for key, values in lines.items():
        group = key[0], bits[key] < 8
        if group not in chosen or max(values)[1] < max(lines[chosen[group]])[1]:
            chosen[group] = key
    return {key: lines[key] for key in chosen.values()}


def name_points(axes, points, **style):
    """Writes the names of (bits, ms, name), those of neighbours together."""
    left = sorted(points)
    while left:
        bits, ms, _ = left[0]
        near = [p for p in left if p[0] < 1.1 * bits and abs(math.log(p[1] / ms)) < 0.12]
        axes.annotate(", ".join(p[2] for p in near), (bits, ms), textcoords="offset points", **style)
        left = [p for p in left if p not in near]


def decode_by_kv_heads():
    ours = decode_steps("bf16")
    if len(ours) < 2:
        return print("no picture of KV heads: the file has no entries of decode_bench")
    coded = [kind for kind in ("int8", "int4", "q8_0", "q4_0") if len(decode_steps(kind)) > 1]
    figure, axes = plt.subplots(1, 2 if coded else 1, figsize=(16 if coded else 9, 5), sharey=True, squeeze=False)
    axes = list(axes[0])
    memory = limit("memory_read")
    for each, kinds in zip(axes, (["bf16"], ["bf16", *coded])):
        for number, kind in enumerate(kinds):
            points = decode_steps(kind)
            heads, times = [p[0] for p in points], [p[2] for p in points]
            each.plot(heads, times, marker="o", linewidth=2, color=f"C{number}", label=f"gqa, {kind}")
            if memory:
                each.plot(heads, [p[2] * p[3]["bytes_per_s"] / memory for p in points], color=f"C{number}" if number else "black",
                          linestyle=":", label=None if number else "reading the cache at full speed")
        lines = {}
        for row in rivals_steps():
            if (row["type"] in ELEMENTS) == (each is axes[0]):
                lines.setdefault((row["side"], row["type"]), []).append((row["kv_heads"], row["ms"]))
        if each is not axes[0]:
            lines = quickest(lines)
        for number, ((side, kind), values) in enumerate(sorted(lines.items())):
            each.plot(*zip(*sorted(values)), marker="s", markersize=4, linewidth=1, linestyle="--",
                      color=f"C{(number + len(kinds)) % 10}", label=f"{side}, {kind}")
        each.set_xscale("log", base=2)
        each.set_yscale("log")
        each.set_xticks([p[0] for p in ours], [str(p[0]) for p in ours])
        each.set_xlabel("KV heads (32 query heads, D = 128)")
    axes[0].set_ylabel("ms for one token over 8192")
    save(figure, axes if coded else axes[0], "decode_kv_heads.png", "A decode step from MQA (left) over GQA to MHA (right)",
         {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if rivals else None)


def decode_by_bits():
    coded = [p for p in decode_steps() if "bits_per_element" in p[3]]
    if not coded:
        return print("no picture of bits: the file has no entries of quantised_bench")
    memory = limit("memory_read")
    kinds = [heads for heads in (32, 8, 1) if decode_steps(kv_heads=heads)]
    figure, axes = plt.subplots(1, len(kinds), figsize=(5.5 * len(kinds), 5), squeeze=False)
    axes = list(axes[0])
    for each, kv_heads in zip(axes, kinds):
        points = sorted((e.get("bits_per_element", ELEMENTS.get(kind)), ms, kind, e)
                        for _, kind, ms, e in decode_steps(kv_heads=kv_heads))
        each.scatter([p[0] for p in points], [p[1] for p in points], s=24, label="gqa")
        name_points(each, [p[:3] for p in points], xytext=(0, -4), fontsize=7, color="C0", rotation=-50, va="top")
        if memory:
            each.plot([p[0] for p in points], [p[1] * p[3]["bytes_per_s"] / memory for p in points], color="black", linestyle=":",
                      label="reading the cache at full speed")
        sides = {}
        for row in rivals_steps():
            if row["kv_heads"] == kv_heads:
                sides.setdefault(row["side"], []).append((row["bits"], row["ms"], row["type"]))
        for number, (side, values) in enumerate(sorted(sides.items())):
            each.scatter([v[0] for v in values], [v[1] for v in values], s=14, marker="s", color=f"C{number + 1}", label=side)
            name_points(each, values, xytext=(0, 4), fontsize=6, color=f"C{number + 1}", rotation=50)
        each.set_xscale("log", base=2)
        each.set_yscale("log")
        each.margins(y=0.12)
        each.set_xticks([4, 8, 16, 32], ["4", "8", "16", "32"])
        each.set_xlabel(f"bits an element, scales included (32 query heads, {kv_heads} KV heads)", fontsize=8)
    axes[0].set_ylabel("ms for one token over 8192")
    save(figure, axes if len(axes) > 1 else axes[0], "decode_bits.png", "A decode step over fewer and fewer bits", {"loc": "upper left", "bbox_to_anchor": (0, -0.12), "ncol": 2})


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


def determinism():
    """Sides and types downwards, what changes from left to right, decode steps and prefills side by side. Green is what never changes."""
    with open(options.determinism, encoding="utf-8") as file:
        found = json.load(file)
    columns = [(case, phase) for case in ("batch", "lengths", "lengths, 2 threads", "threads", "chunks", "prefix", "layout", "pages", "path") for phase in ("decode", "prefill")
               if case not in ("chunks", "prefix") or phase == "prefill"]
    titles = {"lengths": "unequal\nlengths", "lengths, 2 threads": "the same,\n2 threads", "layout": "token-\nmajor", "path": "instruction\nset", "prefix": "cached\nprefix"}
    figure, axes = plt.subplots(figsize=(12, 1.5 + 0.27 * len(found["rows"])))
    sides = []
    for y, row in enumerate(found["rows"]):
        shares = {(each["case"], each["phase"]): each["share"] for each in row["cases"]}
        sides.append(row["side"])
        for x, column in enumerate(columns):
            share = shares.get(column)
            if share is None:
                axes.text(x, y, "–", ha="center", va="center", fontsize=8, color="grey")
                continue
            name = f"{100 * share:.0f}" if share in (0, 1) else f"{min(max(100 * share, 0.1), 99.9):.1f}"
            colour = "#66bd63" if share == 1 else plt.get_cmap("RdYlGn")(0.12 + 0.33 * share)
            axes.add_patch(plt.Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, color=colour))
            axes.text(x, y, name, ha="center", va="center", fontsize=9)
        if y > 0 and sides[-1] != sides[-2]:
            axes.axhline(y - 0.5, color="black", linewidth=0.8)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(found["rows"]) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), [f"{titles.get(case, case)}\n{phase}" for case, phase in columns], fontsize=8)
    axes.set_yticks(range(len(found["rows"])), [f"{row['side']}, {row['type']}" for row in found["rows"]], fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle("Percent of output rows that stay the same bits when this alone changes (–: not possible there)\n"
                    f"{found['machine']}, {found['date']}; {found['heads'].replace(',', ', ')} heads, D = 128, decode over {found['tokens']} tokens, "
                    f"prefill of {found['prefill']}", fontsize=9)
    figure.tight_layout()
    file = os.path.join(options.out, "determinism.png")
    figure.savefig(file, dpi=130)
    plt.close(figure)
    print(file)


if options.results:
    roofline()
    decode_by_kv_heads()
    decode_by_bits()
    decode_by_context()
if options.determinism:
    determinism()
