# SPDX-License-Identifier: Apache-2.0
"""The package as such: its stubs, its budget, what it says of the processor, and that the README's example runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gqa

HERE = Path(__file__).parent

RIGHT = """
from typing import Sequence
import numpy as np
import gqa

def step(attention: gqa.Attention, q: np.ndarray, caches: Sequence[gqa.PagedSequence]) -> None:
    attention.batch(q, caches, ["causal", gqa.soft_cap(50.0)], tokens=[1] * len(caches), threads=gqa.ThreadPool(2))
    attention(q, (q, q), gqa.causal_window(4), lse=True, scale=0.1)
    attention(q, gqa.KvCacheView.contiguous(q, q, layout="head_major"))

pool = gqa.PagedKvPool(8, 128, 100, page_size=16, k_type="int8")
bytes_taken: int = pool.bytes
pages: list[int] = pool.sequence().fork().pages
tokens: int | None = gqa.ModelShape.preset("llama-3.1-8b").longest_context(1 << 30)
"""
WRONG = [
    ('gqa.Attention("eight")', "arg-type"),
    ("gqa.Attention(8)(1, 2)", "arg-type"),
    ("gqa.causal_window(4).window", "attr-defined"),
    ("gqa.PagedKvPool(8, 128, 100, pages_size=3)", "call-arg"),
    ("x: str = gqa.ContiguousKvCache(1, 2, 3).bytes", "assignment"),
]


def mypy(path):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(path.parent / "cache"), str(path)],
        capture_output=True,
        text=True,
        cwd=path.parent,
    )


def test_stubs(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed: the stubs were not checked")
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    ran = mypy(right)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    wrong.write_text("import gqa\n" + "\n".join(line for line, _ in WRONG) + "\n")
    found = mypy(wrong).stdout.splitlines()
    for number, (line, kind) in enumerate(WRONG, 2):
        assert any(text.startswith(f"wrong.py:{number}:") and f"[{kind}]" in text for text in found), (line, found)


def test_stubs_are_of_what_there_is():
    folder = Path(gqa.__file__).parent
    assert (folder / "py.typed").exists()
    names = set(re.findall(r"^(?:class|def) (\w+)", (folder / "_gqa.pyi").read_text(), re.M))
    assert names == {name for name in dir(gqa._gqa) if not name.startswith("_")}
    for name in names:
        assert getattr(gqa, name).__doc__, name


def test_the_readme_runs(tmp_path):
    text = (HERE.parent / "README.md").read_text()
    example = tmp_path / "example.py"
    example.write_text(re.search(r"```python\n(.*?)```", text, re.S).group(1))
    ran = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "131072 65536 524288"


def test_the_readme_names_everything():
    text = (HERE.parent / "README.md").read_text()
    for name in dir(gqa._gqa):
        if not name.startswith("_") and name not in ("full", "causal", "Variant", "compose", "KvCacheView"):
            assert f"`{name}" in text or f"`gqa.{name}" in text, name


def test_the_benchmark_runs():
    ran = subprocess.run(
        [sys.executable, str(HERE.parent / "decode.py"), "--context", "300", "--repeats", "2"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "MQA" in ran.stdout


def test_paths():
    assert gqa.active_path() in gqa.paths() and gqa.paths()[0] == "portable"
    assert gqa.active_path_reason() and re.fullmatch(r"\d+\.\d+\.\d+", gqa.__version__)
    ran = subprocess.run(
        [sys.executable, "-c", "import gqa; print(gqa.active_path())"],
        capture_output=True,
        text=True,
        env={"GQA_PATH": "portable", "PYTHONPATH": ":".join(sys.path)},
    )
    assert ran.stdout.strip() == "portable", ran.stderr


def test_budget():
    model = gqa.ModelShape()
    model.add_layers(24, query_heads=32, kv_heads=8, head_dim=128)
    model.add_layers(8, query_heads=32, kv_heads=8, head_dim=128, window=1024)
    plan = gqa.KvPlan("int8", "q4_0")
    token = 8 * ((128 + 4) + 4 * 18)  # a row of int8 and its scale; four blocks of 18 bytes
    assert model.layers == 32
    assert model.bytes_per_token(plan) == 32 * token
    assert model.sequence_bytes(5000, plan) == token * (24 * 5000 + 8 * 1024)
    fits = model.longest_context(10**9, 2, plan)
    assert 2 * model.sequence_bytes(fits, plan) <= 10**9 < 2 * model.sequence_bytes(fits + 1, plan)
    assert model.most_sequences(10**9, fits, plan) == 2
    assert model.with_kv_heads(1).bytes_per_token(plan) == 4 * token
    assert model.most_kv_heads(model.sequence_bytes(5000, plan), 5000, plan=plan) == 8
    assert model.widest_format(model.sequence_bytes(5000, gqa.KvPlan("q5_1")), 5000) == "q5_1"
    assert model.widest_format(1, 5000) is None and model.most_kv_heads(1, 5000) is None
    windows = gqa.ModelShape()
    windows.add_layers(2, query_heads=2, kv_heads=1, head_dim=8, window=16)
    assert windows.longest_context(10**6) is None
    assert gqa.devices_needed(100, 30) == 4
    assert "llama-3.1-8b" in gqa.presets()
    with pytest.raises(gqa.Error, match="preset is llama-9"):
        gqa.ModelShape.preset("llama-9")
    with pytest.raises(gqa.Error, match="kv_heads is 3; expected a divisor of the 32 query heads"):
        model.with_kv_heads(3)
