# SPDX-License-Identifier: Apache-2.0
"""Attention by this library and by what one would use instead, each behind the same three steps: is it here, can it do this
problem, and a call on the next copy of the cache. Only NumPy is needed; a rival that is not installed is left out."""

import ctypes
import dataclasses
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


ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2}

# Bits of an element in a cache, the scales of its block or row included, for rows of 128. Those of ggml and ik_llama.cpp; and int8 and
# int4 with one scale for all keys and one for all values, as ONNX Runtime has them.
CODEC_BITS = {"q8_0": 8.5, "q8_KV": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_0": 4.5, "iq4_nl": 4.5, "int8": 8, "int4": 4}


# What this library calls them.
CODECS = tuple(f"gqa::{name}" for name in ("Int8", "Int4", "Q8_0", "Q8Kv", "Q5_1", "Q5_0", "Q4_0", "Iq4Nl"))


@dataclass(frozen=True)
class Problem:
    """Causal attention of the last n_q of n_kv tokens, one sequence; or, by the name "backward", its gradients."""

    name: str
    type: str  # of queries, keys and values, "bf16"; a codec of keys and values; or two, "q8_KV/q8_0"
    query_heads: int
    kv_heads: int
    n_q: int
    n_kv: int
    head_dim: int = 128
    batch: int = 1  # sequences of these lengths in one call
    storage: str = "head-major"  # or "token-major", or "paged"
    page_size: int = 0
    shared: int = 0  # tokens at the beginning of all sequences, whose pages are the same memory

    @property
    def plain_storage(self):
        return self.storage == "head-major"

    @property
    def kv_types(self):
        """Of keys and of values."""
        return (self.type.split("/") * 2)[:2]

    @property
    def quantised(self):
        return self.type not in ELEMENT_BYTES

    @property
    def query_type(self):
        return "bf16" if self.quantised else self.type

    @property
    def bits(self):
        """Of an element of the cache, on average."""
        return sum(8 * ELEMENT_BYTES[t] if t in ELEMENT_BYTES else CODEC_BITS[t] for t in self.kv_types) / 2

    @property
    def kv_bytes(self):
        return int(2 * self.n_kv * self.kv_heads * self.head_dim * self.bits / 8)

    @property
    def flop(self):
        pairs = self.n_q * self.n_kv - self.n_q * (self.n_q - 1) / 2
        forward = 4 * pairs * self.head_dim * self.query_heads
        return 2.5 * forward if self.backward else forward

    @property
    def backward(self):
        return self.name == "backward"


def one_scale(values, kind):
    """Codes of int8 or int4 and the one scale that all have: value = scale · code."""
    most = 127 if kind == "int8" else 7
    scale = np.float32(np.max(np.abs(values)) / most)
    return np.clip(np.rint(values / scale), -most, most).astype(np.int8), scale


def nibbles(codes, lower, upper):
    """Two codes of 4 bits a byte, code + 8 in each half, by their places in a row."""
    plus = (codes + 8).astype(np.uint8)
    return np.ascontiguousarray(plus[..., lower] | plus[..., upper] << 4)


def token_major(rows):
    """… × heads × tokens × dim, with the heads of a token side by side in memory."""
    return np.ascontiguousarray(np.swapaxes(rows, -2, -3))


def physical_pages(problem):
    """Where the pages of a batch lie in one pool: a table of int32, batch × pages of a sequence, in random order. Sequences share the
    whole pages of what is shared."""
    each = -(-problem.n_kv // problem.page_size)
    common = problem.shared // problem.page_size
    logical = np.arange(problem.batch * each).reshape(problem.batch, each)
    logical[:, :common] = logical[0, :common]
    order = np.random.default_rng(problem.page_size).permutation(problem.batch * each)
    return order[logical].astype(np.int32)


def pages_of_lengths(lengths, page_size):
    """The same for sequences of these lengths: a list of arrays of int32."""
    counts = [-(-n // page_size) for n in lengths]
    order = np.random.default_rng(page_size).permutation(sum(counts)).astype(np.int32)
    return np.split(order, np.cumsum(counts)[:-1])


def in_pages(sequences, tables, problem):
    """heads × tokens × dim of each sequence in a pool of pages, each heads × page_size × dim. What no sequence has is all ones, a NaN."""
    pool = np.empty((sum(map(len, tables)), problem.kv_heads, problem.page_size, sequences[0].shape[-1]), sequences[0].dtype)
    pool.view(np.uint8)[:] = 0xFF
    for sequence, pages in zip(sequences, tables):
        for page, at in zip(pages, range(0, sequence.shape[1], problem.page_size)):
            part = sequence[:, at:at + problem.page_size]
            pool[page, :, :part.shape[1]] = part
    return pool


@dataclass(frozen=True)
class Sequence:
    """One of a batch of unequal lengths: the queries of its last n_q tokens, n_q × query heads × dim, as they are stored and in f32; and its keys and
    values, KV heads × n_kv × dim, as they are stored."""

    q: np.ndarray
    q_f32: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @property
    def n_q(self):
        return self.q.shape[0]

    @property
    def n_kv(self):
        return self.k.shape[1]


def with_padding(arrays, axis, left=False):
    """Stacked, all as long along this axis as the longest. What is added after them (or before) is what the longest has there, so that who reads it
    gets another result."""
    longest = max(arrays, key=lambda x: x.shape[axis])
    stack = np.moveaxis(np.stack([longest] * len(arrays)), axis + 1, 1)
    for to, x in zip(stack, arrays):
        n = x.shape[axis]
        to[len(to) - n if left else 0:len(to) if left else n] = np.moveaxis(x, axis, 0)
    return np.ascontiguousarray(np.moveaxis(stack, 1, axis + 1))


def rows_of_each(rows, sequences):
    """Rows of tokens, sequence after sequence, as a list."""
    return np.split(rows, np.cumsum([s.n_q for s in sequences])[:-1])


class Inputs:
    """Seeded inputs and as many copies of the cache as it takes for the next one to come from memory. Keys and values of codecs are
    stored as `encode` stores them; int8 and int4 are left as codes, which every side packs in its own way."""

    def __init__(self, problem, out_of_cache_bytes, encode):
        random = np.random.default_rng(2023)
        shape = (problem.kv_heads, problem.n_kv, problem.head_dim)
        self.q_f32 = random.standard_normal((problem.n_q, problem.query_heads, problem.head_dim), dtype=np.float32)
        k = random.standard_normal(shape, dtype=np.float32)
        v = random.standard_normal(shape, dtype=np.float32)
        d_out = random.standard_normal(self.q_f32.shape, dtype=np.float32)
        k[:, 0, :] += 0.5  # the queries' mean is not zero either, as in trained models
        self.q_f32 += 0.25
        convert = {"f32": lambda x: x, "bf16": to_bf16, "f16": lambda x: x.astype(np.float16)}
        self.q = convert[problem.query_type](self.q_f32)
        self.d_out = convert[problem.query_type](d_out)  # of gradients
        if problem.query_type == "bf16":  # what is stored, for sides that take f32
            self.q_f32 = (self.q.astype(np.uint32) << 16).view(np.float32)
        elif problem.query_type == "f16":
            self.q_f32 = self.q.astype(np.float32)
        self.scales = [None, None]
        rows = []
        for which, (kind, values) in enumerate(zip(problem.kv_types, (k, v))):
            if kind in ("int8", "int4"):
                values, self.scales[which] = one_scale(values, kind)
                rows.append(values)
            else:
                rows.append(convert[kind](values) if kind in convert else encode(kind, values))
        decode = problem.n_q < problem.n_kv
        count = -(-out_of_cache_bytes // problem.kv_bytes) if decode else 1
        self.copies = [tuple(x.copy() for x in rows) for _ in range(count)]  # heads × tokens × dim


class Ours:
    name = "gqa"
    differentiates = True

    def __init__(self, threads, codecs=(), flags=()):
        """codecs: those of CODECS that caches may have; flags: more of the compiler's."""
        with tempfile.TemporaryDirectory() as folder:
            library = os.path.join(folder, "driver.so")
            subprocess.run(
                [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-DNDEBUG", "-fPIC", "-shared", *flags,
                 *([f"-DGQA_DRIVER_CODECS={','.join(codecs)}"] if codecs else []),
                 "-I", os.path.join(HERE, "..", "include"), os.path.join(HERE, "rival_driver.cpp"), "-o", library, "-lpthread"],
                check=True)
            self.lib = ctypes.CDLL(library)
        for function, result in (("open", ctypes.c_void_p), ("error", ctypes.c_char_p), ("path", ctypes.c_char_p),
                                 ("machine", ctypes.c_char_p), ("out_of_cache_bytes", ctypes.c_uint64),
                                 ("read_bandwidth", ctypes.c_double), ("peak", ctypes.c_double)):
            getattr(self.lib, "gqa_driver_" + function).restype = result
        self.driver = ctypes.c_void_p(self.lib.gqa_driver_open(threads))
        self.path_names = [name for name in ("portable", "avx2", "avx512", "avx512bf16", "amx") if self.take_path(name)]
        self.take_path(None)
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
        return self.lib.gqa_driver_peak(self.driver, self._type("f32" if problem.quantised else problem.type))

    def _type(self, name):
        number = self.lib.gqa_driver_type(name.encode())
        if number < 0:
            raise ValueError(f"{name} is no type of the driver: was it compiled for this codec?")
        return number

    def encode(self, codec, values):
        """Rows of a codec, as bytes."""
        values = np.ascontiguousarray(values, np.float32)
        number, dim = self._type(codec), values.shape[-1]
        rows = np.empty(values.shape[:-1] + (self.lib.gqa_driver_row_bytes(number, dim),), np.uint8)
        self.lib.gqa_driver_encode(number, ctypes.c_void_p(values.ctypes.data), ctypes.c_long(values.size // dim), dim,
                                   ctypes.c_void_p(rows.ctypes.data))
        return rows

    def take_threads(self, threads):
        self.lib.gqa_driver_take_threads(self.driver, threads)

    def take_path(self, name):
        """Whether calls can take it; if so, they do from here on. None: the best."""
        return bool(self.lib.gqa_driver_take_path(self.driver, name and name.encode()))

    def paths(self, problem):
        """Beside the best."""
        return [name for name in self.path_names if name != self.version]

    def prepare(self, problem, inputs, lse=None):
        """lse: n_q × query heads of f32, filled too; or None."""
        if problem.backward:
            return self._prepare_backward(problem, inputs)
        out = np.empty(inputs.q.shape, np.float32)
        copies = inputs.copies
        if "int4" in problem.kv_types:  # 32 elements in 16 bytes: the first half of them below
            first = np.concatenate([np.arange(b, b + 16) for b in range(0, problem.head_dim, 32)])
            copies = [tuple(nibbles(x, first, first + 16) if kind == "int4" else x for kind, x in zip(problem.kv_types, copy))
                      for copy in copies]
        table = None
        if problem.storage == "token-major":
            copies = [tuple(map(token_major, copy)) for copy in copies]
        elif problem.storage == "paged":
            table = physical_pages(problem)
            copies = [tuple(in_pages(x, table, problem) for x in copy) for copy in copies]
        attend = self._attend(problem, [problem.n_q] * problem.batch, [problem.n_kv] * problem.batch, inputs.scales)

        def call(copy):
            attend(inputs.q, *copies[copy], table, out, lse)
            return out

        return call

    def _attend(self, problem, n_q, n_kv, scales):
        """The driver's call of sequences of these lengths, of arrays that have them one after another."""
        q_type, (k_type, v_type) = self._type(problem.query_type), map(self._type, problem.kv_types)
        pointer = lambda array: None if array is None else ctypes.c_void_p(array.ctypes.data)
        scales = [None if scale is None else ctypes.byref(ctypes.c_float(scale)) for scale in scales]
        lengths = [(ctypes.c_long * len(n))(*n) for n in (n_q, n_kv)]

        def attend(q, k, v, table, out, lse=None):
            failed = self.lib.gqa_driver_attend(
                self.driver, pointer(q), q_type, pointer(k), k_type, scales[0], pointer(v), v_type, scales[1],
                problem.query_heads, problem.kv_heads, problem.head_dim, *lengths, len(n_q), int(problem.storage == "token-major"),
                pointer(table), ctypes.c_long(problem.page_size), pointer(out), pointer(lse))
            if failed:
                raise RuntimeError(self.lib.gqa_driver_error(self.driver).decode())

        return attend

    def ways_of_lengths(self, problem):
        """How a batch of unequal lengths can be had, by name: what the call of one sequence alone is then, as fields of Problem; None for the same
        way with a batch of one."""
        return {"one after another": {}, "pages of 32": {"storage": "paged", "page_size": 32}}

    def attend_lengths(self, problem, sequences, scales, way):
        """n_q × query heads × dim of f32 of each sequence."""
        table, caches = None, ([s.k for s in sequences], [s.v for s in sequences])
        if problem.storage == "paged":
            tables = pages_of_lengths([s.n_kv for s in sequences], problem.page_size)
            table, caches = np.concatenate(tables), [in_pages(rows, tables, problem) for rows in caches]
        else:
            caches = [np.concatenate([x.reshape(-1, x.shape[-1]) for x in rows]) for rows in caches]
        q = np.concatenate([s.q for s in sequences])
        out = np.full(q.shape, np.nan, np.float32)  # of a row that is not written no bit is any other's
        self._attend(problem, [s.n_q for s in sequences], [s.n_kv for s in sequences], scales)(q, *caches, table, out)
        return rows_of_each(out, sequences)

    def _prepare_backward(self, problem, inputs):
        """All gradients side by side: by queries (token, head, dim), by keys and by values (head, token, dim)."""
        lse = np.empty((problem.n_q, problem.query_heads), np.float32)
        out = self.prepare(dataclasses.replace(problem, name="prefill"), inputs, lse)(0)
        (k, v), = inputs.copies
        queries = out.size
        gradients = np.empty(queries + 2 * k.size, np.float32)
        to = [gradients[a:b] for a, b in ((0, queries), (queries, queries + k.size), (queries + k.size, gradients.size))]
        pointer = lambda array: ctypes.c_void_p(array.ctypes.data)

        def call(_):
            failed = self.lib.gqa_driver_differentiate(
                self.driver, pointer(inputs.q), pointer(k), pointer(v), self._type(problem.type), pointer(out), pointer(lse),
                pointer(inputs.d_out), problem.query_heads, problem.kv_heads, problem.head_dim, ctypes.c_long(problem.n_q),
                *map(pointer, to))
            if failed:
                raise RuntimeError(self.lib.gqa_driver_error(self.driver).decode())
            return gradients

        return call


def rivals():
    """The classes of all of them."""
    from rivals_ggml import Ggml, IkLlama
    from rivals_onnx import OnnxRuntime
    from rivals_torch import Torch
    from rivals_vllm import Vllm

    return Torch, OnnxRuntime, Ggml, IkLlama, Vllm


def installed(threads, codecs=False):
    """This library, for quantised caches too if asked for, and the rivals that are here."""
    sides = [Ours(threads, CODECS if codecs else ())]
    for rival in rivals():
        try:
            sides.append(rival(threads))
        except ImportError as missing:
            print(f"without {rival.name}: {missing}", file=sys.stderr)
    return sides
