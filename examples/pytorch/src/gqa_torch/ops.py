# SPDX-License-Identifier: Apache-2.0
"""The operators, and what torch.compile and FakeTensor know of them: shapes without data."""

import torch

import gqa_torch._C  # noqa: F401  (registers the operators)


def attention(q, k, v, mask=None, causal=False, window=0, soft_cap=0.0, sinks=None, scale=None, starts=None, lengths=None):
    """Softmax attention, without copying anything; float32, bfloat16 or float16, each tensor on its own.

    q        (batch, query heads, n_q, D), any strides
    k, v     (batch, KV heads, n_kv, D or Dv); KV heads divide query heads; any strides, but that the last dim's is 1, and
             tokens lie apart (their stride is not 0)
    mask     (batch or 1, query heads or 1, n_q or 1, n_kv): bool, True where a query sees a key; or numbers that are added to scores
    causal   the queries are the last n_q positions and see what is not behind them (aligned at the bottom right)
    window   with causal: a query sees so many positions, its own among them; 0: all
    soft_cap scores become soft_cap * tanh(score / soft_cap), before a mask is added; 0: they do not
    sinks    (query heads): a logit for each head that takes its share of the weights
             numbers below about -2.3e38, as finfo(float32).min, are -inf: a row of nothing else sees nothing
    scale    multiplies q·k; 1 / sqrt(D) unless given
    starts   (batch), int64: the first token of each sequence, what is before is padding. A sequence's results are the bits of it alone
    lengths  (batch), int64: where each sequence ends; the queries are the last n_q tokens before that

    Returns (batch, query heads, n_q, Dv) of q's dtype, laid out as (batch, n_q, query heads, Dv). Queries that see nothing give 0. Runs on
    PyTorch's threads (torch.set_num_threads), whose number changes no bit. Differentiable by q, k, v, an additive mask and sinks.
    Raises ValueError that names the argument, its value and what was expected.
    """
    return torch.ops.gqa.attention(q, k, v, mask, causal, window, soft_cap, sinks, scale, starts, lengths)


def attention_with_lse(q, k, v, *settings, **named):
    """attention(), and the logarithm of the sum of exp(score) of each row: (batch, n_q, query heads), float32, not differentiable."""
    return torch.ops.gqa.attention_with_lse(q, k, v, *settings, **named)


@torch.library.register_fake("gqa::attention_with_lse")
def _(q, k, v, *settings, **named):
    for x in (k, v, *settings, *named.values()):  # one tensor on "meta" leads here, whatever the others are
        if isinstance(x, torch.Tensor) and x.device != q.device:
            raise ValueError(f"gqa: a tensor's device is {x.device}; expected q.device = {q.device}")
    batch, heads, n_q, _ = q.shape
    out = q.new_empty(batch, n_q, heads, v.shape[-1]).transpose(1, 2)
    return out, q.new_empty(batch, n_q, heads, dtype=torch.float32)


@torch.library.register_fake("gqa::attention_backward")
def _(d_out, q, k, v, out, lse, wanted, mask=None, causal=False, window=0, soft_cap=0.0, sinks=None, scale=None, starts=None, lengths=None):
    def like(x, is_wanted):
        if not is_wanted:
            return x.new_empty(0) if x is not None else q.new_empty(0, dtype=torch.float32)
        batch, heads, tokens, dim = x.shape
        return x.new_empty(batch, tokens, heads, dim).transpose(1, 2)

    def plain(x, is_wanted):
        return torch.empty_like(x, memory_format=torch.contiguous_format) if is_wanted else q.new_empty(0, dtype=torch.float32)

    return [like(q, wanted[0]), like(k, wanted[1]), like(v, wanted[2]), plain(mask, wanted[3]), plain(sinks, wanted[4])]
