# SPDX-License-Identifier: Apache-2.0
"""attn_implementation="gqa" against "eager" on small random models in float32: logits, losses' gradients, generation, padding."""

import gqa_torch
import pytest
import torch
from models import CONFIGS, make, tokens, transformers

MODELS = list(CONFIGS)
# Both sides compute in float32, each rounding in its own order; logits of these models are of size 10.
CLOSE = dict(rtol=2e-4, atol=2e-4)


def logits(model, implementation, **inputs):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("name", MODELS)
def test_logits(name):
    model = make(name)
    ids = tokens()
    torch.testing.assert_close(logits(model, "gqa", input_ids=ids), logits(model, "eager", input_ids=ids), **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    model = make(name).train()
    ids = tokens()
    found = {}
    for implementation in ("eager", "gqa"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found[implementation] = (loss.detach(), {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    (loss, gradients), (wanted_loss, wanted) = found["gqa"], found["eager"]
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys() and any(key.endswith("k_proj.weight") for key in wanted)
    for key in wanted:
        scale = float(wanted[key].abs().max())
        torch.testing.assert_close(gradients[key], wanted[key], rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=lambda text: f"{key}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_generation(name):
    model = make(name)
    ids = tokens(length=40)
    texts = []
    for implementation in ("eager", "gqa"):
        model.set_attn_implementation(implementation)
        texts.append(model.generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False))
    assert torch.equal(*texts)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_padding(name, side):
    """What is padding has no meaning; everything else is as eager has it."""
    model = make(name)
    ids = tokens()
    there = torch.ones_like(ids)
    if side == "left":
        there[0, :31] = 0
    elif side == "right":
        there[0, 50:] = 0
    else:
        there[0, 20:26] = 0
    inputs = dict(input_ids=ids, attention_mask=there)
    got, wanted = (logits(model, implementation, **inputs) for implementation in ("gqa", "eager"))
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got[there == 1], wanted[there == 1], **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_rows_do_not_depend_on_their_batch(name):
    """The attention of a left-padded row is that of the row alone, bit for bit; linear layers are PyTorch's, so attention is asked itself."""
    model = make(name)
    ids = tokens(batch=3)
    there = torch.ones_like(ids)
    there[1, :31] = 0
    calls = []

    def recorded(module, query, key, value, mask, **settings):
        out = gqa_torch.transformers.gqa_attention(module, query, key, value, mask, **settings)
        calls.append((module, query, key, value, settings, out[0]))
        return out

    transformers.AttentionInterface.register("gqa_recorded", recorded)
    transformers.AttentionMaskInterface.register("gqa_recorded", gqa_torch.transformers.gqa_mask)
    logits(model, "gqa_recorded", input_ids=ids, attention_mask=there)
    assert len(calls) == 4
    for module, query, key, value, settings, out in calls:
        for b, start in enumerate((0, 31, 0)):
            row = (x[b : b + 1, :, start:] for x in (query, key, value))
            alone, _ = gqa_torch.transformers.gqa_attention(module, *row, None, **settings)
            assert torch.equal(out[b, start:], alone[0])


def test_no_mask_is_made():
    """Causal and sliding masks are rules: nothing of n_q × n_kv elements exists, with padding or without."""
    model = make("gemma2")
    made = []
    describe = gqa_torch.transformers.gqa_mask

    def recorded(*arguments, **settings):
        made.append(describe(*arguments, **settings))
        return made[-1]

    transformers.AttentionMaskInterface.register("gqa_masks", recorded)
    transformers.AttentionInterface.register("gqa_masks", gqa_torch.transformers.gqa_attention)
    there = torch.ones(2, 70, dtype=torch.long)
    there[0, :9] = 0
    logits(model, "gqa_masks", input_ids=tokens(), attention_mask=there)
    assert len(made) == 2 and sorted(mask.window for mask in made) == [0, 24]
    for mask in made:
        assert isinstance(mask, gqa_torch.transformers.DescribedMask) and mask.made is None and mask.starts.tolist() == [9, 0]
    # What else asks for it is given the mask itself.
    full = make("llama")
    full.set_attn_implementation("gqa")
    mask = describe(2, 5, 8, q_offset=3)
    assert torch.equal(mask[0, 0], torch.ones(5, 8, dtype=torch.bool).tril(3)) and mask.made is not None


def test_static_cache():
    model = make("llama")
    ids = tokens(length=40)
    model.set_attn_implementation("eager")
    wanted = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    model.set_attn_implementation("gqa")
    cache = transformers.StaticCache(config=model.config, max_cache_len=100)
    out = ids
    with torch.no_grad():  # a forward call at a time: generate would compile the model
        step = model(input_ids=ids, cache=cache).logits
        for _ in range(12):
            token = step[:, -1].argmax(-1, keepdim=True)
            out = torch.cat([out, token], 1)
            step = model(input_ids=token, cache=cache).logits
    assert torch.equal(out, wanted)


def test_own_mask_of_four_dims():
    model = make("llama")
    ids = tokens()
    mask = torch.rand(2, 1, 70, 70, generator=torch.Generator().manual_seed(1)) < 0.5
    mask |= torch.eye(70, dtype=torch.bool)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    got, wanted = logits(model, "gqa", input_ids=ids, attention_mask=mask), logits(model, "eager", input_ids=ids, attention_mask=additive)
    torch.testing.assert_close(got, wanted, **CLOSE)
    torch.testing.assert_close(logits(model, "gqa", input_ids=ids, attention_mask=additive), wanted, **CLOSE)


def test_packed_sequences():
    """Positions that begin again are documents of their own: no rule for all, so the mask itself is made."""
    model = make("llama")
    positions = torch.cat([torch.arange(30), torch.arange(40)])[None].expand(2, -1)
    inputs = dict(input_ids=tokens(), position_ids=positions, use_cache=False)
    torch.testing.assert_close(logits(model, "gqa", **inputs), logits(model, "eager", **inputs), **CLOSE)


def test_dropout_is_refused_in_training():
    model = make("llama")
    model.set_attn_implementation("gqa")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    logits(model.eval(), "gqa", input_ids=tokens())  # there is none in evaluation
    with pytest.raises(ValueError, match="gqa: dropout is 0.1; expected 0 in training"):
        model.train()(input_ids=tokens())


def test_compiled():
    model = make("llama")
    model.set_attn_implementation("gqa")
    ids = tokens()
    with torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits
        got = torch.compile(model, backend="aot_eager", fullgraph=True)(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(got, wanted, **CLOSE)
