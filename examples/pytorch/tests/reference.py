# SPDX-License-Identifier: Apache-2.0
"""Attention by its definition in double precision, and how far a result of each type may be from it."""

import math

import torch

# Half a unit in the last place, relative to a number: what rounding to a type costs.
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8 / 2, torch.float16: 2.0**-11}


def rounding(dtype, x):
    """What rounding x to a type may change: half a unit, of its smallest numbers where x is below its normal ones."""
    return 1.01 * UNIT[dtype] * x.abs() + (2.0**-25 if dtype == torch.float16 else 2.0**-126)


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


def error_of_weights(q, k, v, bf16_products=None, scale=None, **_):
    """How far a softmax weight may be off, relative to itself.

    Scores: f32 sums of D products, and the functions applied to them. Then an f32 sum of n_kv weights. Where queries, keys and values are all
    bf16, weights may be rounded to bf16.
    """
    if bf16_products is None:
        bf16_products = all(x.dtype == torch.bfloat16 for x in (q, k, v))
    f32 = UNIT[torch.float32]
    group = q.shape[1] // k.shape[1]
    products = q.double().abs() @ k.double().abs().repeat_interleave(group, 1).transpose(2, 3)
    largest = float(products.amax()) * abs(scale or 1 / math.sqrt(q.shape[-1]))
    return 2 * (q.shape[-1] + 16) * f32 * largest + (k.shape[2] + 16) * f32 + (2.0**-8 if bf16_products else 0)


def tolerance(q, k, v, dtype, **settings):
    """The largest error that the arithmetic of such a call may have, element by element, for outputs of `dtype`."""
    out, _ = attention(q, k, v, **settings)
    magnitude, _ = attention(q, k, v.double().abs(), **settings)
    return 2 * error_of_weights(q, k, v, **settings) * magnitude + rounding(dtype, out)


def gradients(q, k, v, d_out, **settings):
    """Gradients by q, k, v, and by a mask of numbers and sinks if they are given, in double, by PyTorch's autograd over the definition."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    inputs = [q, k, v]
    for name in ("mask", "sinks"):
        if settings.get(name) is not None and settings[name].is_floating_point():
            settings[name] = settings[name].detach().double().requires_grad_()
            inputs.append(settings[name])
    return torch.autograd.grad(attention(q, k, v, **settings)[0], inputs, d_out.double())


def gradient_tolerances(q, k, v, d_out, scale=None, **settings):
    """The largest errors of the gradients by q, k and v, and, of the mask's and the sinks', by a score.

    dV = Pt dO;  dS = P (dO Vt - rowsum(dO O));  dQ = dS K scale;  dK = dSt Q scale: the sizes of all terms, times how far a factor may be off.
    """
    q, k, v, d_out = q.detach(), k.detach(), v.detach(), d_out.detach()
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    eye = torch.eye(k.shape[2], dtype=torch.float64).expand(q.shape[0], q.shape[1], -1, -1)
    wide_k, wide_v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1).abs()
    weights, _ = attention(q, wide_k, eye, scale=scale, **settings)  # attention over unit vectors gives the weights
    by_weights = d_out.double().abs() @ wide_v.transpose(2, 3)
    by_scores = weights * (by_weights + (weights * by_weights).sum(-1, keepdim=True))
    off = 4 * (error_of_weights(q, k, v, scale=scale, **settings) + UNIT[q.dtype] + (q.shape[1] * q.shape[2] + 16) * UNIT[torch.float32])

    def grouped(x):
        return x.unflatten(1, (k.shape[1], group)).sum(2)

    d_q = by_scores @ wide_k.abs() * factor
    d_k = grouped(by_scores.transpose(2, 3) @ q.double().abs()) * factor
    d_v = grouped(weights.transpose(2, 3) @ d_out.double().abs())
    return [off * x + 2.0**-126 for x in (d_q, d_k, d_v)], off * by_scores


def assert_close(got, wanted, bound):
    error = (got.double() - wanted).abs()
    assert torch.isfinite(got).all()
    bound = bound.expand_as(error)
    worst = (error - bound).argmax()
    assert bool((error <= bound).all()), f"error {error.flatten()[worst]:.3e} with a bound of {bound.flatten()[worst]:.3e}"
