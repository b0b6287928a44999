# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("gqa_torch", reason="examples/pytorch is not installed")
