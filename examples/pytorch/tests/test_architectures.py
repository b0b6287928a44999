# SPDX-License-Identifier: Apache-2.0
"""Attention that is not a decoder's own: encoders, cross attention, position biases, windows to both sides, chunks. All against "eager"."""

import pytest
import torch
from gqa_torch import GqaCache
from models import tokens, transformers

COMMON = dict(vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ENCODER = dict(COMMON, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4)
MODELS = {
    "Bert": ("BertModel", ENCODER),
    "ModernBert": ("ModernBertModel", dict(ENCODER, local_attention=16, cls_token_id=1, sep_token_id=2)),
    "T5": ("T5ForConditionalGeneration", dict(COMMON, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
                                              decoder_start_token_id=0)),
    "Bart": ("BartForConditionalGeneration", dict(COMMON, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                                                  decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, decoder_start_token_id=2)),
    "Llama4Text": ("Llama4ForCausalLM", dict(ENCODER, num_key_value_heads=2, head_dim=16, intermediate_size_mlp=96, attention_chunk_size=16,
                                             num_local_experts=2)),
}


def make(name):
    torch.manual_seed(0)
    model_class, settings = MODELS[name]
    return getattr(transformers, model_class)(getattr(transformers, name + "Config")(**settings)).eval()


@pytest.mark.parametrize("name", list(MODELS))
def test_outputs(name):
    model = make(name)
    ids = tokens(length=50)
    there = torch.ones_like(ids)
    there[0, 40:] = 0
    inputs = dict(input_ids=ids, attention_mask=there)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(length=20, seed=4)
        there = torch.ones(2, 20)
    found = []
    for implementation in ("gqa", "eager"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            out = model(**inputs)
        found.append((out.logits if hasattr(out, "logits") else out.last_hidden_state)[there == 1])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["T5", "Bart", "Llama4Text"])
def test_generation(name):
    model = make(name)
    texts = []
    for implementation in ("gqa", "eager"):
        model.set_attn_implementation(implementation)
        texts.append(model.generate(tokens(length=40), max_new_tokens=20, min_new_tokens=20, do_sample=False))
    assert torch.equal(*texts)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_own_caches(name, beams):
    """Keys and values of both attentions of a decoder in the library's storage; those of the encoder's tokens with padding on the right."""
    model = make(name)
    ids = tokens(length=40)
    there = torch.ones_like(ids)
    there[0, 30:] = 0
    own = [GqaCache(model.config, codec="float32", max_tokens=64) for _ in range(2)]
    texts = []
    for implementation, cache in (("gqa", transformers.EncoderDecoderCache(*own)), ("eager", None)):
        model.set_attn_implementation(implementation)
        texts.append(model.generate(ids, attention_mask=there, cache=cache, num_beams=beams, max_new_tokens=20, min_new_tokens=20,
                                    do_sample=False))
    assert torch.equal(*texts) and [c.get_seq_length() for c in own] == [20, 40]


def test_windows_of_a_decoder_with_an_encoder():
    """T5Gemma: the decoder's own tokens in windows, the encoder's in a cache that keeps all. Step by step, as its generate makes caches."""
    part = dict(ENCODER, num_key_value_heads=2, head_dim=16, sliding_window=24, query_pre_attn_scalar=16, max_position_embeddings=512,
                layer_types=["sliding_attention", "full_attention"] * 2)
    torch.manual_seed(0)
    config = transformers.T5GemmaConfig(encoder=dict(part), decoder=dict(part), **COMMON)
    model = transformers.T5GemmaForConditionalGeneration(config).eval()
    there = torch.ones(2, 100, dtype=torch.long)
    there[0, 80:] = 0
    inputs = dict(input_ids=tokens(length=100), attention_mask=there)

    def text(implementation, own, cross):
        model.set_attn_implementation(implementation)
        given = dict(encoder_outputs=model.get_encoder()(**inputs), attention_mask=there, cache=transformers.EncoderDecoderCache(own, cross))
        chosen = [torch.full((2, 30), 5)]
        for _ in range(60):
            chosen.append(model(decoder_input_ids=chosen[-1], **given).logits[:, -1].argmax(-1, keepdim=True))
        return torch.cat(chosen, 1)

    with torch.no_grad():
        wanted = text("eager", transformers.DynamicCache(config=config.decoder), transformers.DynamicCache())
        own, cross = (GqaCache(config, codec="float32", page_size=16, all_tokens=a) for a in (False, True))
        assert torch.equal(text("gqa", own, cross), wanted) and own.layers[0].storage.first_held == 64
        with pytest.raises(ValueError, match="tokens before position 64 are not kept without all_tokens=True"):
            text("gqa", *(GqaCache(config, codec="float32", page_size=16) for _ in range(2)))
