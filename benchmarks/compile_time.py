#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times the compiler on units that use the library, as a benchmark: results in Google Benchmark's JSON format, its options where they
mean something here. -O2 and no -m flags, whatever the build has.

    compile/include/gcc12/O2                             a unit that includes <gqa/gqa.hpp> and does nothing
    compile/static_functor_bf16/…                        a unit that calls one GroupedQueryAttention<32, 8, 128, 128, CacheOf<bf16>>
    compile/static_functor_bf16_int8/…, …_q8_0/…         the same with a codec more: CacheOf<bf16, Int8>; 1.5 seconds more are allowed
    compile/static_functor_every_type/…                  the first without CacheOf: the functor takes caches of every type
    compile/dynamic_functor_every_type/…                 a DynamicAttention
    compile/static_functor_compiled_kernels/…            the functor of bf16 caches with GQA_COMPILED_KERNELS: the kernels are in another unit

The units are compiled in turn, round after round; reported are medians. percent_of_limit is the time aimed for over the time taken.
"""

import argparse
import datetime
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import tempfile
import time

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "compile_time")
# Name, source, flags, seconds that the time is held against, whether those are a target.
UNITS = (
    ("include", "include.cpp", [], 1.5, True),
    ("static_functor_bf16", "functor.cpp", [], 6.0, True),
    ("static_functor_bf16_int8", "functor.cpp", ["-DCODEC=gqa::Int8"], 7.5, True),
    ("static_functor_bf16_q8_0", "functor.cpp", ["-DCODEC=gqa::Q8_0"], 7.5, True),
    ("static_functor_every_type", "functor.cpp", ["-DANY_CACHE"], 6.0, False),
    ("dynamic_functor_every_type", "functor.cpp", ["-DANY_SHAPE"], 6.0, False),
    ("static_functor_compiled_kernels", "functor.cpp", ["-DGQA_COMPILED_KERNELS"], 6.0, False),
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
parser.add_argument("--compiler", required=True)
parser.add_argument("--compiler-name", required=True, help="for names: gcc12")
parser.add_argument("--include", required=True, help="folder of gqa/")
parser.add_argument("--size", default="size", help="binutils' program of that name")
parser.add_argument("--rounds", type=int, default=3, help="how often each unit is compiled (default: 3)")
parser.add_argument("--gqa_processor_time", action="store_true", help="the compiler's processor time instead of time on the wall")
parser.add_argument("--benchmark_filter", default="", help="a regular expression; one that begins with - leaves out what it matches")
parser.add_argument("--benchmark_out", help="the JSON file")
options, others = parser.parse_known_args()  # others are for the programs: --gqa_seconds=…
for other in others:
    if not other.startswith(("--benchmark_", "--gqa_")):
        parser.error(f"unrecognized argument: {other}")


def chosen(name):
    expression = options.benchmark_filter
    if expression in ("", "all"):
        return True
    if expression.startswith("-"):
        return not re.search(expression[1:], name)
    return bool(re.search(expression, name))


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compile_once(source, flags, target):
    """Returns (seconds on the wall, seconds of processor time)."""
    command = [options.compiler, "-std=c++20", "-O2", f"-I{options.include}", *flags]
    command += ["-c", os.path.join(FOLDER, source), "-o", target]
    environment = {**os.environ, "CCACHE_DISABLE": "1"}  # the compiler may be a link to ccache
    wall, processor = time.perf_counter(), processor_seconds()
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - wall, processor_seconds() - processor


def text_bytes(target):
    run = subprocess.run([options.size, "--format=berkeley", target], stdout=subprocess.PIPE, text=True, check=True)
    return int(run.stdout.splitlines()[1].split()[0])  # below the heading "text data …"


def entry(name, limit, is_target, samples, text):
    wall, processor = (statistics.median(side) for side in zip(*samples))
    seconds = processor if options.gqa_processor_time else wall
    result = {
        "name": name,
        "run_name": name,
        "run_type": "iteration",
        "repetitions": 1,
        "repetition_index": 0,
        "threads": 1,
        "iterations": len(samples),
        "real_time": seconds * 1e6,
        "cpu_time": processor * 1e6,
        "time_unit": "us",
        "label": f"{limit:g} s",
        "object_text_bytes": text,
        "percent_of_limit": 100 * limit / seconds,
        "seconds": seconds,
    }
    if is_target:
        result["target_percent"] = 100
    return result


units = [(f"compile/{name}/{options.compiler_name}/O2", *rest) for name, *rest in UNITS]
units = [unit for unit in units if chosen(unit[0])]

all_samples = [[] for _ in units]
sizes = [0 for _ in units]
with tempfile.TemporaryDirectory() as objects:
    for _ in range(max(options.rounds, 1)):
        for number, (name, source, flags, _, _) in enumerate(units):
            target = os.path.join(objects, f"{number}.o")
            all_samples[number].append(compile_once(source, flags, target))
            sizes[number] = text_bytes(target)

entries = []
for (name, _, _, limit, is_target), samples, text in zip(units, all_samples, sizes):
    result = entry(name, limit, is_target, samples, text)
    entries.append(result)
    reached = f"{result['percent_of_limit']:6.1f}% of {result['label']}" + (" (target 100%)" if is_target else "")
    print(f"{name:58} {result['seconds']:8.3f} s  {text:8} bytes of text         {reached}", flush=True)

if options.benchmark_out and entries:
    context = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "host_name": socket.gethostname(),
        "executable": options.compiler,
        "num_cpus": os.cpu_count(),
        "gqa_clock": "processor time" if options.gqa_processor_time else "wall",
    }
    with open(options.benchmark_out, "w", encoding="utf-8") as file:
        json.dump({"context": context, "benchmarks": entries}, file, indent=2)
        file.write("\n")
