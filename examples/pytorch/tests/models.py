# SPDX-License-Identifier: Apache-2.0
"""Small random models of transformers, one of each kind of attention; and real ones from files."""

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

COMMON = dict(vocab_size=200, hidden_size=96, intermediate_size=128, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
              max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SLIDING = ["sliding_attention", "full_attention"] * 2
CONFIGS = {
    "llama": ("Llama", {}),
    "llama, MHA": ("Llama", dict(num_key_value_heads=6)),
    "llama, MQA": ("Llama", dict(num_key_value_heads=1)),
    "mistral": ("Mistral", dict(sliding_window=24, head_dim=16)),
    "gemma2": ("Gemma2", dict(head_dim=24, sliding_window=24, attn_logit_softcapping=2.0, query_pre_attn_scalar=20, layer_types=SLIDING)),
    "gemma3": ("Gemma3", dict(head_dim=24, sliding_window=24, query_pre_attn_scalar=20, layer_types=SLIDING)),
    "qwen2": ("Qwen2", {}),
    "qwen2, sliding": ("Qwen2", dict(use_sliding_window=True, sliding_window=24, layer_types=SLIDING)),
    "qwen3": ("Qwen3", dict(head_dim=32)),
    "gpt_oss": ("GptOss", dict(head_dim=16, sliding_window=24, layer_types=SLIDING, num_local_experts=4, num_experts_per_tok=2)),
}


def make(name, dtype=torch.float32):
    family, more = CONFIGS[name]
    config_class = getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))
    config = config_class(**(COMMON | more), attention_dropout=0.0, initializer_range=0.2)
    torch.manual_seed(7)
    model = getattr(transformers, family + "ForCausalLM")(config).to(dtype).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return model


def tokens(batch=2, length=70, seed=3):
    return torch.randint(3, 200, (batch, length), generator=torch.Generator().manual_seed(seed))


def from_gguf(path):
    """(tokenizer, model) in float32."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    where = dict(pretrained_model_name_or_path=Path(path).parent, gguf_file=Path(path).name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
