# SPDX-License-Identifier: Apache-2.0
"""Attention by its definition, in double precision, and how far a result in given types may be from it.

Where the bound comes from: tests/support/reference_check.hpp, whose f32 and bf16 arithmetic it follows to first order, with longer sums where
that is simpler (which makes it larger). u = 2**-24 is half a unit in the last place of f32; gamma(n) bounds n roundings.
"""

from dataclasses import dataclass, field

import numpy as np

U = 2.0**-24
# Half a unit in the last place, relative, and what is lost where numbers become denormal.
ROUNDING = {"float32": (2.0**-24, 2.0**-149), "bfloat16": (2.0**-8, 2.0**-133), "float16": (2.0**-11, 2.0**-25)}


def gamma(n):
    return n * U / (1 - n * U)


@dataclass
class Call:
    """What the definition is computed from: float64, heads of keys and values not repeated."""

    q: np.ndarray  # (n, Hq, D)
    k: np.ndarray  # (T, Hkv, D)
    v: np.ndarray  # (T, Hkv, Dv)
    seen: np.ndarray  # bool, broadcastable to (Hq, n, T)
    scale: float = 0.0  # 0: 1 / sqrt(D)
    changes: list = field(default_factory=list)  # (score, error) -> (score, error), each (Hq, n, T)
    sinks: np.ndarray = None  # (Hq,)
    sinks_in_lse: bool = True
    factor: np.ndarray = None  # (n, Hq, Dv) or broadcastable: outputs times that
    bf16_products: bool = False
    k_levels: int = 0  # 127 or 7: keys are integers, so queries are rounded to 16 bits
    v_levels: int = 0  # likewise: weights are


def defined(call, out_type="float32"):
    """out (n, Hq, Dv), lse (n, Hq), and bounds of their errors, of the same shapes."""
    group = call.q.shape[1] // call.k.shape[1]
    k, v = np.repeat(call.k, group, 1), np.repeat(call.v, group, 1)
    dim, keys = call.q.shape[2], k.shape[0]
    scale = call.scale or 1 / np.sqrt(dim)
    s = scale * np.einsum("ihd,thd->hit", call.q, k)
    magnitude = scale * np.einsum("ihd,thd->hit", abs(call.q), abs(k))
    e = gamma(np.ceil(dim / 16) + (30 if call.bf16_products else 13)) * magnitude
    if call.k_levels:  # half a step of a query row's largest
        step = abs(call.q).max(2, initial=0) / (2 * 32639)
        e = e + scale * np.einsum("ih,th->hit", step, abs(k).sum(2))
    for change in call.changes:
        s, e = change(s, e)
    e = e + 6 * U * abs(s)
    seen = np.broadcast_to(call.seen, s.shape)
    s, e = np.where(seen, s, -np.inf), np.where(seen, e, 0)

    n, heads, width = s.shape[1], s.shape[0], v.shape[2]
    if keys == 0:
        s, e, v = np.full((heads, n, 1), -np.inf), np.zeros((heads, n, 1)), np.zeros((1, heads, width))
    sinks = np.full(heads, -np.inf) if call.sinks is None else call.sinks.astype(np.float64)
    top = np.maximum(s.max(2), sinks[:, None])
    top = np.where(np.isfinite(top), top, 0)
    p = np.exp(s - top[..., None])
    of_sink = np.exp(sinks[:, None] - top)
    total = p.sum(2) + of_sink
    with np.errstate(divide="ignore"):
        lse = top + np.log(total if call.sinks_in_lse else p.sum(2))
    w = p / np.where(total > 0, total, 1)[..., None]
    out = np.einsum("hit,thd->ihd", w, v)

    spans = np.ceil(keys / 512) + 1
    away = np.where(p > 0, top[..., None] - np.where(p > 0, s, 0), 0)
    relative = np.exp(e + 4 * U * away) * (1 + 2.0**-22 + U) ** (10 + spans) - 1 + 2.0**-120
    weights = relative + ((2.0**-8 + 2.0**-11) * (1 + relative) if call.bf16_products else 0)
    sums = gamma(min(keys, 512) + 11 * (spans + 8))
    eta = (w * weights).sum(2) + sums
    if eta.size and eta.max() >= 0.5:
        raise ValueError("the bound says nothing of such numbers")
    spread = np.einsum("hit,thd->ihd", w * weights, abs(v)) + (w * weights).sum(2).T[..., None] * abs(out)
    bound = spread + 2 * sums * (np.einsum("hit,thd->ihd", w, abs(v)) + abs(out))
    bound = bound + 2.0**-125 * abs(v).sum(0)  # weights below 2**-126 of the largest are 0
    if call.v_levels and keys:
        bound = bound + rounded_weights(w * (1 + weights), v, call.v_levels)
    bound = bound / (1 - eta.T[..., None]) + 4 * U * abs(out)
    if call.factor is not None:
        bound, out = abs(call.factor) * (bound + 8 * U * abs(out)), out * call.factor
    unit, least = ROUNDING[out_type]
    bound = bound + unit * (abs(out) + bound) + least
    lse_bound = -np.log1p(-(np.einsum("hit,hit->hi", w, relative) / np.maximum(w.sum(2), 1e-300) + sums)) + 4 * U * abs(lse)
    return out, lse.T, bound, lse_bound.T


def rounded_weights(w, v, levels):
    """What outputs are off by, where a block's weights times their values' scales are rounded to 16 bits of its largest."""
    keys = v.shape[0]
    row_scale = np.maximum(abs(v).max(2), 1e-30) / levels  # (T, Hq); a scale is the row's largest over so many levels
    off = np.zeros((w.shape[1], w.shape[0], v.shape[2]))
    for first in range(0, keys, 64):
        block = slice(first, first + 64)
        largest = (w[:, :, block] * row_scale[block].T[:, None, :]).max(2)  # (Hq, n)
        step = largest / (2 * 32639)
        seen = w[:, :, block] > 0
        integers = abs(v[block]) / row_scale[block][..., None]  # (t, Hq, Dv)
        off += np.einsum("hi,hit,thd->ihd", step, seen, integers)
    return 2 * off  # and the same once more for the total, to first order


def positions_of(n, keys):
    """The default: the queries are the last tokens."""
    return np.arange(keys - n, keys)


def holds(got, wanted, bound, what):
    """Fails unless each element is within its bound; the same infinities where there are some."""
    got = np.asarray(got).astype(np.float64)
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    if not got.size:
        return 0.0
    finite = np.isfinite(wanted)
    assert np.array_equal(got[~finite], wanted[~finite]), what
    off = np.where(finite, abs(np.where(finite, got, 0) - np.where(finite, wanted, 0)), 0)
    bound = np.where(finite, bound, 1)
    share = (off / np.maximum(bound, 1e-300)).max()
    assert share <= 1, f"{what}: {share:.3g} times its bound, off by {off.max():.3g}"
    return share
