# SPDX-License-Identifier: Apache-2.0
"""Types of arguments, for annotations and type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Sequence, Tuple, Union


class Array(Protocol):
    """An array on the CPU: NumPy's, PyTorch's, or any other that has DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


if TYPE_CHECKING:
    from ._gqa import ContiguousKvCache, KvCacheView, PagedSequence, RingKvCache, Variant

    Cache = Union[KvCacheView, ContiguousKvCache, RingKvCache, PagedSequence, Tuple[Array, Array]]
    VariantLike = Union[str, Variant, Sequence[Union[str, Variant]]]
