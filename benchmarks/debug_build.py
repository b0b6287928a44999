#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a debug build of a program costs: a decode step (32/8 heads, D = 128, 2048 cached bf16 tokens) and a prefill of 128 tokens, one
thread, processor time in milliseconds, the least of many. The program is compiled whole at -O2, whole at -O0, and at -O0 with its
kernels in a unit of their own at -O2.

    benchmarks/debug_build.py --compiler g++
"""

import argparse
import os
import subprocess
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--compiler", default="c++")
parser.add_argument("--rounds", type=int, default=3, help="how often each program is run, in turn (default: 3)")
options = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    def compiled(source, name, *flags):
        target = os.path.join(folder, name)
        command = [options.compiler, "-std=c++20", "-I" + os.path.join(here, "..", "include"), *flags, "-c", os.path.join(here, source)]
        subprocess.run([*command, "-o", target], check=True)
        return target

    calls = os.path.join("debug_build", "calls.cpp")
    kernels = compiled(os.path.join("..", "cmake", "kernels.cpp"), "kernels.o", "-O2")
    objects = {
        "-O2": [compiled(calls, "optimised.o", "-O2")],
        "-O0": [compiled(calls, "debug.o", "-O0")],
        "-O0, kernels at -O2": [compiled(calls, "caller.o", "-O0", "-DGQA_COMPILED_KERNELS"), kernels],
    }
    times = {}
    for name, units in objects.items():
        subprocess.run([options.compiler, *units, "-o", os.path.join(folder, name)], check=True)
    for _ in range(options.rounds):
        for name in objects:
            output = subprocess.run([os.path.join(folder, name)], check=True, stdout=subprocess.PIPE, text=True).stdout
            run = [float(number) for number in output.split()]
            times[name] = [min(pair) for pair in zip(times.get(name, run), run)]
    for name, (decode, prefill) in times.items():
        base = times["-O2"]
        print(f"{name:22} decode {decode:9.3f} ms ({decode / base[0]:6.2f} ×)   prefill {prefill:9.3f} ms ({prefill / base[1]:6.2f} ×)")
