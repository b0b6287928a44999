#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions of fixed attention calls under callgrind and compares them with stored counts. Other programs on the
machine do not change a count, so that a small difference means something even where no time can be measured.

    guard.py check      compares; exit status 1: something differs by more than 3%, 77: nothing to compare with, or cannot count
    guard.py store      writes the counts as the new stored ones
    guard.py self-test  the comparison itself

Needs valgrind, which knows no instruction set above AVX2: the AVX-512 and AMX paths cannot be counted.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

PATHS = ("portable", "avx2")
TOLERANCE_PERCENT = 3
SKIPPED = 77  # ctest's SKIP_RETURN_CODE; guard_calls says with it that it cannot run here


class CannotCount(Exception):
    """This machine has not what the counts need."""


def count(valgrind, calls, path):
    """Runs guard_calls under callgrind. Returns {name of problem: instructions}."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "counts")
        run = subprocess.run(
            [valgrind, "--quiet", "--tool=callgrind", "--toggle-collect=counted_call", "--dump-after=counted_call",
             f"--callgrind-out-file={out}", calls, path],
            stdout=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "GQA_STREAMING": "prefetched"})  # else the processor would decide, and with it the counts
        lines = run.stdout.splitlines()
        names = [line for line in lines if not line.startswith("#")]
        for line in lines:
            if line.startswith("#"):
                print(f"{path}: under valgrind {line[1:].strip()}")
        if run.returncode == SKIPPED:
            raise CannotCount(f"this processor has not what the path {path} needs")
        if run.returncode != 0 or not names:
            sys.exit(f"guard_calls {path} failed under {valgrind}: exit status {run.returncode}")
        parts = glob.glob(out + ".*")
        if len(parts) != len(names):
            sys.exit(f"callgrind wrote {len(parts)} counts of {len(names)} problems: is counted_call() called once for each?")
        return {name: instructions_in(f"{out}.{number}") for number, name in enumerate(names, 1)}


def instructions_in(file_name):
    with open(file_name, encoding="utf-8") as file:
        for line in file:
            if line.startswith("summary:"):
                return int(line.split()[1])
    sys.exit(f"no summary in callgrind's file {file_name}")


def compare(stored, counted):
    """Prints a line for each problem. Returns the complaints: (what is wrong, a sentence)."""
    complaints = []
    for name in list(stored) + [name for name in counted if name not in stored]:
        before, now = stored.get(name), counted.get(name)
        percent = None if not before or now is None else 100 * (now - before) / before
        if percent is None:
            kind = "missing"
            sentence = f"{name}: stored {before if before else 'nothing'}, counted {'nothing' if now is None else now}"
        else:
            kind = "more" if percent > TOLERANCE_PERCENT else "fewer" if percent < -TOLERANCE_PERCENT else None
            sentence = f"{name}: stored {before}, counted {now}, {percent:+.2f}%"
        if kind:
            complaints.append((kind, sentence))
        print(("  DIFFERS  " if kind else "  ok       ") + sentence)
    return complaints


def explain(complaints, update_command):
    """What to do about them."""
    advice = {
        "more": f"with over {TOLERANCE_PERCENT}% more instructions than stored. Make them as few as they were; or, if it must be so, say why "
                "in the commit that stores the new counts",
        "fewer": f"with over {TOLERANCE_PERCENT}% fewer instructions than stored. Good; store the new counts, so that the gain is guarded too",
        "missing": "stored but not counted, or counted but not stored. Store the counts of the problems as they are now",
    }
    for kind, what in advice.items():
        sentences = [sentence for one, sentence in complaints if one == kind]
        if sentences:
            print(f"\nProblems {what}:\n    {update_command}")
            for sentence in sentences:
                print(f"  {sentence}")


def read(file_name):
    if not os.path.exists(file_name):
        return {}
    with open(file_name, encoding="utf-8") as file:
        return json.load(file)


def check(options):
    entry = read(options.stored).get(options.build)
    if entry is None:
        print(f"skipped: no counts are stored for \"{options.build}\". To store this build's:\n    {options.update_command}")
        return SKIPPED
    stored = {name: value for name, value in entry["instructions"].items() if name.endswith("/" + options.path)}
    made_by = {"compiler": options.compiler, "valgrind": valgrind_version(options.valgrind)}
    for tool, version in made_by.items():
        if entry[tool] != version:
            print(f"note: the stored counts are from {entry[tool]}, this is {version}")
    try:
        counted = count(options.valgrind, options.calls, options.path)
    except CannotCount as reason:
        print(f"skipped: {reason}")
        return SKIPPED
    complaints = compare(stored, counted)
    explain(complaints, options.update_command)
    return 1 if complaints else 0


def store(options):
    counted = {}
    try:
        for path in PATHS:
            counted.update(count(options.valgrind, options.calls, path))
    except CannotCount as reason:
        sys.exit(f"nothing stored: {reason}")
    everything = read(options.stored)
    compare(everything.get(options.build, {"instructions": {}})["instructions"], counted)
    everything[options.build] = {
        "compiler": options.compiler,
        "valgrind": valgrind_version(options.valgrind),
        "instructions": counted,
    }
    with open(options.stored, "w", encoding="utf-8") as file:
        json.dump(dict(sorted(everything.items())), file, indent=2)
        file.write("\n")
    print(f"stored for \"{options.build}\" in {options.stored}")
    return 0


def valgrind_version(valgrind):
    return subprocess.run([valgrind, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def self_test(_):
    stored = {"same": 1000, "3% more": 1000, "over 3% more": 1000, "3% fewer": 1000, "over 3% fewer": 1000, "gone": 1000}
    counted = {"same": 1000, "3% more": 1030, "over 3% more": 1031, "3% fewer": 970, "over 3% fewer": 969, "new": 1000}
    complaints = compare(stored, counted)
    explain(complaints, "(the command that stores them)")
    found = [(kind, sentence.split(":")[0]) for kind, sentence in complaints]
    expected = [("more", "over 3% more"), ("fewer", "over 3% fewer"), ("missing", "gone"), ("missing", "new")]
    print("\nas expected" if found == expected else f"\nexpected {expected}, found {found}")
    return 0 if found == expected else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, action in (("check", check), ("store", store)):
        command = commands.add_parser(name)
        command.set_defaults(action=action)
        command.add_argument("--calls", required=True, help="the program guard_calls")
        command.add_argument("--stored", required=True, help="the JSON file of stored counts")
        command.add_argument("--build", required=True, help="compiler and flags: what the stored counts belong to")
        command.add_argument("--compiler", required=True, help="the compiler's exact version")
        command.add_argument("--valgrind", default="valgrind")
        command.add_argument("--update-command", default="guard.py store …", help="for messages")
        if name == "check":
            command.add_argument("--path", required=True, choices=PATHS)
    commands.add_parser("self-test").set_defaults(action=self_test)
    options = parser.parse_args()
    return options.action(options)


if __name__ == "__main__":
    sys.exit(main())
