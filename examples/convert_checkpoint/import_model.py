#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a model as model.safetensors and config.json in Hugging Face's names, for convert_checkpoint and benchmarks/convert_quality.

    import_model.py stories260K.bin FOLDER                        llama2.c's legacy layout
    import_model.py SmolLM2-135M.gguf FOLDER                      GGUF, architecture llama; needs PyPI's gguf, tokenizers
    import_model.py model.onnx FOLDER --tokenizer tokenizer.json  a BERT encoder in ONNX, weights as f32 or quantised; onnx, tokenizers

Where there is a tokenizer, tokens.json gets text for calibration and other text to measure with: docstrings of Python's standard
library, split by module, so that no text is in both. Needs numpy and safetensors.
"""
import argparse
import importlib
import json
import pathlib
import pkgutil
import re
import struct
import sys
import warnings

import numpy as np
from safetensors.numpy import save_file


def halves_from_pairs(weight, heads):
    """Rows of each head from RoPE pairs side by side (llama2.c, GGUF) to pairs half a head apart (Hugging Face)."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, rows // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def llama_config(hidden, inner, layers, heads, kv_heads, vocabulary, positions, theta, epsilon, tied):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float32",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": positions,
        "rope_theta": theta, "rms_norm_eps": epsilon, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2,
    }


def from_llama2c(path):
    data = path.read_bytes()
    dim, inner, layers, heads, kv_heads, vocabulary, positions = struct.unpack("<7i", data[:28])
    floats = np.frombuffer(data, "<f4", offset=28)
    at = 0

    def take(*shape):
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return floats[at - count : at].reshape(shape)

    kv_dim = dim // heads * kv_heads
    tied, vocabulary = vocabulary > 0, abs(vocabulary)
    tensors = {"model.embed_tokens.weight": take(vocabulary, dim)}
    for name, shape in [("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)), ("self_attn.k_proj", (kv_dim, dim)),
                        ("self_attn.v_proj", (kv_dim, dim)), ("self_attn.o_proj", (dim, dim)),
                        ("post_attention_layernorm", (dim,)), ("mlp.gate_proj", (inner, dim)),
                        ("mlp.down_proj", (dim, inner)), ("mlp.up_proj", (inner, dim))]:
        for layer, weight in enumerate(take(layers, *shape)):
            if "q_proj" in name or "k_proj" in name:
                weight = halves_from_pairs(weight, heads if "q_proj" in name else kv_heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight
    tensors["model.norm.weight"] = take(dim)
    if not tied:
        take(positions, dim // heads)
        tensors["lm_head.weight"] = take(vocabulary, dim)
    return tensors, llama_config(dim, inner, layers, heads, kv_heads, vocabulary, positions, 10000.0, 1e-5, tied), None


def from_gguf(path):
    import gguf
    import tokenizers

    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    if field("general.architecture") != "llama":
        sys.exit(f"{path}: architecture {field('general.architecture')}; expected llama")
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    names = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    tops = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight"}
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in tops:
            tensors[tops[tensor.name]] = weight
            continue
        _, layer, part, kind = tensor.name.split(".")
        if part in ("attn_q", "attn_k"):
            weight = halves_from_pairs(weight, heads if part == "attn_q" else kv_heads)
        tensors[f"model.layers.{layer}.{names[part]}.{kind}"] = weight
    embedding = tensors["model.embed_tokens.weight"]
    config = llama_config(embedding.shape[1], field("llama.feed_forward_length"), field("llama.block_count"), heads, kv_heads,
                          embedding.shape[0], field("llama.context_length"), field("llama.rope.freq_base"),
                          field("llama.attention.layer_norm_rms_epsilon"), "lm_head.weight" not in tensors)
    vocabulary = {token: i for i, token in enumerate(field("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence([split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)])
    return tensors, config, lambda text: [config["bos_token_id"]] + tokenizer.encode(text).ids


def from_onnx(path, tokenizer_path):
    import onnx
    import tokenizers

    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:  # int8 weights are written as cast(q) * scale
        if node.op_type == "Cast" and node.input[0] in arrays:
            arrays[node.output[0]] = arrays[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and all(name in arrays for name in node.input):
            arrays[node.output[0]] = arrays[node.input[0]] * arrays[node.input[1]]
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:  # a linear layer is x·W + bias, and the bias has kept its name
        if node.op_type == "Add" and node.input[0] in products and node.input[1].endswith(".bias"):
            weight = products[node.input[0]].input[1]
            arrays[node.input[1].removesuffix("bias") + "weight"] = arrays[weight].T
    tensors = {name[name.index("embeddings" if ".embeddings." in name else "encoder."):]: array.astype(np.float32)
               for name, array in arrays.items()
               if re.search(r"(embeddings|encoder)\..*\.(weight|bias)$", name)}
    inner, hidden = tensors["encoder.layer.0.intermediate.dense.weight"].shape
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": hidden,
        "intermediate_size": inner, "num_attention_heads": 12, "layer_norm_eps": 1e-12, "torch_dtype": "float32",
        "num_hidden_layers": 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("encoder.layer.")),
        "vocab_size": tensors["embeddings.word_embeddings.weight"].shape[0],
        "max_position_embeddings": tensors["embeddings.position_embeddings.weight"].shape[0],
    }
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_path))
    tokenizer.no_padding()
    return tensors, config, lambda text: tokenizer.encode(text).ids


def paragraphs():
    """Paragraphs of English from docstrings: (those of modules a … m, those of n … z)."""
    warnings.simplefilter("ignore")  # of modules that are about to go
    parts = ([], [])
    seen = set()
    for name in sorted(module.name for module in pkgutil.iter_modules() if module.name in sys.stdlib_module_names):
        if name.startswith(("_", "idlelib", "antigravity", "this", "test", "turtle", "tkinter", "lib2to3")):
            continue
        try:
            module = importlib.import_module(name)
        except Exception:  # not on this system
            continue
        members = [member for _, member in sorted(vars(module).items()) if getattr(member, "__module__", None) == name]
        docs = [module, *members, *(part for member in members if isinstance(member, type)
                                    for _, part in sorted(vars(member).items()))]
        for doc in (getattr(part, "__doc__", None) for part in docs):
            for paragraph in re.split(r"\n\s*\n", doc) if isinstance(doc, str) else []:
                text = " ".join(paragraph.split())
                plain = len(re.findall(r"[A-Za-z ,.']", text)) > 0.93 * len(text) and text.endswith(".")
                if plain and len(text) >= 60 and text not in seen:
                    seen.add(text)
                    parts[name[0] > "m"].append(text)
    return parts


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=pathlib.Path)
    options.add_argument("folder", type=pathlib.Path)
    options.add_argument("--tokenizer", type=pathlib.Path, help="tokenizer.json of an ONNX encoder")
    options.add_argument("--length", type=int, default=256, help="tokens of a sequence for a decoder")
    options.add_argument("--sequences", type=int, default=32, help="sequences of each of the two texts, at most")
    given = options.parse_args()

    if given.model.suffix == ".gguf":
        tensors, config, encode = from_gguf(given.model)
    elif given.model.suffix == ".onnx":
        if given.tokenizer is None:
            sys.exit("an ONNX encoder needs --tokenizer")
        tensors, config, encode = from_onnx(given.model, given.tokenizer)
    else:
        tensors, config, encode = from_llama2c(given.model)
    given.folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
              given.folder / "model.safetensors", metadata={"format": "pt"})
    (given.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if encode is None:
        return
    tokens = {}
    for name, part in zip(("calibration", "held_out"), paragraphs()):
        sequences = []
        if config["model_type"] == "bert":  # a paragraph each
            sequences = [encode(text)[: given.length] for text in part[:: max(1, len(part) // (8 * given.sequences))]]
            sequences = sequences[: 8 * given.sequences]
        else:  # paragraphs one after the other, cut where a sequence is full
            for text in part:
                ids = encode(text)
                if not sequences or len(sequences[-1]) >= given.length:
                    sequences.append(ids[:1])
                sequences[-1] += [198] * (len(sequences[-1]) > 1) + ids[1:]
            sequences = [ids[: given.length] for ids in sequences[:-1]]
            sequences = sequences[:: max(1, len(sequences) // given.sequences)][: given.sequences]
        tokens[name] = sequences
        print(f"{name}: {len(sequences)} sequences, {sum(map(len, sequences))} tokens")
    (given.folder / "tokens.json").write_text(json.dumps(tokens) + "\n")


if __name__ == "__main__":
    main()
