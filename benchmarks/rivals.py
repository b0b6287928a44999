# SPDX-License-Identifier: Apache-2.0
"""Attention by this library and by what one would use instead, each behind the same three steps: is it here, can it do this
problem, and a call on the next copy of the cache. Only NumPy is needed; a rival that is not installed is left out."""

import ctypes
import glob
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def to_bf16(values):
    """Rounds f32 to bf16, kept as its 16 bits."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@dataclass(frozen=True)
class Problem:
    """Causal attention of the last n_q of n_kv tokens, one sequence."""

    name: str
    type: str  # of queries, keys and values: "f32", "bf16", "f16"
    query_heads: int
    kv_heads: int
    n_q: int
    n_kv: int
    head_dim: int = 128

    @property
    def kv_bytes(self):
        return 2 * self.n_kv * self.kv_heads * self.head_dim * (4 if self.type == "f32" else 2)

    @property
    def flop(self):
        pairs = self.n_q * self.n_kv - self.n_q * (self.n_q - 1) / 2
        return 4 * pairs * self.head_dim * self.query_heads


class Inputs:
    """Seeded inputs and as many copies of the cache as it takes for the next one to come from memory."""

    def __init__(self, problem, out_of_cache_bytes):
        random = np.random.default_rng(2023)
        shape = (problem.kv_heads, problem.n_kv, problem.head_dim)
        self.q_f32 = random.standard_normal((problem.n_q, problem.query_heads, problem.head_dim), dtype=np.float32)
        k = random.standard_normal(shape, dtype=np.float32)
        v = random.standard_normal(shape, dtype=np.float32)
        k[:, 0, :] += 0.5  # the queries' mean is not zero either, as in trained models
        self.q_f32 += 0.25
        convert = {"f32": lambda x: x, "bf16": to_bf16, "f16": lambda x: x.astype(np.float16)}[problem.type]
        self.q, k, v = convert(self.q_f32), convert(k), convert(v)
        decode = problem.n_q < problem.n_kv
        count = -(-out_of_cache_bytes // problem.kv_bytes) if decode else 1
        self.copies = [(k.copy(), v.copy()) for _ in range(count)]  # heads × tokens × dim


class Ours:
    name = "gqa"

    def __init__(self, threads, flags=()):
        with tempfile.TemporaryDirectory() as folder:
            library = os.path.join(folder, "driver.so")
            subprocess.run(
                [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-DNDEBUG", "-fPIC", "-shared", *flags, "-I",
                 os.path.join(HERE, "..", "include"), os.path.join(HERE, "rival_driver.cpp"), "-o", library, "-lpthread"],
                check=True)
            self.lib = ctypes.CDLL(library)
        for function, result in (("open", ctypes.c_void_p), ("error", ctypes.c_char_p), ("path", ctypes.c_char_p),
                                 ("machine", ctypes.c_char_p), ("out_of_cache_bytes", ctypes.c_uint64),
                                 ("read_bandwidth", ctypes.c_double), ("peak", ctypes.c_double)):
            getattr(self.lib, "gqa_driver_" + function).restype = result
        self.driver = ctypes.c_void_p(self.lib.gqa_driver_open(threads))
        self.version = self.lib.gqa_driver_path().decode()

    def out_of_cache_bytes(self):
        return self.lib.gqa_driver_out_of_cache_bytes()

    def count_processor_time(self):
        self.lib.gqa_driver_count_processor_time()

    def machine(self):
        return self.lib.gqa_driver_machine().decode()

    def limit(self, problem):
        """A sample of what the machine reads (decode) or multiplies (prefill) per second."""
        if problem.n_q < problem.n_kv:
            return self.lib.gqa_driver_read_bandwidth(self.driver)
        return self.lib.gqa_driver_peak(self.driver, self._type(problem))

    @staticmethod
    def _type(problem):
        return {"f32": 0, "bf16": 1, "f16": 2}[problem.type]

    def take_path(self, name):
        """Whether calls can take it; if so, they do from here on."""
        return bool(self.lib.gqa_driver_take_path(self.driver, name.encode()))

    def prepare(self, problem, inputs, lse=None):
        """lse: n_q × query heads of f32, filled too; or None."""
        out = np.empty((problem.n_q, problem.query_heads, problem.head_dim), np.float32)
        kind = self._type(problem)
        pointer = lambda array: ctypes.c_void_p(array.ctypes.data)

        def call(copy):
            k, v = inputs.copies[copy]
            failed = self.lib.gqa_driver_attend(
                self.driver, pointer(inputs.q), kind, pointer(k), pointer(v), kind, problem.query_heads, problem.kv_heads,
                problem.head_dim, ctypes.c_long(problem.n_q), ctypes.c_long(problem.n_kv), pointer(out),
                None if lse is None else pointer(lse))
            if failed:
                raise RuntimeError(self.lib.gqa_driver_error(self.driver).decode())
            return out

        return call


class Torch:
    name = "PyTorch SDPA"

    def __init__(self, threads):
        import torch

        self.torch = torch
        self.version = torch.__version__
        torch.set_num_threads(threads)

    def prepare(self, problem, inputs):
        torch = self.torch

        def tensor(array):
            if problem.type == "bf16":
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(array)

        q = tensor(inputs.q).transpose(0, 1).contiguous().unsqueeze(0)  # 1 × heads × tokens × dim
        copies = [(tensor(k).unsqueeze(0), tensor(v).unsqueeze(0)) for k, v in inputs.copies]
        grouped = problem.query_heads != problem.kv_heads

        def call(copy):
            k, v = copies[copy]
            with torch.inference_mode():
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=problem.n_q > 1, enable_gqa=grouped)

        def result(copy):
            return call(copy)[0].transpose(0, 1).float().numpy()

        call.result = result
        return call


class OnnxRuntime:
    """com.microsoft.GroupQueryAttention with bound buffers; past and present are one buffer, as a server would have it."""

    name = "ONNX Runtime GQA"

    def __init__(self, threads):
        import onnx
        import onnxruntime

        self.onnx, self.ort = onnx, onnxruntime
        self.version = onnxruntime.__version__
        self.threads = threads

    def prepare(self, problem, inputs):
        if problem.type == "bf16":
            return None  # not on its CPU provider
        onnx, ort = self.onnx, self.ort
        kind = onnx.TensorProto.FLOAT if problem.type == "f32" else onnx.TensorProto.FLOAT16
        element = np.float32 if problem.type == "f32" else np.float16
        info = onnx.helper.make_tensor_value_info
        cache = [1, problem.kv_heads, problem.n_kv, problem.head_dim]
        rows, row_kv = problem.query_heads * problem.head_dim, problem.kv_heads * problem.head_dim
        node = onnx.helper.make_node(
            "GroupQueryAttention", ["q", "k", "v", "past_k", "past_v", "seqlens_k", "total"], ["out", "present_k", "present_v"],
            domain="com.microsoft", num_heads=problem.query_heads, kv_num_heads=problem.kv_heads)
        graph = onnx.helper.make_graph(
            [node], "attention",
            [info("q", kind, [1, problem.n_q, rows]), info("k", kind, [1, problem.n_q, row_kv]),
             info("v", kind, [1, problem.n_q, row_kv]), info("past_k", kind, cache), info("past_v", kind, cache),
             info("seqlens_k", onnx.TensorProto.INT32, [1]), info("total", onnx.TensorProto.INT32, [1])],
            [info("out", kind, [1, problem.n_q, rows]), info("present_k", kind, cache), info("present_v", kind, cache)])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17),
                                                             onnx.helper.make_opsetid("com.microsoft", 1)])
        model.ir_version = 9
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

        value = ort.OrtValue.ortvalue_from_numpy
        q = value(inputs.q.reshape(1, problem.n_q, rows))
        out = value(np.zeros((1, problem.n_q, rows), element))
        lengths = value(np.array([problem.n_kv - 1], np.int32)), value(np.array([problem.n_kv], np.int32))
        bindings = []
        for k, v in inputs.copies:
            new = [np.ascontiguousarray(x[:, problem.n_kv - problem.n_q:, :].transpose(1, 0, 2)).reshape(1, problem.n_q, row_kv)
                   for x in (k, v)]
            new_k, new_v = value(new[0]), value(new[1])
            past_k, past_v = value(k[None]), value(v[None])
            binding = session.io_binding()
            for key, bound in (("q", q), ("k", new_k), ("v", new_v), ("past_k", past_k), ("past_v", past_v),
                               ("seqlens_k", lengths[0]), ("total", lengths[1])):
                binding.bind_ortvalue_input(key, bound)
            for key, bound in (("out", out), ("present_k", past_k), ("present_v", past_v)):
                binding.bind_ortvalue_output(key, bound)
            bindings.append((binding, new_k, new_v, past_k, past_v))

        def call(copy):
            session.run_with_iobinding(bindings[copy][0])
            return out

        def result(copy):
            return call(copy).numpy().astype(np.float32).reshape(problem.n_q, problem.query_heads, problem.head_dim)

        call.result = result
        return call


class Ggml:
    """ggml_flash_attn_ext of llama.cpp, from llama-cpp-python's libraries or from those in the folder GGML_LIB_DIR names."""

    name = "llama.cpp ggml"
    F32, F16, BF16 = 0, 1, 30

    class InitParams(ctypes.Structure):
        _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    class Plan(ctypes.Structure):  # longer than any version's: what is behind is never looked at
        _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("n_threads", ctypes.c_int),
                    ("rest", ctypes.c_char * 108)]

    def __init__(self, threads):
        folder = os.environ.get("GGML_LIB_DIR")
        self.version = "GGML_LIB_DIR"
        if folder is None:
            import importlib.metadata
            import importlib.util

            package = importlib.util.find_spec("llama_cpp")
            if package is None:
                raise ImportError("llama-cpp-python is not installed and GGML_LIB_DIR is not set")
            folder = os.path.join(os.path.dirname(package.origin), "lib")
            self.version = importlib.metadata.version("llama-cpp-python")
        load = lambda stem: ctypes.CDLL(sorted(glob.glob(os.path.join(folder, f"lib{stem}*.so*")), key=len)[0], ctypes.RTLD_GLOBAL)
        try:
            self.base, self.cpu = load("ggml-base"), load("ggml-cpu")
        except IndexError:
            raise ImportError(f"no libggml-base and libggml-cpu in {folder}") from None
        self.threads = threads
        p, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        for lib, function, result, arguments in (
                (self.base, "ggml_init", p, [self.InitParams]), (self.base, "ggml_free", None, [p]),
                (self.base, "ggml_new_tensor_4d", p, [p, ctypes.c_int, number, number, number, number]),
                (self.base, "ggml_get_data", p, [p]), (self.base, "ggml_new_graph", p, [p]),
                (self.base, "ggml_build_forward_expand", None, [p, p]), (self.base, "ggml_graph_overhead", size, []),
                (self.base, "ggml_flash_attn_ext", p, [p, p, p, p, p, ctypes.c_float, ctypes.c_float, ctypes.c_float]),
                (self.cpu, "ggml_cpu_init", None, []), (self.cpu, "ggml_graph_plan", self.Plan, [p, ctypes.c_int, p]),
                (self.cpu, "ggml_graph_compute", ctypes.c_int, [p, ctypes.POINTER(self.Plan)])):
            getattr(lib, function).restype, getattr(lib, function).argtypes = result, arguments
        self.cpu.ggml_cpu_init()

    def prepare(self, problem, inputs):
        kind = {"f32": self.F32, "f16": self.F16, "bf16": self.BF16}[problem.type]
        dim, n_q, n_kv = problem.head_dim, problem.n_q, problem.n_kv
        padded = -(-n_q // 64) * 64
        rows = problem.query_heads * n_q * dim * 4
        each = problem.kv_bytes + rows + self.base.ggml_graph_overhead() + (1 << 14)
        context = self.base.ggml_init(self.InitParams(each * len(inputs.copies) + rows + 2 * padded * n_kv + (1 << 20), None, False))
        if not context:
            raise MemoryError("ggml_init")
        tensor = lambda what, *shape: self.base.ggml_new_tensor_4d(context, what, *(list(shape) + [1] * (4 - len(shape))))

        def fill(to, array):
            array = np.ascontiguousarray(array)
            ctypes.memmove(self.base.ggml_get_data(to), array.ctypes.data, array.nbytes)

        q = tensor(self.F32, dim, n_q, problem.query_heads)
        rounded = {"f32": inputs.q_f32, "f16": inputs.q_f32.astype(np.float16).astype(np.float32),
                   "bf16": (to_bf16(inputs.q_f32).astype(np.uint32) << 16).view(np.float32)}[problem.type]
        fill(q, rounded.transpose(1, 0, 2))
        mask = None
        if n_q > 1:
            hidden = np.arange(n_kv)[None, :] > np.arange(padded)[:, None] + (n_kv - n_q)
            mask = tensor(self.F16, n_kv, padded)
            fill(mask, np.where(hidden, -np.inf, 0).astype(np.float16))
        runs = []
        for k, v in inputs.copies:
            k_tensor, v_tensor = (tensor(kind, dim, n_kv, problem.kv_heads) for _ in range(2))
            fill(k_tensor, k)
            fill(v_tensor, v)
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
            values = (ctypes.c_float * (n_q * problem.query_heads * dim)).from_address(self.base.ggml_get_data(call(copy)))
            return np.array(values, np.float32).reshape(n_q, problem.query_heads, dim)

        call.result = result
        call.close = lambda: self.base.ggml_free(context)
        return call


def installed(threads):
    """This library, and the rivals that are here."""
    sides = [Ours(threads)]
    for rival in (Torch, OnnxRuntime, Ggml):
        try:
            sides.append(rival(threads))
        except ImportError as missing:
            print(f"without {rival.name}: {missing}", file=sys.stderr)
    return sides
