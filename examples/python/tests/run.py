# SPDX-License-Identifier: Apache-2.0
"""Runs these tests where the package is installed for this Python, and says what is missing where it is not (status 77)."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    for needed in ("numpy", "pytest", "gqa._gqa"):
        try:
            found = importlib.util.find_spec(needed)
        except ModuleNotFoundError:  # of what it is a part of
            found = None
        if found is None:
            print(
                f"{sys.executable} has no {needed.split('.')[0]}: the Python package was not tested. "
                f"{sys.executable} -m pip install {HERE.parent} pytest would have it."
            )
            return 77
    import pytest

    os.chdir(HERE)
    return int(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", str(HERE)]))


if __name__ == "__main__":
    sys.exit(main())
