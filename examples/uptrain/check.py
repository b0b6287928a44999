#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program's test: it is killed at random moments, again and again, and ends with the bytes of an undisturbed run; so it does with one, two
and three threads. The text is whichever is given: nothing is fetched.

    check.py uptrain folder text
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

program, work, text = sys.argv[1:4]
shutil.rmtree(work, ignore_errors=True)
os.makedirs(work)

OPTIONS = ["--text", text, "--steps", "60", "--batch", "4", "--context", "24", "--dim", "32", "--hidden", "48", "--layers", "2", "--heads", "4",
           "--kv-heads", "2,1", "--methods", "mean,aligned", "--budgets", "5,10", "--held-out", "8", "--calibration", "4",
           "--checkpoint-every", "7", "--decode-context", "64"]


def command(folder, *more):
    return [program, *OPTIONS, "--folder", os.path.join(work, folder), *more]


def finish(folder, *more):
    done = subprocess.run(command(folder, *more), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{folder}: ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def checkpoints(folder):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(work, folder).glob("*.checkpoint"))}


def compare(folder):
    found = checkpoints(folder)
    if found.keys() != expected.keys():
        sys.exit(f"{folder}: checkpoints are {sorted(found)}, not {sorted(expected)}")
    for name, data in found.items():
        if data != expected[name]:
            sys.exit(f"{folder}/{name}: not the bytes of the undisturbed run")


start = time.monotonic()
report = finish("undisturbed", "--threads", "1")
seconds = time.monotonic() - start
expected = checkpoints("undisturbed")
if len(expected) != 3 + 1 + 4 or "from scratch" not in report or "aligned" not in report:
    sys.exit(f"not the runs that were asked for: {sorted(expected)}\n{report}")
if (again := finish("undisturbed", "--threads", "1")).split("decode step")[0] != report.split("decode step")[0]:
    sys.exit(f"run again with all done:\n{again}\nnot\n{report}")
compare("undisturbed")

for threads in ("2", "3"):
    finish(f"threads{threads}", "--threads", threads)
    compare(f"threads{threads}")

# Killed within a third of the whole time; a few times before anything is done, too.
moments = random.Random(int(os.environ.get("GQA_UPTRAIN_SEED", "1")))
killed = 0
while killed < 40:
    with subprocess.Popen(command("killed", "--threads", str(1 + killed % 3)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(moments.uniform(0, seconds / 3))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        status = process.wait()
    if status == 0:
        break
    if status != -signal.SIGKILL:
        sys.exit(f"killed {killed} times, and then it ended with {status}")
finish("killed")
compare("killed")
if killed < 3:
    sys.exit(f"it was killed {killed} times only")

# Asked to stop, it says so, and goes on.
stopped = subprocess.run(command("stopped", "--stop-after", "11"), capture_output=True, text=True, check=False)
if stopped.returncode != 3 or "goes on from here" not in stopped.stderr:
    sys.exit(f"stopped: ended with {stopped.returncode}\n{stopped.stderr}")
with subprocess.Popen(command("stopped"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
    time.sleep(seconds / 4)
    process.terminate()
    status = process.wait()
if status not in (0, 3, -signal.SIGTERM):  # the last: before the handler was there
    sys.exit(f"terminated: ended with {status}")
finish("stopped")
compare("stopped")

# What is damaged is refused, and not written over.
victim = pathlib.Path(work, "stopped", "seed1-kv2-mean.checkpoint")
spoilt = bytearray(victim.read_bytes())
spoilt[len(spoilt) // 2] ^= 1
victim.write_bytes(spoilt)
refused = subprocess.run(command("stopped"), capture_output=True, text=True, check=False)
if refused.returncode != 2 or "seed1-kv2-mean.checkpoint: is damaged" not in refused.stderr or victim.read_bytes() != bytes(spoilt):
    sys.exit(f"damaged: ended with {refused.returncode}\n{refused.stderr}")
print(f"killed {killed} times, stopped twice, with 1 to 3 threads: the same bytes")
