# SPDX-License-Identifier: Apache-2.0
"""Runs these tests; exit status 77: torch, pytest or the built package is not installed, nothing was tested."""

import importlib.util
import subprocess
import sys
from pathlib import Path

for name in ("torch", "pytest", "gqa_torch"):
    if importlib.util.find_spec(name) is None:
        print(f"skipped: {name} is not installed; see examples/pytorch/README.md")
        sys.exit(77)
sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-q", *sys.argv[1:]], cwd=Path(__file__).parent))
