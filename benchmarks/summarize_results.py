#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks reached beside what they aim for, from the JSON file that they write. Needs nothing but Python."""

import argparse
import json

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("results", help="benchmarks.json")
parser.add_argument("--all", action="store_true", help="entries without a target too")
options = parser.parse_args()

with open(options.results, encoding="utf-8") as file:
    results = json.load(file)
entries = {entry["name"]: entry for entry in results["benchmarks"] if entry.get("run_type", "iteration") == "iteration"}
context = results["context"]
print(f"{context.get('gqa_machine', context.get('host_name'))}; path {context.get('gqa_path')}; {context['date'][:10]}\n")

# An entry during which the machine itself was slower than at other times says nothing: its limits are compared with the best that
# any entry saw.
LIMITS = ("memory_bytes_per_s", "peak_flop_per_s")


def limit_key(name, counter):
    """Entries with the same key were held against the same limit."""
    parts = name.split("/")
    if counter == "memory_bytes_per_s":
        return parts[-1], "l2" if parts[0] == "decode_l2" else "write" if parts[0].startswith("append") else "memory"
    return parts[-1], parts[-2], parts[2] == "bf16"


best = {}
for name, entry in entries.items():
    for counter in LIMITS:
        if counter in entry:
            key = limit_key(name, counter)
            best[key] = max(best.get(key, 0), entry[counter])


def disturbed(name, entry):
    return any(counter in entry and entry[counter] < 0.85 * best[limit_key(name, counter)] for counter in LIMITS)


reached = aimed = noisy = 0
print(f"{'entry':58} {'time':>12} {'reached':>9} {'target':>7}   of")
for name, entry in entries.items():
    if "percent_of_limit" not in entry or (not options.all and "target_percent" not in entry):
        continue
    target = entry.get("target_percent")
    micros = entry["real_time"]
    time = f"{micros:9.3f} us" if micros < 100 else f"{micros / 1e3:9.3f} ms"
    verdict = ""
    if target is not None:
        aimed += 1
        quiet = not disturbed(name, entry)
        noisy += not quiet
        reached += quiet and entry["percent_of_limit"] >= target
        verdict = f"{target:6.0f}%" + (" ?" if not quiet else " +" if entry["percent_of_limit"] >= target else " -")
    print(f"{name:58} {time} {entry['percent_of_limit']:8.1f}% {verdict:9}   {entry.get('label', '')}"
          + (f"; {entry['bf16_speed']:.2f} times the bf16 cache's speed" if "bf16_speed" in entry else ""))
print(f"\n{reached} of {aimed} targets reached" + (f"; {noisy} entries marked ? were disturbed: measure again" if noisy else ""))

pairs = [(name, entries[name], entries[name[:-1] + "2"]) for name in entries if name.endswith("/t1") and name[:-1] + "2" in entries]
if pairs:
    print(f"\n{'two threads against one':58} {'speedup':>9} {'limit scales':>13}")
    for name, one, two in pairs:
        kind = "peak_flop_per_s" if one.get("percent_of_peak", 0) > one.get("percent_of_memory", 0) else "memory_bytes_per_s"
        scales = f"{two[kind] / one[kind]:12.2f}x" if kind in one and kind in two else ""
        if name.startswith("limits/"):
            continue
        print(f"{name:58} {one['real_time'] / two['real_time']:8.2f}x {scales:>13}")
