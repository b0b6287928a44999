# SPDX-License-Identifier: Apache-2.0
"""A model in a folder as Hugging Face writes them, for convert.py: config.json, model.safetensors or its shards, and tokenizer.json.

Architectures llama and qwen2, with byte-level tokenizers. Needs numpy.
"""
import json
import math
import sys

BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# How texts are cut into words: regular expressions whose schemes have a name in GGUF.
BEFORE, AFTER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = {BEFORE + r"\p{N}{1,3}" + AFTER: "llama-bpe", BEFORE + r"\p{N}" + AFTER: "qwen2"}


def read_json(path, required=True):
    if not path.is_file():
        return sys.exit(f"{path}: no such file") if required else {}
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
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
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        sys.exit(f"{path}: partial_rotary_factor is {scaling['partial_rotary_factor']!r}; expected 1.0")
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
    tied = config.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        sys.exit(f"{path}: tie_word_embeddings is {tied!r}; expected true or false")
    heads, dim, layers = whole("num_attention_heads"), whole("hidden_size"), whole("num_hidden_layers")
    head_dim, kv_heads = whole("head_dim", dim // heads), whole("num_key_value_heads", heads)
    if heads % kv_heads != 0 or head_dim % 2 != 0:
        sys.exit(f"{path}: {heads} query heads, {kv_heads} KV heads, head_dim {head_dim}; expected a divisor of the first, and an even "
                 "number")
    base, factor, divisors = rope(path, config, head_dim)
    made = {
        "architecture": kind, "dim": dim, "hidden_dim": whole("intermediate_size"), "layers": layers, "query_heads": heads,
        "kv_heads": kv_heads, "head_dim": head_dim, "vocabulary": whole("vocab_size"),
        "max_length": whole("max_position_embeddings"), "attention_scale": head_dim**-0.5,
        "norm_epsilon": positive(path, "rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        "embedding_scale": 1.0, "activation": "silu", "rope_pairs": "half_split", "rope_dims": head_dim, "qk_norm": False,
        "post_norms": False,
        "tied": tied, **layer_config(layers, 0, base, factor),
    }
    if divisors:
        made["rope_divisors"] = divisors
    return made


def expected_tensors(config, biased):
    """{name: (name as GGUF has it, shape)}. @param biased  queries, keys and values have biases"""
    dim, hidden, vocabulary = config["dim"], config["hidden_dim"], config["vocabulary"]
    queries, keys = (config[heads] * config["head_dim"] for heads in ("query_heads", "kv_heads"))
    made = {"model.embed_tokens.weight": ("token_embd.weight", (vocabulary, dim)), "model.norm.weight": ("output_norm.weight", (dim,))}
    if not config["tied"]:
        made["lm_head.weight"] = ("output.weight", (vocabulary, dim))
    for layer in range(config["layers"]):
        for name, gguf_name, shape in (
            ("input_layernorm", "attn_norm", (dim,)), ("self_attn.q_proj", "attn_q", (queries, dim)),
            ("self_attn.k_proj", "attn_k", (keys, dim)), ("self_attn.v_proj", "attn_v", (keys, dim)),
            ("self_attn.o_proj", "attn_output", (dim, queries)), ("post_attention_layernorm", "ffn_norm", (dim,)),
            ("mlp.gate_proj", "ffn_gate", (hidden, dim)), ("mlp.up_proj", "ffn_up", (hidden, dim)), ("mlp.down_proj", "ffn_down", (dim, hidden)),
        ):
            made[f"model.layers.{layer}.{name}.weight"] = (f"blk.{layer}.{gguf_name}.weight", shape)
            if biased and gguf_name in ("attn_q", "attn_k", "attn_v"):
                made[f"model.layers.{layer}.{name}.bias"] = (f"blk.{layer}.{gguf_name}.bias", shape[:1])
    return made


def read_header(path):
    """(entries of the tensors by name, where the data begins)"""
    if not path.is_file():
        sys.exit(f"{path}: no such file")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size)) if size <= path.stat().st_size else None
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        sys.exit(f"{path}: is no .safetensors file, or is cut off")
    header.pop("__metadata__", None)
    return header, 8 + size


def read_tensors(folder, config):
    """(name as GGUF has it, shape, function that returns its f32 numbers) of each"""
    try:
        import numpy
    except ImportError as error:
        sys.exit(f"{folder}: reading a folder needs numpy: {error}")

    def load(path, kind, begin, shape):
        stored = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[kind]
        values = numpy.fromfile(path, dtype=stored, count=math.prod(shape), offset=begin)
        values = (values.astype("<u4") << 16).view("<f4") if kind == "BF16" else values.astype("<f4")
        return values.reshape(shape)

    path = folder / "model.safetensors.index.json"
    files = read_json(path, required=False).get("weight_map") if path.exists() else {"": "model.safetensors"}
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        sys.exit(f"{path}: weight_map is {files!r:.100}; expected an object, of tensors' names and files")
    headers = {folder / name: read_header(folder / name) for name in sorted(set(files.values()))}
    expected = expected_tensors(config, any(name.endswith(".q_proj.bias") for header, _ in headers.values() for name in header))
    made = {}
    for path, (header, begin) in headers.items():
        for name, entry in header.items():
            if name.endswith("rotary_emb.inv_freq") or (config["tied"] and name == "lm_head.weight"):
                continue
            entry = entry if isinstance(entry, dict) else {}
            kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
            if name not in expected or kind not in BYTES:
                sys.exit(f"{path}: {name} of {kind} is no tensor that is taken here")
            gguf_name, extents = expected[name]
            if shape != list(extents):
                sys.exit(f"{path}: {name} has the shape {shape}; config.json says {list(extents)}")
            size = BYTES[kind] * math.prod(extents)
            two = isinstance(offsets, list) and [type(at) for at in offsets] == [int, int]
            if not two or offsets[0] < 0 or offsets[1] != offsets[0] + size:
                sys.exit(f"{path}: {name} has the data_offsets {offsets!r}; expected two that are {size} bytes apart")
            if begin + offsets[1] > path.stat().st_size:
                sys.exit(f"{path}: is cut off within {name}")
            if name in made:
                sys.exit(f"{path}: {name} is in another file, too")
            made[name] = (gguf_name, extents, lambda of=(path, kind, begin + offsets[0], extents): load(*of))
    for name in expected:
        if name not in made:
            sys.exit(f"{folder}: there is no tensor {name}")
    return list(made.values())


def word_scheme(path, tokenizer):
    """How texts are cut into words, as GGUF names it."""
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if tokenizer.get("model", {}).get("type") != "BPE" or "ByteLevel" not in kinds:
        sys.exit(f"{path}: is no byte-level BPE; a GGUF of the model may be taken")
    by_bytes = (steps[-1].get("use_regex", True), steps[-1].get("add_prefix_space", True))
    if kinds == ["ByteLevel"] and by_bytes == (True, False):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and by_bytes == (True, False) and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and by_bytes == (False, False) and steps[0]["pattern"].get("Regex") in WORDS:
        return WORDS[steps[0]["pattern"]["Regex"]]
    sys.exit(f"{path}: cuts texts into words in a way that is not known here; a GGUF of the model may be taken")


def read_tokenizer(folder, config, end_tokens):
    """As convert.py writes it, with a token for each row of the embedding. @param config  of config.json; end_tokens: convert.py's"""
    path = folder / "tokenizer.json"
    read = read_json(path)
    scheme = word_scheme(path, read)
    ids = dict(read["model"]["vocab"])
    added = {token["content"]: token for token in read.get("added_tokens", [])}
    ids.update((text, token["id"]) for text, token in added.items())
    vocabulary = config["vocab_size"]

    def checked(file, what, token):
        if type(token) is not int or not 0 <= token < vocabulary:
            sys.exit(f"{file}: {what} is {token!r}; expected one of {vocabulary} tokens (vocab_size)")
        return token

    tokens = [f"<unused{i}>" for i in range(vocabulary)]  # rows that no text leads to, but a draw may
    types = [5] * vocabulary
    for text, token in ids.items():
        checked(path, f"the id of {text!r}", token)
        tokens[token], types[token] = text, 1 if text not in added else 3 if added[text].get("special") else 4
    ends = end_tokens(ids, types)
    for file in (folder / "config.json", folder / "generation_config.json"):
        value = read_json(file, required=False).get("eos_token_id")
        ends |= {checked(file, "eos_token_id", end) for end in (value if isinstance(value, list) else [] if value is None else [value])}
    # A begin token is what the template of a single text has in front of it.
    processor = read.get("post_processor") or {}
    templates = [step for step in processor.get("processors", [processor]) if step.get("type") == "TemplateProcessing"]
    first = templates[0]["single"][0].get("SpecialToken", {}).get("id") if templates else None
    begin = ids[first] if first is not None else config.get("bos_token_id")
    return {
        "kind": "bpe", "pre": scheme, "tokens": tokens, "types": types,
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in read["model"]["merges"]],
        "bos": begin if begin is None else checked(folder / "config.json", "bos_token_id", begin), "eos": sorted(ends),
        "add_bos": first is not None, "add_space_prefix": False,
    }


def from_folder(folder, layer_config, end_tokens):
    """config (without chat), tokenizer and tensors, as convert.py's Model has them"""
    path = folder / "config.json"
    read = read_json(path)
    config = model_config(path, read, layer_config)
    tensors = read_tensors(folder, config)
    config["qkv_bias"] = "blk.0.attn_q.bias" in (name for name, _, _ in tensors)
    try:
        tokenizer = read_tokenizer(folder, read, end_tokens)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"{folder / 'tokenizer.json'}: is not as Hugging Face writes them: {error!r}")
    return config, tokenizer, tensors
