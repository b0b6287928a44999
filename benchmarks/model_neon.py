#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a model of AArch64 processors says of the NEON path's inner loops, where there is no such processor.

    python3 benchmarks/model_neon.py                                          # GCC and Clang, every processor
    python3 benchmarks/model_neon.py --compiler aarch64-linux-gnu-g++ --cpu neoverse-v2 --show 'prefill, QK'

Compiles a call for AArch64, finds the loops in the assembly that have the micro-kernels' multiply-adds, and lets llvm-mca work out how many
cycles an iteration takes. Printed for each loop: its multiply-adds (FMLA, of 4 floats) and instructions, accesses to the stack, and for each
processor the multiply-adds a cycle and their share of the limit. The limit is what the same model says of 24 multiply-adds that do not wait
for each other.

A model, not a measurement: loads hit the first-level cache, branches are foreseen, nothing comes before or after the loop, and what LLVM
knows of a processor may be wrong or of another one. In-order processors are modelled roughly. METHOD.md says more.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# Name, what the function's name has in it. A function with several loops that have as many multiply-adds is in the table several times.
LOOPS = (
    ("prefill, QK", r"score_panels<.*Dot<.*F32>, 4>"),
    ("prefill, PV", r"output_columns<4, .*Cached<.*F32, false>"),
    ("decode, QK, f32", r"score_strip<.*Dot<.*F32>, 4>"),
    ("decode, QK, bf16", r"score_strip<.*Dot<.*Bf16>, 4>"),
    ("decode, QK, f16", r"score_strip<.*Dot<.*F16>, 4>"),
    ("decode, PV, bf16", r"output_columns<4, .*Cached<.*Bf16, false>"),
    ("decode, PV, f16", r"output_columns<4, .*Cached<.*F16, false>"),
)
COMPILERS = ("aarch64-linux-gnu-g++", "clang++")
CPUS = ("neoverse-v2", "neoverse-v1", "neoverse-n1", "cortex-a72", "cortex-a55", "cortex-a53")
CONDITIONS = "eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|any|none|first|nlast|al"
BRANCH = re.compile(rf"(b(?:\.?(?:{CONDITIONS}))?|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.L\w+)$")


def fail(message):
    sys.exit(f"model_neon.py: {message}")


def newest_mca():
    """The newest llvm-mca of those that are installed; older ones know fewer processors."""
    for version in range(40, 14, -1):
        found = shutil.which(f"llvm-mca-{version}")
        if found:
            return found
    return shutil.which("llvm-mca")


def run(command, what, text=None):
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0 or "not a recognized" in done.stderr:  # an unknown processor is no error to LLVM
        fail(f"{what} failed: {' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout


def functions(assembly):
    """(name, lines) of each function."""
    name, lines = None, []
    for line in assembly.splitlines():
        label = re.match(r"^([A-Za-z_][\w.$]*):", line)
        if label and not label.group(1).startswith(".L"):
            if name:
                yield name, lines
            name, lines = label.group(1), []
        elif name:
            lines.append(line)
    if name:
        yield name, lines


def basic_blocks(lines):
    """A function's blocks of instructions, and the blocks that follow each."""
    blocks, block, starts = [], [], {}
    for line in lines:
        line = line.split("//")[0].rstrip()
        label = re.match(r"^(\.L\w+):", line)
        if label:
            if block:
                blocks.append(block)
                block = []
            starts[label.group(1)] = len(blocks)
        elif re.match(r"^\s+[a-z]", line):
            block.append(re.sub(r"\s+", " ", line.strip()))
            if BRANCH.match(block[-1]) or block[-1].split()[0] in ("ret", "br"):
                blocks.append(block)
                block = []
    if block:
        blocks.append(block)
    following = []
    for i, block in enumerate(blocks):
        branch, after = BRANCH.match(block[-1]), []
        if branch and branch.group(2) in starts:
            after.append(starts[branch.group(2)])
        if not (branch and branch.group(1) == "b") and block[-1].split()[0] not in ("ret", "br"):
            after.append(i + 1)
        following.append([b for b in after if b < len(blocks)])
    return blocks, following


def natural_loops(following):
    """first block → (blocks of the loop, those that jump back): by dominators."""
    before = [[] for _ in following]
    for i, after in enumerate(following):
        for b in after:
            before[b].append(i)
    reached, stack = {0}, [(0, iter(following[0]))]
    order = []
    while stack:
        block, rest = stack[-1]
        for b in rest:
            if b not in reached:
                reached.add(b)
                stack.append((b, iter(following[b])))
                break
        else:
            order.append(block)
            stack.pop()
    order.reverse()
    every = (1 << len(following)) - 1
    dominators = [every] * len(following)  # as sets of bits
    dominators[0] = 1
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            common = every
            for b in before[block]:
                if b in reached:
                    common &= dominators[b]
            common |= 1 << block
            changed |= common != dominators[block]
            dominators[block] = common
    loops = {}
    for block in order:
        for first in following[block]:
            if dominators[block] >> first & 1:
                inside, stack = {first, block}, [block]
                while stack:
                    b = stack.pop()
                    if b == first:
                        continue
                    for p in before[b]:
                        if p in reached and p not in inside:
                            inside.add(p)
                            stack.append(p)
                body, back = loops.setdefault(first, (set(), set()))
                body |= inside
                back.add(block)
    return loops


def products(instructions):
    return sum(i.startswith("fmla ") for i in instructions)


def usual_way(blocks, following, first, body, back, left_out):
    """The instructions on the way through a loop that has the most multiply-adds; of those, the shortest."""
    known = {}

    def best(block, seen):
        if block in known:
            return known[block]
        ways = [((0, 0), ())] if block in back else []
        for b in following[block]:
            if b in body and b != first and b not in left_out and b not in seen:
                way = best(b, seen | {b})
                if way:
                    ways.append(way)
        known[block] = None
        if ways:
            (count, length), blocks_after = max(ways, key=lambda way: way[0])
            known[block] = ((count + products(blocks[block]), length - len(blocks[block])), (block, *blocks_after))
        return known[block]

    way = best(first, frozenset((first,)))
    return [i for b in way[1] for i in blocks[b]] if way else []


def inner_loops(lines):
    """The innermost loops of a function that have as many multiply-adds as any has."""
    blocks, following = basic_blocks(lines)
    if not blocks:
        return []
    loops = natural_loops(following)
    found = []
    for first, (body, back) in loops.items():
        nested = [inside for other, (inside, _) in loops.items() if other != first and inside < body]
        if any(products(blocks[b]) for inside in nested for b in inside):
            continue  # not the innermost
        found.append(usual_way(blocks, following, first, body, back, set().union(*nested)))
    most = max(map(products, found), default=0)
    kept = []
    for loop in found:
        shape = [i.split()[0] for i in loop]
        if products(loop) == most > 0 and shape not in [[i.split()[0] for i in other] for other in kept]:
            kept.append(loop)
    return kept


def cycles(mca, cpu, instructions, iterations=200):
    """Of one iteration. A jump's target is of no interest to the model, but it must be one."""
    code = [f"{BRANCH.match(i).group(1)} 0" if BRANCH.match(i) and BRANCH.match(i).group(1).startswith("b") else i for i in instructions]
    code = [re.sub(r"\.L\w+$", "0", i) for i in code if ":lo12:" not in i]
    command = [mca, "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={iterations}"]
    out = run(command, "llvm-mca", "\n".join(code) + "\n")
    return int(re.search(r"Total Cycles:\s+(\d+)", out).group(1)) / iterations


def compiled(compiler, include, folder):
    target = ["--target=aarch64-linux-gnu"] if "clang" in os.path.basename(compiler) else []
    path = os.path.join(folder, "call.s")
    source = os.path.join(HERE, "model_neon", "kernels.cpp")
    run([compiler, *target, "-std=c++20", "-O2", f"-I{include}", "-S", source, "-o", path], f"compiling with {compiler}")
    with open(path, encoding="utf-8") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", action="append", help=f"as often as there are compilers (default: of {', '.join(COMPILERS)} those there are)")
    parser.add_argument("--cpu", action="append", help=f"as LLVM names processors (default: {', '.join(CPUS)})")
    parser.add_argument("--mca", help="llvm-mca of LLVM 16 or newer (default: the newest there is)")
    parser.add_argument("--include", default=os.path.join(HERE, "..", "include"), help="folder of gqa/")
    parser.add_argument("--show", help="prints the instructions of the loops of this name, too")
    options = parser.parse_args()

    mca = options.mca or newest_mca()
    if options.mca and not shutil.which(options.mca):
        fail(f"there is no {options.mca}")
    if not mca:
        fail("there is no llvm-mca: Debian has it in llvm-19 (or llvm-16)")
    compilers = options.compiler or [c for c in COMPILERS if shutil.which(c)]
    if not compilers:
        fail("there is no compiler for AArch64: Debian has g++-aarch64-linux-gnu; Clang needs that one's headers")
    for compiler in compilers:
        if not shutil.which(compiler):
            fail(f"there is no {compiler}")
    version = re.search(r"version (\S+)", run([mca, "--version"], mca)).group(1)
    cpus = options.cpu or CPUS
    independent = [f"fmla v{i}.4s, v30.4s, v31.4s" for i in range(24)]
    limits = {cpu: 24 / cycles(mca, cpu, independent) for cpu in cpus}

    print(f"llvm-mca {version}; a model, not a measurement. Multiply-adds a cycle, and percent of the processor's limit.\n")
    print("| loop | compiler | FMLA | instructions | of the stack | " + " | ".join(cpus) + " |")
    print("|---|---|---:|---:|---:|" + "---:|" * len(cpus))
    print("| limit | | | | | " + " | ".join(f"{limits[cpu]:.2f}" for cpu in cpus) + " |")
    for compiler in compilers:
        with tempfile.TemporaryDirectory() as folder:
            code = dict(functions(compiled(compiler, options.include, folder)))
        demangled = run(["c++filt"], "c++filt", "\n".join(code) + "\n").splitlines()
        for name, pattern in LOOPS:
            found = [lines for readable, lines in zip(demangled, code.values()) if re.search("::neon::" + pattern, readable)]
            loops = [loop for lines in found for loop in inner_loops(lines)]
            if not loops:
                fail(f"{compiler}: no loop with multiply-adds in a function like {pattern}: have the kernels been renamed?")
            for loop in loops:
                rates = {cpu: products(loop) / cycles(mca, cpu, loop) for cpu in cpus}
                stack = sum("[sp" in i for i in loop)
                row = [name, os.path.basename(compiler), products(loop), len(loop), stack]
                row += [f"{rates[cpu]:.2f} ({100 * rates[cpu] / limits[cpu]:.0f}%)" for cpu in cpus]
                print("| " + " | ".join(map(str, row)) + " |")
                if options.show == name:
                    print("\n".join("    " + i for i in loop))


if __name__ == "__main__":
    main()
