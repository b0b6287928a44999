#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs convert_checkpoint on small random checkpoints and loads what it wrote with Python's safetensors.

    check.py PROGRAM FOLDER      exit status 77: safetensors or numpy is not installed, nothing was checked
"""
import json
import pathlib
import shutil
import struct
import subprocess
import sys

try:
    import numpy as np
    from safetensors.numpy import load_file, save_file
except ImportError as error:
    print(f"{error}: convert_checkpoint was not checked")
    sys.exit(77)

program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
HEADS, KV_HEADS, DIM, HIDDEN, INNER, LAYERS, WORDS = 4, 2, 4, 16, 24, 2, 30


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


def make(name, kind, biases, shards=1):
    random = np.random.default_rng(7)
    tensors = {"model.embed_tokens.weight": random.normal(size=(WORDS, HIDDEN)), "model.norm.weight": np.ones(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for part, rows, columns in [("q_proj", HEADS * DIM, HIDDEN), ("k_proj", KV_HEADS * DIM, HIDDEN),
                                    ("v_proj", KV_HEADS * DIM, HIDDEN), ("o_proj", HIDDEN, HEADS * DIM)]:
            tensors[f"{prefix}self_attn.{part}.weight"] = random.normal(size=(rows, columns)) / 4
            if biases and part != "o_proj":
                tensors[f"{prefix}self_attn.{part}.bias"] = random.normal(size=rows)
        for part, rows, columns in [("gate_proj", INNER, HIDDEN), ("up_proj", INNER, HIDDEN), ("down_proj", HIDDEN, INNER)]:
            tensors[f"{prefix}mlp.{part}.weight"] = random.normal(size=(rows, columns)) / 4
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{part}.weight"] = np.ones(HIDDEN)
    tensors = {key: value.astype(kind) for key, value in tensors.items()}
    path = folder / name
    path.mkdir(parents=True)
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    else:
        where = {key: f"model-{1 + i % shards:05}-of-{shards:05}.safetensors" for i, key in enumerate(names)}
        for file in sorted(set(where.values())):
            save_file({key: tensors[key] for key in names if where[key] == file}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": where}))
    (path / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "hidden_act": "silu", "vocab_size": WORDS, "kept": [1, 2]}))
    (path / "tokenizer.json").write_text("{}")
    return path, tensors


def run(*arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


def load(path):
    made = {}
    for file in path.glob("*.safetensors"):
        made |= load_file(file)
    return made


shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
tokens = folder / "tokens.json"
random = np.random.default_rng(3)
tokens.write_text(json.dumps({"calibration": random.integers(0, WORDS, (6, 40)).tolist(),
                              "held_out": random.integers(0, WORDS, (2, 40)).tolist()}))
inputs = folder / "inputs.safetensors"
save_file({f"layers.{layer}": random.normal(size=(3, 40, HIDDEN)).astype(np.float32) for layer in range(LAYERS)}, inputs)

for kind, biases, shards in [(np.float32, False, 1), (np.float16, True, 1), (np.float32, True, 3)]:
    what = f"{np.dtype(kind).name}, {'with' if biases else 'without'} biases, {shards} file(s)"
    model, tensors = make(f"{np.dtype(kind).name}-{biases}-{shards}", kind, biases, shards)
    for name, options in [("mean", ["--method", "mean", "--grouping", "neighbours", "--fit", "none"]), ("weights", []),
                          ("run", ["--tokens", tokens, "--evaluate", "--report", folder / "report.json"]),
                          ("inputs", ["--calibration", inputs])]:
        out = folder / f"{model.name}-{name}"
        done = run("--model", model, "--output", out, "--kv-heads", 1, *options)
        check(done.returncode == 0, f"{what}, {name}: converts {done.stderr}")
        made = load(out)
        check(set(made) == set(tensors), f"{what}, {name}: the same tensors")
        check(all(made[key].dtype == np.dtype(kind) for key in made), f"{what}, {name}: the same types")
        check(made["model.layers.1.self_attn.k_proj.weight"].shape == (DIM, HIDDEN), f"{what}, {name}: one KV head")
        untouched = [key for key in made if "self_attn" not in key]
        check(all(np.array_equal(made[key], tensors[key]) for key in untouched), f"{what}, {name}: the rest as it was")
        config = json.loads((out / "config.json").read_text())
        check(config["num_key_value_heads"] == 1 and config["kept"] == [1, 2], f"{what}, {name}: config.json")
        check((out / "tokenizer.json").exists(), f"{what}, {name}: the tokenizer is there")
        check(not list(out.glob("*.part*")), f"{what}, {name}: nothing is left lying")
        if name == "mean":
            k = tensors["model.layers.0.self_attn.k_proj.weight"].astype(np.float64)
            mean = ((k[:DIM] + k[DIM:]) / 2).astype(kind)
            check(np.array_equal(made["model.layers.0.self_attn.k_proj.weight"], mean), f"{what}: the mean, rounded once")
        if name == "run":
            report = json.loads((folder / "report.json").read_text())
            layer = report["layers"][0]
            check(layer["fitted_error"] < layer["merged_error"] and len(report["perplexity"]) == 2, f"{what}: the report")
        if shards > 1:
            index = json.loads((out / "model.safetensors.index.json").read_text())
            check(index["metadata"]["total_size"] == sum(array.nbytes for array in made.values()), f"{what}: the index")
    done = run("--model", model, "--output", folder / f"{model.name}-same", "--kv-heads", KV_HEADS, "--tokens", tokens)
    same = load(folder / f"{model.name}-same")
    check(done.returncode == 0 and all(np.array_equal(same[key], tensors[key]) for key in tensors), f"{what}: as many heads, the same bits")
    done = run("--model", model, "--output", folder / f"{model.name}-mha", "--kv-heads", HEADS)
    repeated = load(folder / f"{model.name}-mha")
    k = tensors["model.layers.1.self_attn.k_proj.weight"].reshape(KV_HEADS, DIM, HIDDEN).repeat(HEADS // KV_HEADS, axis=0)
    check(np.array_equal(repeated["model.layers.1.self_attn.k_proj.weight"].reshape(k.shape), k), f"{what}: repeated")
    done = run("--model", folder / f"{model.name}-mha", "--output", folder / f"{model.name}-back", "--kv-heads", KV_HEADS)
    back = load(folder / f"{model.name}-back")
    check(all(np.array_equal(back[key], tensors[key]) for key in tensors), f"{what}: repeated and merged, the same bits")

# What is no checkpoint is refused with the reason, and leaves nothing behind.
model, _ = make("refused", np.float32, False)
good = (model / "model.safetensors").read_bytes()
length = struct.unpack("<Q", good[:8])[0]
header = json.loads(good[8 : 8 + length])
first = "model.embed_tokens.weight"


def with_header(change, data=good[8 + length :]):
    new = json.loads(json.dumps(header))
    change(new)
    text = json.dumps(new).encode()
    return struct.pack("<Q", len(text)) + text + data


def set_offsets(begin, end):
    return lambda new: new[first].update(data_offsets=[begin, end])


second = next(key for key in header if key not in (first, "__metadata__"))
cases = [
    (b"abc", "starts with a length"), (good[:200], "is cut off"), (good[:-5], "the file is cut off"),
    (b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(40), "no .safetensors file"), (struct.pack("<Q", 10) + b"{not json}" + b"1" * 40, "no JSON object"),
    (struct.pack("<Q", 10) + b"[1, 2, 34]", "does not begin with {"), (struct.pack("<Q", 2**62) + b"{}", "at most 100000000"),
    (good + b"1234", "bytes of data"), (with_header(lambda new: new[first].update(dtype="F31")), "unknown dtype F31"),
    (with_header(lambda new: new[first].update(shape=[WORDS, HIDDEN + 1])), "its shape and dtype need"),
    (with_header(lambda new: new[first].update(shape=[2**40, 2**40])), "too many elements"),
    (with_header(lambda new: new[first].update(shape=[-1, 16])), "whole numbers"),
    (with_header(set_offsets(2**63, 2**63 + 1920)), "ends at byte"), (with_header(set_offsets(1920, 0)), "ends before it begins"),
    (with_header(lambda new: new[first].update(data_offsets=[0])), "1 data_offsets"),
    (with_header(lambda new: new[first].pop("dtype")), "has no dtype"),
    (with_header(lambda new: new.__setitem__("copy", new[second])), "overlap"),
    (with_header(lambda new: new.pop(second)), "no tensor has bytes"),
]
for data, reason in cases:
    (model / "model.safetensors").write_bytes(data)
    out = folder / "nothing"
    done = run("--model", model, "--output", out, "--kv-heads", 1)
    check(done.returncode == 2 and reason in done.stderr, f"refused: {reason} ({done.stderr.strip()[-160:]})")
    check(not out.exists() or not list(out.iterdir()), "and nothing was written")
(model / "model.safetensors").write_bytes(good)
for change, reason in [({"num_key_value_heads": 3}, "num_key_value_heads is 3"), ({"num_attention_heads": 0}, "num_attention_heads is 0"),
                       ({"num_key_value_heads": 4}, "weights.k.rows() is 8"), ({"num_hidden_layers": 1}, "is of no layer"),
                       ({"num_hidden_layers": 3}, "has no tensor model.layers.2")]:
    config = json.loads((model / "config.json").read_text())
    (folder / "refused-config").mkdir(exist_ok=True)
    shutil.copy(model / "model.safetensors", folder / "refused-config")
    (folder / "refused-config/config.json").write_text(json.dumps(config | change))
    done = run("--model", folder / "refused-config", "--output", folder / "nothing", "--kv-heads", 1)
    check(done.returncode == 2 and reason in done.stderr, f"refused: {reason} ({done.stderr.strip()[-160:]})")
    check(not [file for file in (folder / "nothing").glob("*")], "and nothing was written")
done = run("--model", model, "--output", model, "--kv-heads", 1)
check(done.returncode == 2 and "own folder" in done.stderr, "refused: the model's own folder")
done = run("--model", model, "--output", folder / "float32-False-1-mean", "--kv-heads", 1)
check(done.returncode == 2 and "is there already" in done.stderr, "refused: a file that is there")
print("everything is as it should be")
