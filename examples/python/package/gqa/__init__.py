# SPDX-License-Identifier: Apache-2.0
"""Grouped-query, multi-query and multi-head attention on CPUs, over NumPy arrays and whatever else has DLPack.

    attention = gqa.Attention(query_heads=32, kv_heads=8, head_dim=128)
    out = attention(q, (keys, values))

q is (tokens, 32, 128), keys and values are (tokens, 8, 128); the queries are the last tokens of the cache. Nothing is copied.
"""

from . import typing as typing
from ._gqa import *  # noqa: F403
from ._gqa import __version__ as __version__
