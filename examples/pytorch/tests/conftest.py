# SPDX-License-Identifier: Apache-2.0
import importlib.util

collect_ignore_glob = []
for name in ("torch", "gqa_torch"):
    if importlib.util.find_spec(name) is None:  # nothing is collected, and pytest says so by its exit status
        print(f"skipped: {name} is not installed; see examples/pytorch/README.md")
        collect_ignore_glob = ["test_*.py"]
