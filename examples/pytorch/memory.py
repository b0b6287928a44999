# SPDX-License-Identifier: Apache-2.0
"""Bytes that a GqaCache takes with and without the tokens that no window shows any more, for a model's configuration.

    python memory.py --gguf gemma-3-270m.gguf --context 8192

The context is random keys and values, appended as one prompt and then one token; what they say does not change what they take. Each line is
measured in a process of its own: bytes_used, and by how much the process has grown (resident memory, Linux).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(arguments):
    import torch
    import transformers
    from gqa_torch import GqaCache

    config = transformers.AutoConfig.from_pretrained(arguments.gguf.parent, gguf_file=arguments.gguf.name).get_text_config(decoder=True)
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    chunks = [torch.randn(2, 1, heads, n, dim, dtype=getattr(torch, arguments.dtype)) for n in (arguments.context - 1, 1)]
    warm = GqaCache(config, codec=arguments.codec)
    warm.update(*chunks[1], 0)
    del warm
    before = resident()
    cache = GqaCache(config, codec=arguments.codec, all_tokens=arguments.all_tokens)
    for k, v in chunks:
        for layer in range(len(cache.layers)):
            cache.update(k, v, layer)
    grown = resident() - before
    kept = "all tokens" if arguments.all_tokens else "windows"
    print(f"| {arguments.codec} | {arguments.context} | {kept} | {cache.bytes_used / 2**20:.2f} | {grown / 2**20:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=Path, required=True, help="only its configuration is read")
    parser.add_argument("--context", type=int, nargs="+", default=[8192])
    parser.add_argument("--codec", nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--dtype", default="bfloat16", help="of keys and values as they come")
    parser.add_argument("--one", choices=["windows", "all"], help="measure that alone, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        arguments.context, arguments.codec, arguments.all_tokens = arguments.context[0], arguments.codec[0], arguments.one == "all"
        return measure(arguments)
    print("| codec | context | kept in layers with a window | bytes_used, MiB | resident, MiB |\n| --- | --- | --- | --- | --- |", flush=True)
    for codec in arguments.codec:
        for context in arguments.context:
            for one in ("all", "windows"):
                subprocess.run([sys.executable, __file__, "--gguf", str(arguments.gguf), "--dtype", arguments.dtype, "--codec", codec,
                                "--context", str(context), "--one", one], check=True)


if __name__ == "__main__":
    main()
