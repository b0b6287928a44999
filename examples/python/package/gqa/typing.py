# SPDX-License-Identifier: Apache-2.0
"""Types of arguments, for annotations and type checkers."""

from __future__ import annotations

from typing import Any, Protocol, Sequence, Tuple, Union

from ._gqa import ContiguousKvCache, KvCacheView, PagedSequence, RingKvCache, Variant


class Array(Protocol):
    """An array on the CPU: NumPy's, PyTorch's, or any other that has DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


Cache = Union[KvCacheView, ContiguousKvCache, RingKvCache, PagedSequence, Tuple[Array, Array]]
VariantLike = Union[str, Variant, Sequence[Union[str, Variant]]]
