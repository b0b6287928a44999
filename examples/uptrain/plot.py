#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what uptrain wrote (needs matplotlib):

    uptrain_gap.png    share of the gap closed against the training budget, for each method, a panel for each number of KV heads
    uptrain_loss.png   held-out loss against KV bytes a token: right after conversion, after the longest uptraining, and from scratch

Several seeds: means, and bars of one standard deviation.
"""

import argparse
import csv
import os
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("results", help="results.csv")
parser.add_argument("--out", default=".", help="folder for the pictures (default: here)")
options = parser.parse_args()

with open(options.results, encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
if not rows:
    raise SystemExit(f"{options.results}: no rows")
os.makedirs(options.out, exist_ok=True)

seeds = sorted({row["seed"] for row in rows})
heads = sorted({int(row["kv_heads"]) for row in rows}, reverse=True)
methods = list(dict.fromkeys(row["model"] for row in rows if row["model"] not in ("scratch", "continued")))
budgets = sorted({float(row["budget_percent"]) for row in rows})
kv_bytes = {int(row["kv_heads"]): int(row["kv_bytes_per_token"]) for row in rows}
what = f"{rows[0]['steps']} steps of training, " + (f"mean of {len(seeds)} seeds" if len(seeds) > 1 else "one seed")


def over_seeds(model, kv_heads, budget, column):
    """Mean and deviation of a column; None if it is empty."""
    values = [float(row[column]) for row in rows if row["model"] == model and int(row["kv_heads"]) == kv_heads and
              float(row["budget_percent"]) == budget and row[column] != ""]
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def line(axes, points, **style):
    """Points (x, (mean, deviation)) that there are."""
    points = [(x, y) for x, y in points if y is not None]
    if points:
        axes.errorbar([x for x, _ in points], [y[0] for _, y in points], yerr=[y[1] for _, y in points], capsize=2, **style)


def save(figure, name, room_below=0.0):
    figure.tight_layout(rect=(0, room_below, 1, 1))
    path = os.path.join(options.out, name)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(path)


def gap():
    converted = [h for h in heads if any(int(row["kv_heads"]) == h and row["model"] in methods for row in rows)]
    figure, panels = plt.subplots(1, len(converted), figsize=(4.5 * len(converted), 4), sharey=True, squeeze=False)
    for axes, kv_heads in zip(panels[0], converted):
        for number, model in enumerate(methods):
            points = [(b, over_seeds(model, kv_heads, b, "gap_closed")) for b in budgets]
            line(axes, [(b, y and (100 * y[0], 100 * y[1])) for b, y in points], marker="o", markersize=4, color=f"C{number}", label=model)
        axes.axhline(100, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(f"{kv_heads} KV head{'s' if kv_heads > 1 else ''}", fontsize=10)
        axes.set_xlabel("uptraining, % of the training steps")
        axes.grid(True, linewidth=0.3)
    panels[0][0].set_ylabel("% of the gap to multi-head closed")
    panels[0][-1].legend(fontsize=8)
    figure.suptitle(f"What uptraining gives back ({what})", fontsize=10)
    save(figure, "uptrain_gap.png")


def loss():
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=False)
    for axes, budget in zip(panels, (0.0, budgets[-1])):
        for number, model in enumerate(methods):
            line(axes, [(kv_bytes[h], over_seeds(model, h, budget, "bits_per_byte")) for h in heads], marker="o", markersize=4,
                 color=f"C{number}", label=model)
        line(axes, [(kv_bytes[h], over_seeds("scratch", h, 0.0, "bits_per_byte")) for h in heads], marker="s", markersize=4, color="black",
             linestyle="--", label="trained from scratch")
        line(axes, [(kv_bytes[heads[0]], over_seeds("continued", heads[0], budget, "bits_per_byte"))], marker="*", markersize=9, color="grey",
             linestyle="", label="multi-head, trained on likewise")
        axes.set_xscale("log", base=2)
        axes.set_xticks([kv_bytes[h] for h in heads], [f"{kv_bytes[h]}\n{h} KV" for h in heads])
        axes.set_xlabel("KV bytes a token (bf16)")
        axes.set_title("right after conversion" if budget == 0 else f"after uptraining for {budget:g}% of the steps", fontsize=10)
        axes.grid(True, linewidth=0.3)
    panels[0].set_ylabel("held-out bits per byte")
    figure.legend(*panels[1].get_legend_handles_labels(), fontsize=8, loc="lower center", ncol=len(methods) + 2)
    figure.suptitle(f"Loss against the size of the cache ({what})", fontsize=10)
    save(figure, "uptrain_loss.png", room_below=0.06)


gap()
loss()
