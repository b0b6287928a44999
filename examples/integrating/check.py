# SPDX-License-Identifier: Apache-2.0
"""Holds the C++ of integrating.md to the program that is compiled and run: each block is the lines between a marker `// [name]` of one of
the files and the next marker, without their indentation; and each marked part is on the page.

    check.py integrating.md main.cpp no_exceptions.cpp
"""

import re
import sys
import textwrap


def marked_parts(path):
    parts = {}
    name = None
    for line in open(path, encoding="utf-8"):
        marker = re.fullmatch(r"\s*// \[(.*)\]\n", line)
        if marker:
            name = marker.group(1) or None
        elif name:
            parts[name] = parts.get(name, "") + line
    return {name: textwrap.dedent(text).strip("\n") for name, text in parts.items()}


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    page = open(sys.argv[1], encoding="utf-8").read()
    blocks = [block.strip("\n") for block in re.findall(r"^```cpp\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)]
    parts = {}
    for path in sys.argv[2:]:
        parts.update(marked_parts(path))
    if not blocks or not parts:
        sys.exit("no blocks, or no marked parts")
    wrong = [f"in no program:\n{block}" for block in blocks if block not in parts.values()]
    wrong += [f"not on the page: [{name}]\n{text}" for name, text in parts.items() if text not in blocks]
    if wrong:
        sys.exit("\n\n".join(wrong))
    print(f"{len(blocks)} blocks, all compiled")


main()
