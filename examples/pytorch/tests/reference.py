# SPDX-License-Identifier: Apache-2.0
"""Attention by its definition in double precision, and how far a result of each type may be from it."""

import math

import torch

# Half a unit in the last place, relative to a number: what rounding to a type costs.
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8 / 2, torch.float16: 2.0**-11}


def visible(n_q, n_kv, causal=False, window=0):
    """(n_q, n_kv): True where a query sees a key."""
    query = torch.arange(n_q)[:, None] + n_kv - n_q
    key = torch.arange(n_kv)[None, :]
    seen = torch.ones(n_q, n_kv, dtype=torch.bool)
    if causal:
        seen = key <= query
    if window:
        seen &= key > query - window
    return seen


def attention(q, k, v, mask=None, causal=False, window=0, soft_cap=0.0, sinks=None, scale=None):
    """Output and log-sum-exp (batch, heads, n_q) in double."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(2, 3) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.double()
    seen = visible(q.shape[2], k.shape[2], causal, window)
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    scores = scores.masked_fill(~seen, -math.inf)
    logits = scores
    if sinks is not None:
        logits = torch.cat([scores, sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse)[..., None])
    return weights @ v, lse


def tolerance(q, k, v, dtype, bf16_products=None, **settings):
    """The largest error that the arithmetic of such a call may have, element by element, for outputs of `dtype`.

    Scores: f32 sums of D products, and the functions applied to them. Weights: those errors, and an f32 sum of n_kv of them. Where queries,
    keys and values are all bf16, weights may be rounded to bf16. Outputs are rounded to their type.
    """
    if bf16_products is None:
        bf16_products = all(x.dtype == torch.bfloat16 for x in (q, k, v))
    f32 = UNIT[torch.float32]
    scale = settings.get("scale") or 1 / math.sqrt(q.shape[-1])
    group = q.shape[1] // k.shape[1]
    largest = (q.double().abs() @ k.double().abs().repeat_interleave(group, 1).transpose(2, 3)).amax() * abs(scale)
    of_scores = (q.shape[-1] + 16) * f32 * largest
    of_weights = 2 * of_scores + (k.shape[2] + 16) * f32 + (UNIT[torch.bfloat16] if bf16_products else 0)
    out, _ = attention(q, k, v, **settings)
    magnitude, _ = attention(q, k, v.double().abs(), **settings)
    return 2 * of_weights * magnitude + 1.01 * UNIT[dtype] * out.abs() + 2.0**-126


def assert_close(got, wanted, bound):
    error = (got.double() - wanted).abs()
    assert torch.isfinite(got).all()
    assert bool((error <= bound).all()), f"error {error.max():.3e} with a bound of {bound.flatten()[error.argmax()]:.3e}"
