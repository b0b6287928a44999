# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's attention, behind the steps of rivals.py."""

from types import SimpleNamespace

import numpy as np

from rivals import nibbles, token_major, with_padding


class OnnxRuntime:
    """com.microsoft.GroupQueryAttention with bound buffers; past and present are one buffer, as a server would have it."""

    name = "ONNX Runtime GQA"
    keeps_memory = True  # what a call allocated, for the next one; gigabytes after a long prefill

    def __init__(self, threads):
        import onnx
        import onnxruntime

        self.onnx, self.ort = onnx, onnxruntime
        self.version = onnxruntime.__version__
        self.take_threads(threads)

    def take_threads(self, threads):
        self.threads = threads

    def prepare(self, problem, inputs, n_kv=None):
        """n_kv: tokens of each sequence, where some have fewer than problem.n_kv: what they have is at the beginning of their part of the buffers."""
        n_kv = [problem.n_kv] * problem.batch if n_kv is None else n_kv
        coded = problem.type in ("int8", "int4")
        if problem.type == "bf16" or (problem.quantised and not coded) or not problem.plain_storage:
            return None  # bf16: not on its CPU provider
        if problem.batch > 1 and 1 < problem.n_q < problem.n_kv:
            return None  # it takes chunks of one sequence
        onnx, ort = self.onnx, self.ort
        kind = onnx.TensorProto.FLOAT16 if problem.type == "f16" else onnx.TensorProto.FLOAT
        element = np.float16 if problem.type == "f16" else np.float32
        cache_kind = {"int8": onnx.TensorProto.INT8, "int4": onnx.TensorProto.UINT8}.get(problem.type, kind)
        info = onnx.helper.make_tensor_value_info
        batch = problem.batch
        cache = [batch, problem.kv_heads, problem.n_kv, problem.head_dim // (2 if problem.type == "int4" else 1)]
        rows, row_kv = problem.query_heads * problem.head_dim, problem.kv_heads * problem.head_dim
        node = onnx.helper.make_node(
            "GroupQueryAttention", ["q", "k", "v", "past_k", "past_v", "seqlens_k", "total"] +
            (["", "", "", "", "", "k_scale", "v_scale"] if coded else []), ["out", "present_k", "present_v"],
            domain="com.microsoft", num_heads=problem.query_heads, kv_num_heads=problem.kv_heads,
            **({"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": int(problem.type[3:])}
               if coded else {}))
        graph = onnx.helper.make_graph(
            [node], "attention",
            [info("q", kind, [batch, problem.n_q, rows]), info("k", kind, [batch, problem.n_q, row_kv]),
             info("v", kind, [batch, problem.n_q, row_kv]), info("past_k", cache_kind, cache),
             info("past_v", cache_kind, cache), info("seqlens_k", onnx.TensorProto.INT32, [batch]),
             info("total", onnx.TensorProto.INT32, [1])] +
            [info(name, onnx.TensorProto.FLOAT, [1]) for name in (("k_scale", "v_scale") if coded else ())],
            [info("out", kind, [batch, problem.n_q, rows]), info("present_k", cache_kind, cache), info("present_v", cache_kind, cache)])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17),
                                                             onnx.helper.make_opsetid("com.microsoft", 1)])
        model.ir_version = 9
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = self.keeps_memory
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

        value = ort.OrtValue.ortvalue_from_numpy
        q = value((inputs.q_f32 if coded else inputs.q).reshape(batch, problem.n_q, rows))
        out = value(np.zeros((batch, problem.n_q, rows), element))
        lengths = value(np.array(n_kv, np.int32) - 1), value(np.array([problem.n_kv], np.int32))
        scales = [(name, value(np.array([scale], np.float32)))
                  for name, scale in zip(("k_scale", "v_scale"), inputs.scales if coded else ())]
        bindings = []
        even = np.arange(0, problem.head_dim, 2)
        for k, v in inputs.copies:
            k, v = (x.reshape(batch, problem.kv_heads, problem.n_kv, -1) for x in (k, v))
            newest = [slice(0, None) if problem.n_q == problem.n_kv else slice(n - problem.n_q, n) for n in n_kv]
            new = [np.stack([token_major(rows[:, part]).reshape(problem.n_q, row_kv) for rows, part in zip(x, newest)]) for x in (k, v)]
            if coded:  # what it makes of the newest tokens is what the cache has already
                new = [x.astype(np.float32) * scale for x, scale in zip(new, inputs.scales)]
            if problem.type == "int4":
                k, v = (nibbles(x, even, even + 1) for x in (k, v))
            new_k, new_v = value(new[0]), value(new[1])
            past_k, past_v = (value(np.ascontiguousarray(x).reshape(cache)) for x in (k, v))
            binding = session.io_binding()
            for key, bound in (("q", q), ("k", new_k), ("v", new_v), ("past_k", past_k), ("past_v", past_v),
                               ("seqlens_k", lengths[0]), ("total", lengths[1]), *scales):
                binding.bind_ortvalue_input(key, bound)
            for key, bound in (("out", out), ("present_k", past_k), ("present_v", past_v)):
                binding.bind_ortvalue_output(key, bound)
            bindings.append((binding, new_k, new_v, past_k, past_v))

        def call(copy):
            session.run_with_iobinding(bindings[copy][0])
            return out

        def result(copy):
            return call(copy).numpy().astype(np.float32).reshape(inputs.q.shape)

        call.result = result
        return call

    def ways_of_lengths(self, problem):
        """See Ours in rivals.py; by seqlens_k."""
        return {"padded on the right": {}} if problem.type in ("f32", "f16", "int8") else {}

    def attend_lengths(self, problem, sequences, scales, way):
        """See Ours in rivals.py. Whole prompts, or one token of each; results of tokens that are padding are left out."""
        q, q_f32 = with_padding([s.q for s in sequences], 0), with_padding([s.q_f32 for s in sequences], 0)
        copy = tuple(with_padding(x, 1) for x in ([s.k for s in sequences], [s.v for s in sequences]))
        given = SimpleNamespace(q=q, q_f32=q_f32, copies=[copy], scales=scales)
        rows = self.prepare(problem, given, [s.n_kv for s in sequences]).result(0)
        return [row[:s.n_q] for row, s in zip(rows, sequences)]
