# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's and ik_llama.cpp's attention, behind the steps of rivals.py."""

import ctypes
import glob
import importlib.metadata
import importlib.util
import math
import os

import numpy as np

from rivals import rows_of_each, token_major


class Ggml:
    """ggml_flash_attn_ext of llama.cpp, from llama-cpp-python's libraries or from those in the folder GGML_LIB_DIR names."""

    name = "llama.cpp ggml"
    TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_0": 2, "iq4_nl": 20}
    CACHES = tuple(TYPES)
    MASK_ALWAYS = False  # a decode step needs none
    WAYS_OF_LENGTHS = ("one buffer", "a buffer each")
    # Its instruction set is chosen as it is compiled, so that another one is another folder's library.
    path_environments = {"avx2": {"GGML_LIB_DIR": os.environ["GGML_AVX2_LIB_DIR"]}} if "GGML_AVX2_LIB_DIR" in os.environ else {}

    class InitParams(ctypes.Structure):
        _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    class Plan(ctypes.Structure):  # longer than any version's: what is behind is never looked at
        _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("n_threads", ctypes.c_int),
                    ("rest", ctypes.c_char * 108)]

    def __init__(self, threads):
        folder, self.version = self.find("llama_cpp", "llama-cpp-python", "GGML_LIB_DIR")
        self.base, self.cpu = self.load(folder, "ggml-base"), self.load(folder, "ggml-cpu")
        self.declare(threads)
        self.cpu.ggml_cpu_init()

    @staticmethod
    def find(module, package, variable):
        """The folder with a Python package's libraries, or the one that an environment variable names; and a version."""
        if folder := os.environ.get(variable):
            return folder, variable
        found = importlib.util.find_spec(module)
        if found is None:
            raise ImportError(f"{package} is not installed and {variable} is not set")
        return os.path.join(os.path.dirname(found.origin), "lib"), importlib.metadata.version(package)

    @staticmethod
    def load(folder, stem):
        """A library whose functions are not mixed up with those of the same names in others."""
        files = sorted(glob.glob(os.path.join(folder, f"lib{stem}.so*")), key=len)
        if not files:
            raise ImportError(f"no lib{stem} in {folder}")
        return ctypes.CDLL(files[0], os.RTLD_LOCAL | os.RTLD_DEEPBIND)

    def take_threads(self, threads):
        self.threads = threads

    def declare(self, threads):
        self.take_threads(threads)
        p, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        for lib, function, result, arguments in (
                (self.base, "ggml_init", p, [self.InitParams]), (self.base, "ggml_free", None, [p]),
                (self.base, "ggml_new_tensor_4d", p, [p, ctypes.c_int, number, number, number, number]),
                (self.base, "ggml_permute", p, [p, p] + 4 * [ctypes.c_int]), (self.base, "ggml_get_data", p, [p]), (self.base, "ggml_new_graph", p, [p]),
                (self.base, "ggml_build_forward_expand", None, [p, p]), (self.base, "ggml_graph_overhead", size, []),
                (self.base, "ggml_flash_attn_ext", p, [p, p, p, p, p, ctypes.c_float, ctypes.c_float, ctypes.c_float]),
                (self.cpu, "ggml_graph_plan", self.Plan, [p, ctypes.c_int, p]),
                (self.cpu, "ggml_graph_compute", ctypes.c_int, [p, ctypes.POINTER(self.Plan)])):
            getattr(lib, function).restype, getattr(lib, function).argtypes = result, arguments

    def prepare(self, problem, inputs):
        if not set(problem.kv_types) <= set(self.CACHES) or problem.storage == "paged":
            return None
        dim, n_q, n_kv, batch, kv_heads = problem.head_dim, problem.n_q, problem.n_kv, problem.batch, problem.kv_heads
        padded = -(-n_q // 64) * 64
        rows = batch * problem.query_heads * n_q * dim * 4
        each = batch * problem.kv_bytes + rows + self.base.ggml_graph_overhead() + (1 << 14)
        context = self._context(each * len(inputs.copies) + rows + 2 * padded * n_kv)
        q = self._filled(context, "f32", np.swapaxes(inputs.q_f32.reshape(batch, n_q, problem.query_heads, dim), 1, 2))
        mask = None
        if n_q > 1 or self.MASK_ALWAYS:
            mask = self._mask(context, np.arange(n_kv)[None, :] > np.arange(padded)[:, None] + (n_kv - n_q))
        runs = []
        for copy in inputs.copies:
            caches = [x.reshape(batch, kv_heads, n_kv, -1) for x in copy]
            if not problem.plain_storage:
                caches = map(token_major, caches)
            caches = [self._filled(context, kind, x, dim) for kind, x in zip(problem.kv_types, caches)]
            if not problem.plain_storage:
                caches = [self.base.ggml_permute(context, x, 0, 2, 1, 3) for x in caches]
            runs.append(self._run(context, q, *caches, mask, dim))

        def call(copy):
            return self._compute(runs[copy])

        def result(copy):
            return self._values(call(copy), inputs.q.shape)

        call.result = result
        call.close = lambda: self.base.ggml_free(context)
        return call

    def _context(self, tensor_bytes):
        context = self.base.ggml_init(self.InitParams(tensor_bytes + (1 << 20), None, False))
        if not context:
            raise MemoryError("ggml_init")
        return context

    def _filled(self, context, kind, array, dim=None):
        """A tensor of this type and these extents, the innermost last; dim: elements of a row, where the array has bytes."""
        array = np.ascontiguousarray(array)
        shape = [dim or array.shape[-1], *array.shape[-2::-1]]
        tensor = self.base.ggml_new_tensor_4d(context, self.TYPES[kind], *(shape + [1] * (4 - len(shape))))
        ctypes.memmove(self.base.ggml_get_data(tensor), array.ctypes.data, array.nbytes)
        return tensor

    def _mask(self, context, hidden):
        return self._filled(context, "f16", np.where(hidden, -np.inf, 0).astype(np.float16))

    def _run(self, context, q, k, v, mask, dim):
        """What computes the attention of these tensors, and where its result will be."""
        out = self.base.ggml_flash_attn_ext(context, q, k, v, mask, 1 / math.sqrt(dim), 0.0, 0.0)
        graph = self.base.ggml_new_graph(context)
        self.base.ggml_build_forward_expand(graph, out)
        plan = self.cpu.ggml_graph_plan(graph, self.threads, None)
        work = ctypes.create_string_buffer(max(1, plan.work_size))
        plan.work_data = ctypes.cast(work, ctypes.c_void_p)
        return graph, plan, out, work

    def _compute(self, run):
        graph, plan, out, _ = run
        if self.cpu.ggml_graph_compute(graph, ctypes.byref(plan)) != 0:
            raise RuntimeError("ggml_graph_compute failed")
        return out

    def _values(self, tensor, shape):
        values = (ctypes.c_float * math.prod(shape)).from_address(self.base.ggml_get_data(tensor))
        return np.array(values, np.float32).reshape(shape)

    def ways_of_lengths(self, problem):
        """See Ours in rivals.py: the ways of llama.cpp's server and its own default."""
        return dict.fromkeys(self.WAYS_OF_LENGTHS) if set(problem.kv_types) <= set(self.CACHES) else {}

    def attend_lengths(self, problem, sequences, scales, way):
        """See Ours in rivals.py. "one buffer": cells of all sequences, each token's mask shows it those of its own; "a buffer each": as many
        cells for each sequence as the longest has, decode steps alone. Cells are a multiple of 256, as llama.cpp has it, those of no token zero."""
        if way == "a buffer each" and any(s.n_q > 1 for s in sequences):
            return None
        dim, kv_heads = problem.head_dim, problem.kv_heads
        up = lambda n: -(-n // 256) * 256
        places = cells_of(sequences) if way == "one buffer" else [np.arange(s.n_kv) for s in sequences]
        streams = 1 if way == "one buffer" else len(sequences)
        cells = up(max(int(x[-1]) for x in places) + 1)
        caches = []
        for rows in ([s.k for s in sequences], [s.v for s in sequences]):
            cache = np.zeros((streams, kv_heads, cells, rows[0].shape[-1]), rows[0].dtype)
            for i, (x, place) in enumerate(zip(rows, places)):
                cache[i % streams][:, place] = x
            caches.append(cache)
        n_q = sum(s.n_q for s in sequences) // streams
        hidden = np.ones((streams, 1, -(-n_q // 64) * 64, cells), bool)
        at = 0  # the sequence's first query token
        for i, (s, place) in enumerate(zip(sequences, places)):
            hidden[i % streams, 0, at:at + s.n_q, place] = np.arange(s.n_kv)[:, None] > np.arange(s.n_kv - s.n_q, s.n_kv)
            at += s.n_q if streams == 1 else 0
        q = np.concatenate([s.q_f32 for s in sequences])
        rows = q.shape
        q = q.reshape(streams, n_q, problem.query_heads, dim).swapaxes(1, 2)
        context = self._context(sum(x.nbytes for x in caches) + 2 * q.nbytes + 2 * hidden.size + self.base.ggml_graph_overhead() + (1 << 14))
        caches = [self._filled(context, kind, x, dim) for kind, x in zip(problem.kv_types, caches)]
        run = self._run(context, self._filled(context, "f32", q), *caches, self._mask(context, hidden), dim)
        result = rows_of_each(self._values(self._compute(run), rows), sequences)
        self.base.ggml_free(context)
        return result


def cells_of(sequences, generated=64):
    """The cells of a buffer in which each sequence's tokens lie: prompts one after another; of a decode step the last `generated` tokens behind all
    prompts, a step's side by side, as sequences that are generated at the same time leave them."""
    prompts = [s.n_kv - min(generated, s.n_kv) if s.n_q == 1 else s.n_kv for s in sequences]
    starts = np.concatenate([[0], np.cumsum(prompts)])
    cells, at = [[start + np.arange(n)] for start, n in zip(starts, prompts)], int(starts[-1])
    for step in range(generated, 0, -1):
        for of, s, prompt in zip(cells, sequences, prompts):
            if step <= s.n_kv - prompt:
                of.append(np.array([at]))
                at += 1
    return [np.concatenate(of) for of in cells]


class IkLlama(Ggml):
    """The same function of ik_llama.cpp, from ik-llama-cpp-python's library or from that in the folder IK_GGML_LIB_DIR names."""

    name = "ik_llama.cpp"
    # Of others its CPU kernels, as the wheel has them, say that they are not supported, and end the process.
    TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "q8_KV": 151, "q4_0": 2, "iq4_nl": 20}
    CACHES = ("f16", "q8_0", "q8_KV", "q4_0", "iq4_nl")
    MASK_ALWAYS = True  # its fast kernels are for calls with a mask
    # Not in one buffer: its kernel takes the last query of a tile for the one that sees most keys, and ends the process, or leaves keys out,
    # where the queries of a tile are of several sequences.
    WAYS_OF_LENGTHS = ()
    path_environments = {}

    def __init__(self, threads):
        folder, self.version = self.find("ik_llama_cpp", "ik-llama-cpp-python", "IK_GGML_LIB_DIR")
        self.base = self.cpu = self.load(folder, "ggml")
        self.declare(threads)
