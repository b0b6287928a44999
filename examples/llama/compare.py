#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the program llama to llama.cpp: greedy text from the same weights, token by token, and where they differ, why.

    compare.py --llama build/examples/llama --model model.safetensors --gguf model.gguf --gguf model-f32.gguf

model.safetensors and model-f32.gguf are what convert.py wrote of model.gguf. For each GGUF file and prompt it prints whether the tokens of
the text are the same, and if not, how far apart the two likeliest tokens were where they first differ, in llama.cpp's logits, and the largest
difference of any logit up to there: a difference larger than half the margin can turn the choice over. Both have keys and values in f32 (0 is
llama.cpp's number of that type). Needs PyPI's llama-cpp-python and numpy.

    compare.py --llama build/examples/llama --model model.safetensors --transformers model.gguf

holds the logits of the same texts to those of transformers in double precision, and says which of these tokens are the likeliest there. Needs
PyPI's transformers, torch and gguf.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import tempfile

import numpy as np

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a lighthouse keeper who",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Photosynthesis is the process by which plants",
]


def read_safetensors(path):
    """Tensors by name, mapped."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
    types = {"I32": "<i4", "F32": "<f4"}
    return {name: np.memmap(path, dtype=types[entry["dtype"]], mode="r", offset=8 + size + entry["data_offsets"][0],
                            shape=tuple(entry["shape"]))
            for name, entry in header.items() if name != "__metadata__"}


def ours(given, prompt, logits):
    """(the prompt's tokens and those that follow; logits of all but the last). @param logits  a file for them"""
    subprocess.run([given.llama, "--model", given.model, "--prompt", prompt, "--steps", str(given.steps), "--ignore-end", "--logits",
                    logits, "--threads", str(given.threads)], check=True, stdout=subprocess.DEVNULL)
    made = read_safetensors(logits)
    return made["tokens"].tolist(), made["logits"]


def theirs(model, tokens, steps):
    """The same by llama.cpp, from the prompt's tokens."""
    model.reset()
    model.eval(tokens)
    tokens = list(tokens)
    rows = [model.scores[: len(tokens)].copy()]
    for step in range(steps):
        tokens.append(int(np.argmax(rows[-1][-1])))
        if step + 1 < steps:
            model.eval(tokens[-1:])
            rows.append(model.scores[len(tokens) - 1 : len(tokens)].copy())
    return tokens, np.concatenate(rows)


def compare(given, model, prompt, made):
    """A row of the table: prompt, tokens that are the same, largest difference of a logit, margin where they differ."""
    our_tokens, our_logits = made
    prompt_tokens = len(our_tokens) - given.steps
    own = model.tokenize(prompt.encode(), special=True)
    tokenised = "" if own == our_tokens[:prompt_tokens] else " (tokenised otherwise)"
    tokens, logits = theirs(model, our_tokens[:prompt_tokens], given.steps)
    same = 0
    while same < given.steps and tokens[prompt_tokens + same] == our_tokens[prompt_tokens + same]:
        same += 1
    rows = prompt_tokens + min(same, given.steps - 1)
    difference = max(float(np.abs(our_logits[i] - logits[i]).max()) for i in range(rows))
    best = np.sort(logits[rows - 1])[-2:]
    margin = "" if same == given.steps else f"{best[1] - best[0]:.2g}"
    return f"{json.dumps(prompt)[1:-1][:40]}{tokenised}", same, difference, margin


def in_double(path):
    """A function from tokens to their logits by transformers, in double precision."""
    import torch
    import transformers

    path = pathlib.Path(path).absolute()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float64, attn_implementation="eager")

    def logits(tokens):
        with torch.inference_mode():
            return model.eval()(torch.tensor([tokens])).logits[0].numpy()

    return logits


def hold_to_double(given, prompts, made):
    logits_of = in_double(given.transformers)
    for prompt, (tokens, logits) in zip(prompts, made):
        expected = logits_of(tokens[: len(logits)])
        first = len(tokens) - given.steps
        same = int((expected[first - 1 :].argmax(axis=1) == tokens[first:]).sum())
        difference = float(np.abs(expected - logits).max())
        print(f"| transformers in double | {json.dumps(prompt)[1:-1][:40]} | {same} of {given.steps} | {difference:.2g} |  |", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--llama", default="build/examples/llama", help="the program")
    options.add_argument("--model", required=True, help="what convert.py wrote")
    options.add_argument("--gguf", action="append", default=[], help="the same weights for llama.cpp; several may be given")
    options.add_argument("--transformers", help="the same weights for transformers: a GGUF")
    options.add_argument("--steps", type=int, default=256, help="tokens after a prompt")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--prompt", action="append", help="prompts; default: four of them")
    given = options.parse_args()
    prompts = given.prompt or PROMPTS
    with tempfile.TemporaryDirectory(dir=pathlib.Path(given.model).absolute().parent) as folder:
        made = [ours(given, prompt, pathlib.Path(folder) / f"{i}.safetensors") for i, prompt in enumerate(prompts)]
        print("| weights for llama.cpp | prompt | same tokens | largest difference of a logit | margin where they differ |")
        print("| --- | --- | --- | --- | --- |")
        if given.transformers:
            hold_to_double(given, prompts, made)
        for gguf in given.gguf:
            import llama_cpp

            model = llama_cpp.Llama(gguf, n_ctx=given.steps + 256, logits_all=True, type_k=0, type_v=0, n_threads=given.threads,
                                    n_threads_batch=given.threads, verbose=False)
            for prompt, one in zip(prompts, made):
                name, same, difference, margin = compare(given, model, prompt, one)
                print(f"| {pathlib.Path(gguf).name} | {name} | {same} of {given.steps} | {difference:.2g} | {margin} |", flush=True)


if __name__ == "__main__":
    main()
