# SPDX-License-Identifier: Apache-2.0
"""PyTorch's tensors, by DLPack: taken where they lie."""

import numpy as np
import pytest

import gqa

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its tensors were not tried")
HEADS, KV_HEADS, DIM = 8, 2, 64
attention = gqa.Attention(HEADS, KV_HEADS, DIM)


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype, most", [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_is_what_sdpa_computes(dtype, most):
    """PyTorch's (heads, tokens, dim) as they lie: transposed views, not copies."""
    q, k, v = normal(HEADS, 50, DIM, dtype=dtype), normal(KV_HEADS, 200, DIM, dtype=dtype), normal(KV_HEADS, 200, DIM, dtype=dtype)
    view = gqa.KvCacheView.contiguous(k, v, layout="head_major")
    assert (view.k_address, view.v_address) == (k.data_ptr(), v.data_ptr())
    got = attention(q.transpose(0, 1), view)
    assert isinstance(got, torch.Tensor) and got.dtype == dtype and got.shape == (50, HEADS, DIM)
    mask = torch.ones(50, 200, dtype=torch.bool).tril(150)
    double = torch.nn.functional.scaled_dot_product_attention(
        q.double(), *(x.double().repeat_interleave(HEADS // KV_HEADS, 0) for x in (k, v)), attn_mask=mask
    )
    assert (got.double() - double.transpose(0, 1)).abs().max() < most
    masked = attention(q.transpose(0, 1), view, gqa.boolean_mask(mask))
    assert torch.equal(masked, got)


def test_numpy_and_tensors_mix():
    q, k, v = normal(3, HEADS, DIM), normal(40, KV_HEADS, DIM), normal(40, KV_HEADS, DIM)
    wanted = attention(q.numpy(), (k.numpy(), v.numpy()))
    assert isinstance(wanted, np.ndarray)
    out = torch.empty(3, HEADS, DIM, dtype=torch.bfloat16)
    got, lse = attention(q.numpy(), (k, v.numpy()), out=out, lse=True)
    assert got is out and isinstance(lse, np.ndarray)
    assert torch.equal(out, torch.from_numpy(wanted).bfloat16())
    cache = gqa.ContiguousKvCache(KV_HEADS, DIM, 40, k_type="bf16")
    cache.append(k.bfloat16(), v.bfloat16())
    half = attention(q.bfloat16(), cache)
    assert torch.equal(half, attention(q.bfloat16(), (k.bfloat16(), v.bfloat16())))
    _, lses = attention.batch([q], [cache], lse=True)
    assert isinstance(lses[0], torch.Tensor) and lses[0].dtype == torch.float32


def test_fp8_tensors_are_rows_of_a_codec():
    q, k = normal(3, HEADS, DIM), normal(40, KV_HEADS, DIM).to(torch.float8_e4m3fn)
    ones = np.broadcast_to(np.float32(1), (40, KV_HEADS))
    view = gqa.KvCacheView.contiguous(k, k, k_type="fp8_e4m3", head_dim=DIM, k_scales=ones, v_scales=ones)
    assert torch.equal(attention(q, view), attention(q, (k.float(), k.float())))


def test_a_tensor_that_requires_gradients_is_refused():
    q, k = normal(3, HEADS, DIM), normal(40, KV_HEADS, DIM)
    with pytest.raises(gqa.Error, match=r"q is a tensor that requires gradients; expected tensor.detach\(\)"):
        attention(q.clone().requires_grad_(), (k, k))


def test_a_tensor_of_another_device_is_named():
    with pytest.raises(gqa.Error, match="q is an array on meta; expected an array on the CPU"):
        attention(torch.empty(3, HEADS, DIM, device="meta"), (normal(4, KV_HEADS, DIM), normal(4, KV_HEADS, DIM)))


def test_tensors_live_as_long_as_views():
    q, k, v = normal(3, HEADS, DIM), normal(4000, KV_HEADS, DIM), normal(4000, KV_HEADS, DIM)
    wanted = attention(q, (k, v))
    view = gqa.KvCacheView.contiguous(k.clone(), v.clone())
    for _ in range(10):
        torch.full((4000, KV_HEADS, DIM), float("nan"))
    assert torch.equal(attention(q, view), wanted)


def test_a_tensor_with_the_negative_bit_is_refused():
    """Whose memory has the numbers' negatives, of which DLPack says nothing."""
    q, k = normal(3, HEADS, DIM), normal(40, KV_HEADS, DIM)
    turned = torch.complex(torch.zeros_like(q), -q).conj().imag
    assert turned.is_neg() and torch.equal(turned, q)
    for call in (lambda: attention(turned, (k, k)), lambda: attention(q, (k, k), out=turned)):
        with pytest.raises(gqa.Error, match=r"is a tensor with the negative bit; expected tensor.resolve_neg\(\)"):
            call()
    assert torch.equal(attention(turned.resolve_neg().contiguous(), (k, k)), attention(q, (k, k)))
