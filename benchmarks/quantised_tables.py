#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tables of "Quantised caches" in README.md, from what quantised_bench and compare_rivals.py wrote: medians over the files. Needs
nothing but Python."""

import argparse
import json
import re
import statistics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("results", nargs="+", help="files that quantised_bench --benchmark_out=FILE wrote, one each run")
parser.add_argument("--rivals", nargs="*", default=[], help="files that compare_rivals.py --json wrote, one each run")
parser.add_argument("--tokens", type=int, default=8192, help="of the decode steps shown (default: 8192)")
parser.add_argument("--path", help="default: the one that the first file's calls take")
options = parser.parse_args()


def read(file):
    with open(file, encoding="utf-8") as opened:
        return json.load(opened)


files = [read(file) for file in options.results]
context = files[0]["context"]
path = options.path or context["gqa_path"]
runs = {}
for file in files:
    for entry in file["benchmarks"]:
        if "bf16_speed" in entry:
            runs.setdefault(entry["name"], []).append(entry)


def median(name, value):
    """Of a counter, or of what a function makes of an entry; None where nothing was measured."""
    values = [value(entry) if callable(value) else entry[value] for entry in runs.get(name, [])]
    return statistics.median(values) if values else None


def shown(value, form):
    return "" if value is None else form.format(value)


def table(heads, rows):
    print("| " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * (len(heads) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def calls():
    pattern = re.compile(rf"decode/[^/]+/([^/]+)/{options.tokens}/{path}/t1$")
    codecs = []
    for name in runs:
        if (found := pattern.match(name)) and found[1] not in codecs:
            codecs.append(found[1])
    rows = []
    for codec in codecs:
        at = lambda operation, heads, threads=1, tokens=options.tokens: f"{operation}/{heads}/{codec}/{tokens}/{path}/t{threads}"
        step = lambda heads, threads=1: at("decode", heads, threads)
        row = [codec, shown(median(step("mha_32_32"), "bits_per_element"), "{:.2f}")]
        for heads in ("mha_32_32", "gqa_32_8"):
            row += [shown(median(step(heads), "percent_of_memory"), "{:.0f}%"), shown(median(step(heads), "bf16_speed"), "{:.2f}")]
        row += [shown(median(step("gqa_32_8", 2), "percent_of_memory"), "{:.0f}%"),
                shown(median(step("mqa_32_1"), "bf16_speed"), "{:.2f}"),
                shown(median(at("decode_paged", "gqa_32_8", tokens=8192), lambda e: 100 / e["percent_of_limit"]), "{:.2f}"),
                shown(median(at("verify_4", "gqa_32_8", tokens=8192), "decode_steps"), "{:.2f}"),
                shown(median(at("batch_ragged", "gqa_32_8", tokens=64), "percent_of_memory"), "{:.0f}%"),
                shown(median(at("prefill", "gqa_32_8", tokens=2048), "bf16_speed"), "{:.2f}")]
        rows.append(row)
    table(["codec", "bits", "MHA, of memory", "× bf16's speed", "GQA 32/8, of memory", "× bf16's speed", "two threads, of memory",
           "MQA, × bf16's speed", "pages, × contiguous time", "verify 4, decode steps", "64 ragged, of memory",
           "prefill 2048, × bf16's speed"], rows)


def rivals():
    times = {}
    sides = []
    for file in map(read, options.rivals):
        for row in file["rows"]:
            codec = row.get("beside", row["type"])
            if codec in ("bf16", "f16", "f32"):
                continue
            side = "bf16 here" if row["side"] == "gqa" else row["side"]
            if row["side"] == "gqa" and row["type"] == codec:
                continue
            sides += [side] if side not in sides else []
            heads = f"{row['operation']} of {row['tokens']}, {row['query_heads']}/{row['kv_heads']}"
            times.setdefault((heads, codec), {}).setdefault(side, []).append(row["times_as_long"])
    table(["call", "keys/values", *sides],
          [[heads, codec, *(shown(statistics.median(of[side]) if side in of else None, "{:.2f}") for side in sides)]
           for (heads, codec), of in times.items()])


clock = "processor time" if context["gqa_clock"] == "processor time" else "wall time"
print(f"{context['gqa_machine']}, path {path}, {context['date'][:10]}, {clock}, medians of {len(files)} runs\n")
calls()
if options.rivals:
    rivals()
