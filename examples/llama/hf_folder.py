# SPDX-License-Identifier: Apache-2.0
"""A model in a folder as Hugging Face writes them, for convert.py: config.json, model.safetensors or its shards, and tokenizer.json.

Architectures llama and qwen2, with byte-level tokenizers. Needs numpy.
"""
import json
import math
import struct
import sys

TENSORS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
LAYER_TENSORS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# How texts are cut into words, by a part of the regular expression that only one of them has.
WORDS = {r"\p{N}{1,3}": "llama-bpe", r"|\p{N}|": "qwen2"}


def read_json(path, required=True):
    if not path.is_file():
        return sys.exit(f"{path}: no such file") if required else {}
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        sys.exit(f"{path}: is no JSON: {error}")
    return made if isinstance(made, dict) else sys.exit(f"{path}: is no JSON object")


def positive(path, name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        sys.exit(f"{path}: {name} is {value!r}; expected a number above 0")
    return value


def rope(path, config, dims):
    """(base, what positions are divided by, what each pair's frequency is divided by or None)"""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        sys.exit(f"{path}: rope_scaling is {scaling!r}; expected an object")
    base = positive(path, "rope_theta", scaling.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        sys.exit(f"{path}: rope_type is {kind}; expected default, linear or llama3")
    try:
        names = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        needed = {"default": 0, "linear": 1, "llama3": 4}[kind]
        numbers = [positive(path, name, scaling[name]) for name in names[:needed]]
    except KeyError as error:
        sys.exit(f"{path}: rope_type is {kind}, and there is no {error.args[0]}")
    if kind != "llama3":
        return base, *(numbers or [1.0]), None
    factor, low, high, length = numbers
    if low >= high:
        sys.exit(f"{path}: low_freq_factor is {low}; expected a number below high_freq_factor, {high}")
    divisors = []
    for pair in range(dims // 2):
        turns = length / (2 * math.pi * base ** (2 * pair / dims))  # in as many tokens as the model was first trained for
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)  # slow pairs are divided, fast ones kept
        divisors.append(1 / ((1 - kept) / factor + kept))
    return base, 1.0, divisors


def model_config(path, config, layer_config):
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2"):
        sys.exit(f"{path}: model_type is {kind}; expected llama or qwen2")

    def whole(name, absent=None):
        value = config.get(name)
        value = absent if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            sys.exit(f"{path}: {name} is {value!r}; expected a whole number from 1 on")
        return value

    for name, expected in (("hidden_act", "silu"), ("use_sliding_window", False), ("mlp_bias", False), ("partial_rotary_factor", 1.0)):
        if config.get(name, expected) != expected:
            sys.exit(f"{path}: {name} is {config[name]!r}; expected {expected!r}")
    heads, dim, layers = whole("num_attention_heads"), whole("hidden_size"), whole("num_hidden_layers")
    head_dim = whole("head_dim", dim // heads)
    base, factor, divisors = rope(path, config, head_dim)
    made = {
        "architecture": kind, "dim": dim, "hidden_dim": whole("intermediate_size"), "layers": layers, "query_heads": heads,
        "kv_heads": whole("num_key_value_heads", heads), "head_dim": head_dim, "vocabulary": whole("vocab_size"),
        "max_length": whole("max_position_embeddings"), "attention_scale": head_dim**-0.5,
        "norm_epsilon": positive(path, "rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        "embedding_scale": 1.0, "activation": "silu", "rope_pairs": "half_split", "rope_dims": head_dim, "qk_norm": False, "post_norms": False,
        "tied": config.get("tie_word_embeddings", False), **layer_config(layers, 0, base, factor),
    }
    if divisors:
        made["rope_divisors"] = divisors
    return made


def read_tensors(folder, tied):
    """(name as GGUF has it, shape, function that returns its f32 numbers) of each"""
    try:
        import numpy
    except ImportError as error:
        sys.exit(f"{folder}: reading a folder needs numpy: {error}")

    def load(path, entry, begin):
        first, last = entry["data_offsets"]
        kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry["dtype"]]
        values = numpy.fromfile(path, dtype=kind, count=(last - first) // numpy.dtype(kind).itemsize, offset=begin + first)
        values = (values.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else values.astype("<f4")
        return values.reshape(entry["shape"])

    index = read_json(folder / "model.safetensors.index.json", required=False)
    files = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    made = []
    for path in (folder / name for name in files):
        if not path.is_file():
            sys.exit(f"{path}: no such file")
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(size)) if size <= path.stat().st_size else None
            except ValueError:
                header = None
        if not isinstance(header, dict):
            sys.exit(f"{path}: is no .safetensors file, or is cut off")
        header.pop("__metadata__", None)
        for name, entry in header.items():
            part = name.split(".", 3)
            known = TENSORS.get(name)
            if len(part) == 4 and part[:2] == ["model", "layers"]:
                module, _, what = part[3].rpartition(".")
                known = f"blk.{part[2]}.{LAYER_TENSORS[module]}.{what}" if module in LAYER_TENSORS else None
            if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
                continue
            if known is None or entry["dtype"] not in ("F32", "F16", "BF16"):
                sys.exit(f"{path}: {name} of {entry['dtype']} is no tensor that is taken here")
            if 8 + size + entry["data_offsets"][1] > path.stat().st_size:
                sys.exit(f"{path}: is cut off within {name}")
            made.append((known, tuple(entry["shape"]), lambda path=path, entry=entry, begin=8 + size: load(path, entry, begin)))
    return made


def word_scheme(path, tokenizer):
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if tokenizer.get("model", {}).get("type") != "BPE" or "ByteLevel" not in kinds:
        sys.exit(f"{path}: is no byte-level BPE; a GGUF of the model may be taken")
    if kinds in (["ByteLevel"], ["Digits", "ByteLevel"]):
        return "gpt-2" if len(kinds) == 1 else "smollm"
    for step in steps:
        for part, scheme in WORDS.items():
            if part in str(step.get("pattern", {}).get("Regex", "")):
                return scheme
    sys.exit(f"{path}: cuts texts into words in a way that is not known here; a GGUF of the model may be taken")


def read_tokenizer(folder, config, end_tokens):
    path = folder / "tokenizer.json"
    read = read_json(path)
    scheme = word_scheme(path, read)
    ids = dict(read["model"]["vocab"])
    added = {token["content"]: token for token in read.get("added_tokens", [])}
    ids.update((text, token["id"]) for text, token in added.items())
    tokens = [f"<unused{i}>" for i in range(max(ids.values()) + 1)]
    types = [5] * len(tokens)
    for text, token in ids.items():
        tokens[token], types[token] = text, 1 if text not in added else 3 if added[text].get("special") else 4
    ends = set()
    for named in (config, read_json(folder / "generation_config.json", required=False)):
        value = named.get("eos_token_id")
        ends |= set(value if isinstance(value, list) else [] if value is None else [value])
    ends |= {ids[text] for text in end_tokens if text in ids and types[ids[text]] == 3}
    # A begin token is what the template of a single text has in front of it.
    processor = read.get("post_processor") or {}
    templates = [step for step in processor.get("processors", [processor]) if step.get("type") == "TemplateProcessing"]
    first = templates[0]["single"][0].get("SpecialToken", {}).get("id") if templates else None
    return {
        "kind": "bpe", "pre": scheme, "tokens": tokens, "types": types,
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in read["model"]["merges"]],
        "bos": ids[first] if first else config.get("bos_token_id"), "eos": sorted(ends),
        "add_bos": first is not None, "add_space_prefix": False,
    }


def from_folder(folder, layer_config, end_tokens):
    """config (without chat), tokenizer and tensors, as convert.py's Model has them"""
    path = folder / "config.json"
    read = read_json(path)
    config = model_config(path, read, layer_config)
    tensors = read_tensors(folder, config["tied"])
    config["qkv_bias"] = "blk.0.attn_q.bias" in (name for name, _, _ in tensors)
    return config, read_tokenizer(folder, read, end_tokens), tensors
