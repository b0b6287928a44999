# SPDX-License-Identifier: Apache-2.0
"""Attention on CPU tensors by the library gqa: torch.ops.gqa.attention, and "gqa" as an attention implementation of transformers.

Importing this registers the operators and, where transformers is installed, the attention implementation.
"""

import importlib.util
import warnings

from gqa_torch.ops import attention, attention_with_lse

__all__ = ["attention", "attention_with_lse"]

if importlib.util.find_spec("transformers") is not None:
    try:
        from gqa_torch.cache import GqaCache
        from gqa_torch.transformers import register
    except ImportError as error:  # the operators work without
        warnings.warn(f'gqa_torch: "gqa" is no attention implementation of this version of transformers: {error}', stacklevel=2)
    else:
        register()
        __all__ += ["GqaCache", "register"]
