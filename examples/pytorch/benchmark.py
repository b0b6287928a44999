# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of generation, PyTorch's SDPA against gqa, at several lengths of context; and what attention takes of that.

    python benchmark.py --gguf SmolLM2-135M.gguf --threads 1
    python benchmark.py --llama-3.2-1b --layers 4

A step is a forward call of the model for one token, a prefill one for many. Sides take turns, in an order that changes each round; medians
are reported. The context is random keys and values in the cache, as what it says does not change what it costs.
"""

import argparse
import statistics
import time
from pathlib import Path

import gqa_torch
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SIDES = {  # name: attention implementation, codec of a GqaCache or None for transformers' DynamicCache
    "sdpa": ("sdpa", None),
    "sdpa, packed": ("sdpa_packed", None),
    "gqa": ("gqa", None),
    "gqa, own cache": ("gqa", "same"),
    "gqa, int8 cache": ("gqa", "int8"),
}


def sdpa_packed(module, query, key, value, mask, scaling=None, **settings):
    """SDPA as it is fastest for one query token: the heads of a group as so many tokens of one head. transformers does that where there is a
    mask. Its own implementation otherwise."""
    if query.shape[2] != 1 or mask is not None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, scaling=scaling, **settings)
    batch, heads, _, dim = query.shape
    packed = query.reshape(batch, key.shape[1], heads // key.shape[1], dim)
    out = torch.nn.functional.scaled_dot_product_attention(packed, key, value, scale=scaling)
    return out.reshape(batch, 1, heads, value.shape[-1]), None


transformers.AttentionInterface.register("sdpa_packed", sdpa_packed)
transformers.AttentionMaskInterface.register("sdpa_packed", transformers.masking_utils.sdpa_mask)


class Stopwatch:
    """Adds up the time that wrapped functions take."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function):
        def timed(*arguments, **named):
            begin = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def load(arguments, dtype):
    if arguments.gguf:
        model = transformers.AutoModelForCausalLM.from_pretrained(arguments.gguf.parent, gguf_file=arguments.gguf.name, dtype=dtype)
        return arguments.gguf.stem, model.eval()
    config = transformers.LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=arguments.layers, num_attention_heads=32,
                                      num_key_value_heads=8, head_dim=64, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=True)
    with torch.device("cpu"):
        model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    return f"Llama-3.2-1B's shapes, {arguments.layers} layers", model


def filled_cache(model, codec, context, dtype):
    config = model.config
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    if codec is None:
        cache = transformers.DynamicCache(config=config)
    else:
        cache = gqa_torch.GqaCache(config, codec=names[dtype] if codec == "same" else codec, max_tokens=context + 256)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(0)
    for layer in range(config.num_hidden_layers):
        k, v = (torch.randn(1, config.num_key_value_heads, context, dim, generator=generator).to(dtype) for _ in range(2))
        cache.update(k, v, layer)
    return cache


def measure(model, sides, steps, calls):
    """{side: (seconds a call, of them attention, of them the cache's update)}: medians of `steps` rounds, in which sides take turns.

    calls: {side: (a call without arguments, the cache that it uses or None)}
    """
    attention, update = Stopwatch(), Stopwatch()
    for _, cache in calls.values():
        if cache is not None:
            cache.update = update.around(cache.update)
    found = {side: [] for side in sides}
    plain = {name: ALL_ATTENTION_FUNCTIONS[name] for name in ("sdpa", "sdpa_packed", "gqa")}
    for name, function in plain.items():
        transformers.AttentionInterface.register(name, attention.around(function))
    try:
        for step in range(-1, steps):  # one to warm up
            for i in range(len(sides)):
                side = sides[(i + step) % len(sides)]
                model.set_attn_implementation(SIDES[side][0])
                attention.seconds = update.seconds = 0.0
                begin = time.perf_counter()
                with torch.no_grad():
                    calls[side][0]()
                if step >= 0:
                    found[side].append((time.perf_counter() - begin, attention.seconds, update.seconds))
    finally:
        for name, function in plain.items():
            transformers.AttentionInterface.register(name, function)
    return {side: [statistics.median(numbers) for numbers in zip(*rows)] for side, rows in found.items()}


def measure_decode(model, context, steps, dtype):
    token = torch.tensor([[17]])
    calls = {}
    for side, (_, codec) in SIDES.items():
        cache = filled_cache(model, codec, context, dtype)
        calls[side] = (lambda cache=cache: model(input_ids=token, cache=cache, use_cache=True)), cache
    return measure(model, list(SIDES), steps, calls)


def measure_prefill(model, tokens, steps):
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    sides = ["sdpa", "gqa"]
    return measure(model, sides, steps, {side: (lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1), None) for side in sides})


def print_rows(type_name, what, tokens, found):
    whole, part, _ = found["sdpa"]
    for side, (step, attention, update) in found.items():
        print(f"| {type_name} | {what} | {side} | {tokens / step:.1f} | {whole / step:.2f} | {attention * 1e3:.2f} | {attention / step:.0%} "
              f"| {part / attention:.2f} | {update * 1e3:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--gguf", type=Path, help="a model's file")
    which.add_argument("--llama-3.2-1b", action="store_true", dest="llama", help="random weights of those shapes")
    parser.add_argument("--layers", type=int, default=4, help="of the random model")
    parser.add_argument("--contexts", type=int, nargs="*", default=[1024, 4096, 8000], help="tokens in the cache before a step")
    parser.add_argument("--prefill", type=int, nargs="*", default=[], help="tokens of prompts that are computed at once")
    parser.add_argument("--types", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for i, type_name in enumerate(arguments.types):
        dtype = getattr(torch, type_name)
        name, model = load(arguments, dtype)
        if i == 0:
            print(f"{name}, {arguments.threads} threads, medians of {arguments.steps} rounds, torch {torch.__version__}\n")
            print("| type | context | side | tokens/s | times SDPA's | attention, ms | its share "
                  "| attention, times SDPA's speed | cache update, ms |")
            print("| --- " * 9 + "|")
        for context in arguments.contexts:
            print_rows(type_name, context, 1, measure_decode(model, context, arguments.steps, dtype))
        for tokens in arguments.prefill:
            print_rows(type_name, f"prefill of {tokens}", tokens, measure_prefill(model, tokens, arguments.steps))
        del model


if __name__ == "__main__":
    main()
