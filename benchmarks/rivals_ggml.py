# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's and ik_llama.cpp's attention, behind the steps of rivals.py."""

import ctypes
import glob
import importlib.metadata
import importlib.util
import math
import os

import numpy as np

from rivals import token_major


class Ggml:
    """ggml_flash_attn_ext of llama.cpp, from llama-cpp-python's libraries or from those in the folder GGML_LIB_DIR names."""

    name = "llama.cpp ggml"
    TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_0": 2, "iq4_nl": 20}
    CACHES = tuple(TYPES)
    MASK_ALWAYS = False  # a decode step needs none
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
        context = self.base.ggml_init(self.InitParams(each * len(inputs.copies) + rows + 2 * padded * n_kv + (1 << 20), None, False))
        if not context:
            raise MemoryError("ggml_init")
        tensor = lambda what, *shape: self.base.ggml_new_tensor_4d(context, what, *(list(shape) + [1] * (4 - len(shape))))

        def fill(to, array):
            array = np.ascontiguousarray(array)
            ctypes.memmove(self.base.ggml_get_data(to), array.ctypes.data, array.nbytes)

        q = tensor(self.TYPES["f32"], dim, n_q, problem.query_heads, batch)
        fill(q, np.swapaxes(inputs.q_f32, -2, -3))
        mask = None
        if n_q > 1 or self.MASK_ALWAYS:
            hidden = np.arange(n_kv)[None, :] > np.arange(padded)[:, None] + (n_kv - n_q)
            mask = tensor(self.TYPES["f16"], n_kv, padded)
            fill(mask, np.where(hidden, -np.inf, 0).astype(np.float16))
        runs = []
        for k, v in inputs.copies:
            extents = (n_kv, kv_heads) if problem.plain_storage else (kv_heads, n_kv)
            k_tensor, v_tensor = (tensor(self.TYPES[kind], dim, *extents, batch) for kind in problem.kv_types)
            for to, array in ((k_tensor, k), (v_tensor, v)):
                fill(to, array if problem.plain_storage else token_major(array))
            if not problem.plain_storage:
                k_tensor, v_tensor = (self.base.ggml_permute(context, x, 0, 2, 1, 3) for x in (k_tensor, v_tensor))
            out = self.base.ggml_flash_attn_ext(context, q, k_tensor, v_tensor, mask, 1 / math.sqrt(dim), 0.0, 0.0)
            graph = self.base.ggml_new_graph(context)
            self.base.ggml_build_forward_expand(graph, out)
            plan = self.cpu.ggml_graph_plan(graph, self.threads, None)
            work = ctypes.create_string_buffer(max(1, plan.work_size))
            plan.work_data = ctypes.cast(work, ctypes.c_void_p)
            runs.append((graph, plan, out, work))

        def call(copy):
            graph, plan, out, _ = runs[copy]
            if self.cpu.ggml_graph_compute(graph, ctypes.byref(plan)) != 0:
                raise RuntimeError("ggml_graph_compute failed")
            return out

        def result(copy):
            values = (ctypes.c_float * inputs.q.size).from_address(self.base.ggml_get_data(call(copy)))
            return np.array(values, np.float32).reshape(inputs.q.shape)

        call.result = result
        call.close = lambda: self.base.ggml_free(context)
        return call


class IkLlama(Ggml):
    """The same function of ik_llama.cpp, from ik-llama-cpp-python's library or from that in the folder IK_GGML_LIB_DIR names."""

    name = "ik_llama.cpp"
    # Of others its CPU kernels, as the wheel has them, say that they are not supported, and end the process.
    TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "q8_KV": 151, "q4_0": 2, "iq4_nl": 20}
    CACHES = ("f16", "q8_0", "q8_KV", "q4_0", "iq4_nl")
    MASK_ALWAYS = True  # its fast kernels are for calls with a mask
    path_environments = {}

    def __init__(self, threads):
        folder, self.version = self.find("ik_llama_cpp", "ik-llama-cpp-python", "IK_GGML_LIB_DIR")
        self.base = self.cpu = self.load(folder, "ggml")
        self.declare(threads)
