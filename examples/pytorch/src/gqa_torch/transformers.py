# SPDX-License-Identifier: Apache-2.0
"""transformers' attention and mask interfaces: attn_implementation="gqa"."""

import torch
from transformers import AttentionInterface
from transformers.masking_utils import (
    AttentionMaskInterface,
    bidirectional_mask_function,
    causal_mask_function,
    is_tracing,
    prepare_padding_mask,
    sdpa_mask,
)

from gqa_torch.cache import EncodedTensor, attend
from gqa_torch.ops import attention
from gqa_torch.without_data import TensorWithoutData


class DescribedMask(TensorWithoutData):
    """A mask that is a rule: causal or not, a window, where sequences start and end; (batch, 1, n_q, n_kv) in shape, without n_q × n_kv
    elements. What else than "gqa" uses it is given the boolean mask itself, made at that moment."""

    def materialise(self):
        if self.made is None:
            self.made = self.make()
        return self.made


def rule_of(mask_function):
    """(causal, window) of those of transformers' mask functions that are a rule for all sequences and heads; None for any other."""
    if mask_function is causal_mask_function:
        return True, 0
    if mask_function is bidirectional_mask_function:
        return False, 0
    cells = getattr(mask_function, "__closure__", None) or ()
    parts = cells[0].cell_contents if len(cells) == 1 else None
    if (
        mask_function.__qualname__.startswith("and_masks.")
        and isinstance(parts, tuple)
        and len(parts) == 2
        and parts[0].__qualname__.startswith("sliding_window_overlay.")
        and parts[1] is causal_mask_function
    ):
        return True, int(parts[0].__closure__[0].cell_contents)
    return None


def gqa_mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function, attention_mask=None, **others):
    """The mask interface: a DescribedMask where the mask is a rule with or without padding, else a boolean (batch, 1, n_q, n_kv)."""

    def make():
        arguments = dict(others, allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **arguments)

    if torch.compiler.is_compiling() or is_tracing(attention_mask) or is_tracing(q_offset):
        return make()
    rule = rule_of(mask_function)
    if rule is None:
        return make()
    causal, window = rule
    end = min(int(q_offset) + q_length - kv_offset, kv_length) if causal else kv_length  # behind it a static cache holds nothing yet
    mask = DescribedMask((batch_size, 1, q_length, kv_length), torch.bool)
    mask.make, mask.made = make, None
    mask.causal, mask.window = causal, window
    mask.keys = mask.starts = None
    mask.lengths = torch.full((batch_size,), end) if end != kv_length else None
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is None:
        return mask
    padding = padding[:, kv_offset : kv_offset + end].bool()
    if bool(padding.all()):
        return mask
    count = padding.sum(1)
    first = torch.where(count > 0, padding.int().argmax(1), end)
    last = torch.where(count > 0, end - padding.flip(1).int().argmax(1), end)
    if bool((last - first == count).all()) and (not causal or bool((last == end).all())):
        mask.starts, mask.lengths = first, last
    else:  # holes, or padding that a query stands behind
        mask.keys = torch.nn.functional.pad(padding, (0, kv_length - end))[:, None, None, :]
    return mask


def gqa_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, is_causal=None, sliding_window=None, softcap=None,
                  s_aux=None, position_bias=None, **_):
    """The attention interface: query (batch, heads, n_q, D), key and value (batch, KV heads, n_kv, D or Dv), or what a GqaCache returned.

    Returns (batch, n_q, heads, Dv) and None: no weights are ever there.
    """
    if dropout and module.training:
        raise ValueError(f"gqa: dropout is {dropout}; expected 0 in training: set attention_dropout = 0 in the model's configuration")
    settings = dict(scale=scaling, soft_cap=softcap or 0.0, sinks=s_aux)
    mask = attention_mask
    if isinstance(mask, DescribedMask) and position_bias is not None and (mask.starts is not None or mask.keys is not None):
        mask = mask.materialise()
    if isinstance(mask, DescribedMask):
        settings.update(causal=mask.causal, window=mask.window, mask=mask.keys, starts=mask.starts, lengths=mask.lengths)
    elif mask is None:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        settings.update(causal=causal, window=(sliding_window or 0) if causal else 0)
    elif mask.dim() == 4:  # says all that is to be said, causality too
        settings.update(mask=mask[..., : key.shape[2]])
    else:
        raise ValueError(f"gqa: attention_mask.dim() is {mask.dim()}; expected 4: (batch, 1 or heads, n_q, n_kv)")
    if position_bias is not None:
        given = settings.get("mask")
        if given is None:
            settings["mask"] = position_bias
        elif given.dtype == torch.bool:
            settings["mask"] = torch.where(given, position_bias, float("-inf"))
        else:
            settings["mask"] = given + position_bias

    if isinstance(key, EncodedTensor):
        try:
            out = attend(key.tokens, query, settings)
        except Exception:
            if key.on_error is not None:
                key.on_error()
            raise
    else:
        out = attention(query, key, value, **settings)
    return out.transpose(1, 2), None


def register(name="gqa"):
    """Makes attn_implementation=name of transformers' models run here. Done for "gqa" when gqa_torch is imported."""
    AttentionInterface.register(name, gqa_attention)
    AttentionMaskInterface.register(name, gqa_mask)
