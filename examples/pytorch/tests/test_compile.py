# SPDX-License-Identifier: Apache-2.0
"""Shapes without data, and torch.compile: the operator as others of PyTorch's."""

import pytest
import torch
from gqa_torch import attention
from test_attention import TYPES, tensors
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.mark.parametrize("dtype", TYPES)
def test_fake_tensors(dtype):
    with FakeTensorMode() as mode:
        q, k, v = (mode.from_tensor(x) for x in tensors(dtype=dtype, value_dim=32))
        out = attention(q, k, v, causal=True)
    real = attention(*tensors(dtype=dtype, value_dim=32), causal=True)
    assert out.shape == real.shape and out.dtype == real.dtype and out.stride() == real.stride()


@pytest.mark.parametrize("settings", [dict(causal=True), dict(sinks=torch.zeros(6)), dict(mask=torch.zeros(1, 1, 33, 150))])
def test_opcheck(settings):
    """PyTorch's own examination: schema, fake kernels, autograd registration, AOTAutograd."""
    q, k, v = (x.requires_grad_() for x in tensors())
    names = ["mask", "causal", "window", "soft_cap", "sinks", "scale", "starts", "lengths"]
    defaults = dict(mask=None, causal=False, window=0, soft_cap=0.0, sinks=None, scale=None, starts=None, lengths=None)
    rest = [(defaults | settings)[name] for name in names]
    torch.library.opcheck(torch.ops.gqa.attention_with_lse.default, (q, k, v, *rest), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiled_as_one_graph(backend):
    def layer(q, k, v):
        return torch.tanh(attention(q * 2, k, v, causal=True, window=20)).transpose(1, 2).flatten(2)

    results = []
    for run in (layer, torch.compile(layer, backend=backend, fullgraph=True)):
        leaves = [x.requires_grad_() for x in tensors()]
        out = run(*leaves)
        out.sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results))
