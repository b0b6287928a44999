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


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    """Which gradients the backward operator is asked for, and elements of what it returns."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.gqa.attention_backward.default:
            self.wanted, self.elements = list(args[6]), [x.numel() for x in out]
        return out


@pytest.mark.parametrize("asked", ["q", "k", "v", "mask", "sinks", "kv", "q sinks", "mask v", "q k v mask sinks"])
def test_what_is_not_asked_for_is_not_made(asked):
    """All inputs have gradients, of which torch.autograd.grad asks for some: the same bits as when all are asked for."""
    names = ["q", "k", "v", "mask", "sinks"]
    asked = list(asked) if asked == "kv" else asked.split()
    q, k, v = tensors(n_q=20, n_kv=90)
    inputs = dict(zip(names, (x.requires_grad_() for x in (q, k, v, torch.randn(2, 6, 20, 90), torch.linspace(-1, 2, 6)))))
    starts = torch.zeros(2, dtype=torch.int64)

    def gradients_of(asked, starts=None, **others):
        given = dict(inputs, **others)
        out = attention(**given)
        with Recorded() as recorded:
            return torch.autograd.grad(out.sum(), [given[name] for name in asked]), recorded

    all_of_them, recorded = gradients_of(names)
    assert recorded.wanted == [True] * 5 and min(recorded.elements) > 0
    got, recorded = gradients_of(asked)
    assert recorded.wanted == [name in asked for name in names]
    assert [elements > 0 for elements in recorded.elements] == recorded.wanted
    assert all(torch.equal(g, all_of_them[names.index(name)]) for name, g in zip(asked, got))
    # Without a mask the sinks, and after them starts, are the next tensors in order.
    for others in (dict(mask=None), dict(mask=None, causal=True, starts=starts), dict(mask=inputs["mask"].detach() > 0)):
        some = [name for name in asked if name != "mask"]
        rest = ["q", "k", "v", "sinks"]
        wanted = dict(zip(rest, gradients_of(rest, **others)[0]))
        if some:
            got, recorded = gradients_of(some, **others)
            assert recorded.wanted == [name in some for name in names]
            assert all(torch.equal(g, wanted[name]) for name, g in zip(some, got))


def test_backward_of_frozen_inputs():
    """What requires no gradient is left out of loss.backward(), too, and of accumulation."""
    q, k, v = tensors(n_q=20, n_kv=90)
    k.requires_grad_()
    for times in (1, 2):
        with Recorded() as recorded:
            attention(q, k, v, causal=True).sum().backward()
        assert recorded.wanted == [False, True, False, False, False] and recorded.elements[::2] == [0, 0, 0]
        once = k.grad.clone() if times == 1 else once
    assert torch.equal(k.grad, 2 * once)
    k.requires_grad_(False)
    assert not attention(q, k, v, causal=True).requires_grad


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
