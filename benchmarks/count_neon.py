#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the AArch64 instructions that a decode step takes for a cached token, under QEMU: one KV head with 4 query heads, D = 128.

    python3 benchmarks/count_neon.py
    python3 benchmarks/count_neon.py --ggml-include ggml/include --ggml-lib build/src build/src/libggml-cpu.a …

A program makes one call more and one call less over 1024 tokens, and over 2048; the differences of differences, divided by 1024, are what a
token costs: neither the program's start nor what a call begins and ends with is in them. Besides the library there is a plain loop of
intrinsics that checks, plans and prefetches nothing (model_neon/plain.cpp), and llama.cpp's operator if its static libraries are given.

Counts, not times: how instructions overlap and how memory is read is not in them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(HERE, "model_neon")
OURS = {"f32": "float", "bf16": "gqa::bf16", "f16": "gqa::f16"}
PLAIN = {"f32": ["-DGQA_COUNTED_BITS=32"], "bf16": ["-DGQA_COUNTED_BITS=16"], "f16": ["-DGQA_COUNTED_BITS=16", "-DGQA_COUNTED_F16"]}
GGML = {"f32": "GGML_TYPE_F32", "bf16": "GGML_TYPE_BF16", "f16": "GGML_TYPE_F16"}


def fail(message):
    sys.exit(f"count_neon.py: {message}")


def instructions(qemu, program, tokens, calls):
    """QEMU logs each block of instructions that it runs, and with -singlestep a block is one instruction."""
    command = [qemu, "-singlestep", "-d", "nochain,exec", "-D", "/dev/stderr", program, str(tokens), str(calls)]
    count = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        rest = b""
        while piece := run.stderr.read(1 << 20):
            piece = rest + piece
            count += piece.count(b"Trace ")
            rest = piece[-5:]  # the word may go on in the next piece; it is longer than this
    if run.returncode != 0 or count == 0:
        fail(f"{' '.join(command)} ended with {run.returncode}; {count} instructions were counted (QEMU 7 logs them so)")
    return count


def per_token(qemu, program, few, many):
    cost = [instructions(qemu, program, n, 2) - instructions(qemu, program, n, 1) for n in (few, many)]
    return (cost[1] - cost[0]) / (many - few)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="aarch64-linux-gnu-g++")
    parser.add_argument("--qemu", default="qemu-aarch64")
    parser.add_argument("--include", default=os.path.join(HERE, "..", "include"), help="folder of gqa/")
    parser.add_argument("--types", default="f32,bf16,f16")
    parser.add_argument("--tokens", type=int, nargs=2, default=(1024, 2048), metavar=("FEW", "MANY"))
    parser.add_argument("--ggml-include", help="folder of ggml.h")
    parser.add_argument("--ggml-lib", nargs="+", help="static libraries of a ggml compiled for AArch64, in the linker's order")
    options = parser.parse_args()
    for program, package in ((options.compiler, "g++-aarch64-linux-gnu"), (options.qemu, "qemu-user")):
        if not shutil.which(program):
            fail(f"there is no {program}: Debian has it in {package}")
    if bool(options.ggml_include) != bool(options.ggml_lib):
        fail("--ggml-include and --ggml-lib go together")
    target = ["--target=aarch64-linux-gnu"] if "clang" in os.path.basename(options.compiler) else []
    common = [options.compiler, *target, "-std=c++20", "-O2", "-static"]

    print("| cache | gqa | plain intrinsics | gqa ÷ plain |" + (" llama.cpp | llama.cpp ÷ gqa |" if options.ggml_lib else ""))
    print("|---|---:|---:|---:|" + ("---:|---:|" if options.ggml_lib else ""))
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.types.split(","):
            if kind not in OURS:
                fail(f"--types: {kind} is none of {', '.join(OURS)}")
            sides = {"kernels.cpp": [f"-I{options.include}", f"-DGQA_COUNTED_TYPE={OURS[kind]}"], "plain.cpp": PLAIN[kind]}
            if options.ggml_lib:
                sides["ggml.cpp"] = [f"-I{options.ggml_include}", f"-DGQA_COUNTED_GGML={GGML[kind]}"]
            counts = []
            for source, flags in sides.items():
                program = os.path.join(folder, source + ".program")
                libraries = [*options.ggml_lib, "-lpthread", "-ldl"] if source == "ggml.cpp" else []
                command = [*common, *flags, os.path.join(FOLDER, source), "-o", program, *libraries]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                if done.returncode != 0:
                    fail(f"compiling failed: {' '.join(command)}\n{done.stderr.strip()}")
                counts.append(per_token(options.qemu, program, *options.tokens))
            row = [kind, f"{counts[0]:.0f}", f"{counts[1]:.0f}", f"{counts[0] / counts[1]:.2f}"]
            row += [f"{counts[2]:.0f}", f"{counts[2] / counts[0]:.2f}"] if options.ggml_lib else []
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
