# SPDX-License-Identifier: Apache-2.0
"""The library's promise, through PyTorch: a row's bits do not depend on batch, threads or chunks. All comparisons are torch.equal."""

import pytest
import torch
from gqa_torch import attention
from test_attention import TYPES, tensors


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TYPES)
def test_alone_or_in_a_batch(dtype, threads):
    q, k, v = tensors(batch=5, n_q=40, n_kv=1200, dtype=dtype)
    together = attention(q, k, v, causal=True)
    for b in range(5):
        assert torch.equal(attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], causal=True)[0], together[b])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n_q", [1, 40, 700])
def test_any_number_of_threads(dtype, n_q):
    q, k, v = tensors(batch=2, n_q=n_q, n_kv=2000, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            out = attention(*leaves, causal=True)
            out.sum().backward()
            results.append([out.detach(), *(x.grad for x in leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("chunk", [1, 7, 64, 250])
def test_prefill_in_chunks(dtype, chunk, threads):
    q, k, v = tensors(n_q=300, n_kv=300, dtype=dtype)
    at_once = attention(q, k, v, causal=True, window=90, soft_cap=5.0)
    for begin in range(0, 300, chunk):
        end = min(begin + chunk, 300)
        part = attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], causal=True, window=90, soft_cap=5.0)
        assert torch.equal(part, at_once[:, :, begin:end])


@pytest.mark.parametrize("dtype", TYPES)
def test_padding_on_the_left(dtype):
    """A padded row has the bits of the row alone, whatever the padding holds."""
    q, k, v = tensors(batch=3, n_q=200, n_kv=200, dtype=dtype)
    starts = torch.tensor([0, 77, 130])
    for b, start in enumerate(starts.tolist()):
        k[b, :, :start] = v[b, :, :start] = q[b, :, :start] = torch.nan
    padded = attention(q, k, v, causal=True, starts=starts)
    for b, start in enumerate(starts.tolist()):
        alone = attention(*(x[b : b + 1, :, start:] for x in (q, k, v)), causal=True)
        assert torch.equal(padded[b, :, start:], alone[0])
        assert (padded[b, :, :start] == 0).all()


def test_lengths():
    q, k, v = tensors(batch=3, n_q=1, n_kv=200)
    lengths = torch.tensor([200, 77, 130])
    for b, end in enumerate(lengths.tolist()):
        k[b, :, end:] = v[b, :, end:] = torch.nan
    out = attention(q, k, v, causal=True, lengths=lengths)
    for b, end in enumerate(lengths.tolist()):
        assert torch.equal(out[b], attention(q[b : b + 1], k[b : b + 1, :, :end], v[b : b + 1, :, :end])[0])


def test_grouping():
    """GQA is MHA over repeated heads, bit for bit."""
    q, k, v = tensors((8, 2))
    repeated = attention(q, k.repeat_interleave(4, 1), v.repeat_interleave(4, 1), causal=True)
    assert torch.equal(attention(q, k, v, causal=True), repeated)


def test_inside_a_parallel_region():
    """torch.set_num_threads within threads of the program: no pool in a pool, the same bits."""
    from concurrent.futures import ThreadPoolExecutor

    q, k, v = tensors(n_q=64, n_kv=900)
    wanted = attention(q, k, v, causal=True)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(out, wanted) for out in pool.map(lambda _: attention(q, k, v, causal=True), range(16)))
