# SPDX-License-Identifier: Apache-2.0
"""Gradients against PyTorch's autograd over the definition in double precision."""

import pytest
import torch
from gqa_torch import attention
from reference import assert_close, gradient_tolerances, gradients, rounding
from test_attention import HEADS, TYPES, tensors


def check(q, k, v, seed=5, **settings):
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    inputs = [q, k, v] + [settings[name] for name in ("mask", "sinks") if name in settings and settings[name].requires_grad]
    out = attention(q, k, v, **settings)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
    got = torch.autograd.grad(out, inputs, d_out)
    settings = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in settings.items()}
    wanted = gradients(q, k, v, d_out, **settings)
    bounds, by_scores = gradient_tolerances(q, k, v, d_out, **settings)
    for x, g, w, bound in zip(inputs, got, wanted, bounds):
        assert g.dtype == x.dtype and g.shape == x.shape
        assert_close(g, w, bound + rounding(x.dtype, w))
    return inputs, got, wanted, by_scores


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", [(1, 300), (70, 70), (33, 300)])
def test_causal(dtype, heads, lengths):
    check(*tensors(heads, *lengths, dtype=dtype), causal=True)


@pytest.mark.parametrize("settings", [{}, dict(causal=True, window=17), dict(soft_cap=3.0), dict(scale=0.3), dict(causal=True, window=40, soft_cap=2.0)])
@pytest.mark.parametrize("dtype", TYPES)
def test_variants(settings, dtype):
    check(*tensors(dtype=dtype), **settings)


def test_boolean_mask():
    mask = torch.rand(2, 1, 33, 150, generator=torch.Generator().manual_seed(1)) < 0.5
    check(*tensors(), mask=mask)


@pytest.mark.parametrize("shape", [(2, 6, 33, 150), (1, 6, 33, 150), (2, 1, 33, 150), (1, 1, 1, 150)])
def test_learned_bias(shape):
    """A mask of numbers has a gradient, summed over what it is shared by."""
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    q, k, v = tensors()
    inputs, got, wanted, by_scores = check(q, k, v, mask=mask, soft_cap=4.0)
    shared = [d for d in range(4) if shape[d] == 1 and by_scores.shape[d] != 1]
    bound = by_scores.sum(shared, keepdim=True) if shared else by_scores
    assert_close(got[3], wanted[3], bound + 1e-30)


def test_sinks():
    sinks = torch.linspace(-1, 2, 6).requires_grad_()
    inputs, got, wanted, by_scores = check(*tensors(), causal=True, sinks=sinks)
    assert_close(got[3], wanted[3], by_scores.sum((0, 2, 3)))


def test_of_one_input_alone():
    q, k, v = tensors()
    k.requires_grad_()
    attention(q, k, v, causal=True).sum().backward()
    all_of_them = [x.detach().requires_grad_() for x in (q, k, v)]
    attention(*all_of_them, causal=True).sum().backward()
    assert q.grad is None and v.grad is None and torch.equal(k.grad, all_of_them[1].grad)


def test_starts_and_lengths():
    """Gradients by padding are zero, those by a sequence the bits of the sequence alone."""
    q, k, v = (x.requires_grad_() for x in tensors(n_q=20, n_kv=150))
    starts, lengths = torch.tensor([30, 0]), torch.tensor([150, 90])
    d_out = torch.randn(2, 6, 20, 64)
    attention(q, k, v, causal=True, starts=starts, lengths=lengths).backward(d_out)
    for b, (start, end) in enumerate(zip(starts.tolist(), lengths.tolist())):
        alone = [x[b : b + 1].detach().requires_grad_() for x in (q, k[:, :, start:end], v[:, :, start:end])]
        attention(*alone, causal=True).backward(d_out[b : b + 1])
        assert torch.equal(q.grad[b], alone[0].grad[0])
        for whole, part in ((k, alone[1]), (v, alone[2])):
            assert torch.equal(whole.grad[b, :, start:end], part.grad[0])
            assert (whole.grad[b, :, :start] == 0).all() and (whole.grad[b, :, end:] == 0).all()


def test_second_derivatives_are_refused():
    q, k, v = (x.requires_grad_() for x in tensors())
    (d_q,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention_backward"):
        d_q.sum().backward()


def test_gradcheck_of_layout():
    """Finite differences in f32 along one direction: right to what f32 differences can show."""
    q, k, v = (x.requires_grad_() for x in tensors(n_q=8, n_kv=40))
    weights = torch.randn(2, 6, 8, 64)
    loss = (attention(q, k, v, causal=True) * weights).sum()
    loss.backward()
    for x in (q, k, v):
        step = torch.randn_like(x)
        step /= step.norm()
        with torch.no_grad():
            moved = [[y + s * 0.02 * step if y is x else y for y in (q, k, v)] for s in (1, -1)]
            up, down = ((attention(*m, causal=True).double() * weights).sum() for m in moved)
        assert abs(float((up - down) / 0.04 - (x.grad * step).sum())) < 2e-3
