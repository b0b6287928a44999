# SPDX-License-Identifier: Apache-2.0
"""torch.ops.gqa.attention against its definition in double precision: types, heads, strides, masks, errors."""

import pytest
import torch
from gqa_torch import attention, attention_with_lse
from reference import assert_close, tolerance
from reference import attention as reference

TYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS = [(4, 4), (6, 2), (9, 3), (8, 1)]


def tensors(heads=(6, 2), n_q=33, n_kv=150, dim=64, value_dim=None, batch=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return (normal(batch, heads[0], n_q, dim), normal(batch, heads[1], n_kv, dim), normal(batch, heads[1], n_kv, value_dim or dim))


def check(q, k, v, **settings):
    out = attention(q, k, v, **settings)
    assert out.dtype == q.dtype and out.shape == (*q.shape[:3], v.shape[-1])
    assert_close(out, reference(q, k, v, **settings)[0], tolerance(q, k, v, q.dtype, **settings))
    return out


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", [(1, 1), (1, 700), (70, 70), (33, 600)])
@pytest.mark.parametrize("causal", [False, True])
def test_against_the_definition(dtype, heads, lengths, causal):
    check(*tensors(heads, *lengths, dtype=dtype), causal=causal)


@pytest.mark.parametrize("dtype", TYPES)
def test_against_sdpa(dtype):
    """PyTorch's own operator in double: the definition above is not ours alone."""
    q, k, v = tensors(n_q=100, n_kv=100, dtype=dtype)
    wanted = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True)
    assert_close(attention(q, k, v, causal=True), wanted, tolerance(q, k, v, dtype, causal=True))


def test_types_may_differ():
    q, k, v = tensors()
    check(q, k.bfloat16(), v.half())


@pytest.mark.parametrize("dim, value_dim", [(64, 32), (80, 80), (24, 40), (192, 128)])
def test_widths(dim, value_dim):
    check(*tensors(dim=dim, value_dim=value_dim), causal=True)


@pytest.mark.parametrize("settings", [dict(window=1), dict(window=17), dict(window=1000), dict(soft_cap=3.0), dict(scale=0.3),
                                      dict(window=40, soft_cap=2.0), dict(sinks=True), dict(sinks=True, window=20, soft_cap=5.0)])
@pytest.mark.parametrize("dtype", TYPES)
def test_variants(settings, dtype):
    q, k, v = tensors(dtype=dtype)
    if "sinks" in settings:
        settings = dict(settings, sinks=torch.linspace(-1, 2, q.shape[1], dtype=dtype))
    check(q, k, v, causal=True, **settings)


@pytest.mark.parametrize("shape", [(2, 6, 33, 150), (1, 6, 33, 150), (2, 1, 33, 150), (2, 1, 1, 150), (1, 1, 33, 150)])
@pytest.mark.parametrize("kind", [torch.bool, *TYPES])
@pytest.mark.parametrize("more", [{}, dict(soft_cap=2.0), dict(causal=True)])
def test_masks(shape, kind, more):
    generator = torch.Generator().manual_seed(1)
    mask = torch.randn(shape, generator=generator).to(kind) if kind != torch.bool else torch.rand(shape, generator=generator) < 0.4
    check(*tensors(), mask=mask, **more)


def test_mask_with_strides():
    mask = (torch.rand(1, 1, 150, 33) < 0.5).transpose(2, 3)
    check(*tensors(), mask=mask.expand(2, 6, 33, 150))


def test_rows_that_see_nothing_are_zero():
    q, k, v = tensors()
    mask = torch.ones(1, 1, 33, 150, dtype=torch.bool)
    mask[:, :, 5] = False
    out, lse = attention_with_lse(q, k, v, mask)
    assert (out[:, :, 5] == 0).all() and (lse[:, 5] == -torch.inf).all()
    assert torch.isfinite(lse[:, :5]).all()


def test_the_smallest_number_of_a_mask_is_nothing_seen():
    """What transformers fills masks with, finfo.min: as False does, also in rows of nothing else."""
    q, k, v = tensors()
    seen = torch.rand(2, 1, 33, 150, generator=torch.Generator().manual_seed(1)) < 0.4
    seen[:, :, 5] = False
    for dtype in (torch.float32, torch.bfloat16):
        numbers = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        out = attention(q, k, v, mask=numbers)
        assert (out[:, :, 5] == 0).all()
        assert_close(out, reference(q, k, v, mask=seen)[0], tolerance(q, k, v, torch.float32, mask=seen))


@pytest.mark.parametrize("batch, n_q, n_kv", [(0, 33, 150), (2, 0, 150), (2, 33, 0), (0, 0, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_to_do(batch, n_q, n_kv, causal):
    """Batches, queries and keys of none: zeros, log-sum-exp of the sinks alone, and gradients of zero."""
    q, k, v = (x.requires_grad_() for x in tensors(batch=batch, n_q=n_q, n_kv=n_kv))
    sinks = torch.linspace(-1, 1, 6)
    out, lse = attention_with_lse(q, k, v, causal=causal, sinks=sinks)
    assert out.shape == q.shape and (out == 0).all()
    if n_kv == 0:
        assert torch.equal(lse, sinks.expand_as(lse))
    out.sum().backward()
    assert all(x.grad.shape == x.shape and (x.grad == 0).all() for x in (q, k, v))


def test_log_sum_exp():
    q, k, v = tensors()
    sinks = torch.linspace(-1, 1, 6)
    out, lse = attention_with_lse(q, k, v, causal=True, sinks=sinks)
    wanted = reference(q, k, v, causal=True, sinks=sinks)[1]
    assert (lse.double().transpose(1, 2) - wanted).abs().max() < 1e-5
    assert torch.equal(out, attention(q, k, v, causal=True, sinks=sinks))


def views_of(x):
    """The same numbers with other strides: (batch, token, head, dim), a part of a wider tensor, every other row of a batch, spaced tokens."""
    batch, heads, tokens, dim = x.shape
    yield x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.full((batch, heads, tokens + 5, dim + 24), torch.nan, dtype=x.dtype)
    wide[:, :, 2 : tokens + 2, 8 : dim + 8] = x
    yield wide[:, :, 2 : tokens + 2, 8 : dim + 8]
    spaced = torch.full((2 * batch, heads, 3 * tokens, dim), torch.nan, dtype=x.dtype)
    spaced[::2, :, ::3] = x
    yield spaced[::2, :, ::3]
    yield x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)


@pytest.mark.parametrize("dtype", TYPES)
def test_strides_change_no_bit(dtype):
    q, k, v = tensors(dtype=dtype)
    wanted = attention(q, k, v, causal=True)
    for q_view, k_view, v_view in zip(views_of(q), views_of(k), views_of(v)):
        assert not k_view.is_contiguous()
        assert torch.equal(attention(q_view, k_view, v_view, causal=True), wanted)
        assert torch.equal(attention(q, k_view, v, causal=True), wanted)


def test_expanded_heads_are_read_where_they_lie():
    """MQA's one head, expanded to 4 by a stride of 0, without memory."""
    q, k, v = tensors((8, 1))
    wanted = attention(q, k, v)
    assert torch.equal(attention(q, k.expand(-1, 4, -1, -1), v.expand(-1, 4, -1, -1)), wanted)


def test_nothing_is_copied():
    """Keys and values as a view that spans 4 GiB of untouched memory: copies of what it shows would be seen as allocations."""
    tokens, dim = 4096, 64
    q = torch.randn(1, 2, 1, dim)
    pages = torch.empty(2**30, dtype=torch.float32)  # never written but for the rows: the system gives memory for those alone
    k = pages[: 2 * tokens * 2**17].view(2, tokens, 2**17)[None, :, :, :dim]
    k.copy_(torch.randn(1, 2, tokens, dim))
    before = k.data_ptr()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = attention(q, k, k)
    assert k.data_ptr() == before
    allocated = sum(max(event.self_cpu_memory_usage if hasattr(event, "self_cpu_memory_usage") else event.self_cpu_memory, 0)
                    for event in profile.key_averages())
    assert allocated <= 8 * 1024, f"{allocated} bytes were allocated for an output of {out.numel() * 4}"
    assert_close(out, reference(q, k.contiguous(), k.contiguous())[0], tolerance(q, k.contiguous(), k.contiguous(), torch.float32))


BAD = [
    (dict(q=torch.zeros(2, 6, 3)), "q.dim() is 3; expected 4"),
    (dict(k=torch.zeros(1, 2, 5, 8)), "k.size(0) is 1; expected q.size(0) = 2"),
    (dict(v=torch.zeros(2, 2, 4, 8)), "v.size(2) is 4; expected k.size(2) = 5"),
    (dict(k=torch.zeros(2, 2, 5, 9)), "head_dim is 9; expected"),
    (dict(k=torch.zeros(2, 4, 5, 8), v=torch.zeros(2, 4, 5, 8)), "kv_heads is 4; expected a divisor of batch[0].q.heads = 6"),
    (dict(q=torch.zeros(2, 6, 3, 8, dtype=torch.float64)), "q.dtype is Double; expected float32, bfloat16 or float16"),
    (dict(k=torch.zeros(2, 2, 8, 5).transpose(2, 3)), "k.stride(3) is 5; expected 1"),
    (dict(mask=torch.zeros(3, 5)), "mask.dim() is 2; expected 4: (batch or 1, heads or 1, n_q or 1, n_kv)"),
    (dict(k=torch.zeros(2, 2, 1, 8).expand(2, 2, 5, 8)), "k_strides.token is 0; expected the distance"),
    (dict(q=torch.zeros(2, 6, 3, 8, device="meta")), "device is cpu; expected q.device = meta"),
    (dict(starts=torch.zeros(2, dtype=torch.int64, device="meta")), "device is meta; expected q.device = cpu"),
    (dict(window=4), "window is 4; expected causal=True"),
    (dict(window=-1, causal=True), "window is -1; expected 0"),
    (dict(soft_cap=-1.0), "soft_cap is -1"),
    (dict(sinks=torch.zeros(5)), "sinks.size(0) is 5; expected q.size(1) = 6"),
    (dict(mask=torch.zeros(2, 3, 3, 5)), "mask.size(1) is 3; expected 1, or q.size(1) = 6"),
    (dict(mask=torch.zeros(2, 1, 2, 5)), "mask.size(2) is 2; expected 1, or q.size(2) = 3"),
    (dict(mask=torch.zeros(3, 1, 3, 5)), "mask.size(0) is 3; expected 1, or q.size(0) = 2"),
    (dict(mask=torch.zeros(2, 1, 3, 4)), "mask.size(3) is 4; expected the tokens of keys = 5"),
    (dict(mask=torch.zeros(2, 1, 3, 5, dtype=torch.int32)), "mask.dtype is Int; expected bool, float32"),
    (dict(lengths=torch.tensor([2, 6])), "lengths[1] is 6; expected the sequence's start to k.size(2), 0 to 5"),
    (dict(starts=torch.tensor([0])), "starts.size(0) is 1; expected q.size(0) = 2"),
    (dict(starts=torch.tensor([0.0, 1.0])), "starts.dtype is Float; expected int64"),
    (dict(starts=torch.tensor([0, 1]), mask=torch.zeros(2, 1, 3, 5)), "starts is given with a mask; expected one of the two"),
]


@pytest.mark.parametrize("wrong, message", BAD)
def test_errors_name_the_argument(wrong, message):
    arguments = dict(q=torch.zeros(2, 6, 3, 8), k=torch.zeros(2, 2, 5, 8), v=torch.zeros(2, 2, 5, 8))
    with pytest.raises(ValueError) as error:
        attention(**(arguments | wrong))
    assert str(error.value).startswith("gqa: ") and message in str(error.value)
