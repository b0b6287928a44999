# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention, behind the steps of rivals.py."""

import numpy as np

from rivals import token_major, with_padding


class Torch:
    name = "PyTorch SDPA"
    differentiates = True
    # What its kernels, and the libraries that it calls, look at as they are loaded.
    path_environments = {
        "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}}

    def __init__(self, threads):
        import torch

        self.torch = torch
        self.version = torch.__version__
        torch.set_num_threads(threads)

    def take_threads(self, threads):
        self.torch.set_num_threads(threads)

    def _tensor(self, problem, array):
        if problem.type == "bf16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def prepare(self, problem, inputs):
        if problem.quantised or problem.storage == "paged":
            return None
        torch = self.torch
        tensor = lambda array: self._tensor(problem, array)

        def heads_first(array):  # batch × heads × tokens × dim, of keys or values, as they are stored
            if problem.plain_storage:
                return tensor(array).view(problem.batch, problem.kv_heads, problem.n_kv, problem.head_dim)
            return tensor(token_major(array)).view(problem.batch, problem.n_kv, problem.kv_heads, problem.head_dim).transpose(1, 2)

        q = tensor(inputs.q).view(problem.batch, problem.n_q, problem.query_heads, problem.head_dim).transpose(1, 2).contiguous()
        copies = [tuple(map(heads_first, copy)) for copy in inputs.copies]
        grouped = problem.query_heads != problem.kv_heads
        if problem.backward:
            return self._prepare_backward(q, *copies[0], tensor(inputs.d_out).transpose(0, 1).unsqueeze(0), grouped)

        whole = problem.n_q == problem.n_kv
        chunk = problem.n_q > 1 and not whole  # is_causal aligns the first query with the first key
        mask = torch.ones(problem.n_q, problem.n_kv, dtype=torch.bool).tril(problem.n_kv - problem.n_q) if chunk else None

        def call(copy):
            k, v = copies[copy]
            with torch.inference_mode():
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=problem.n_q > 1 and whole,
                                                                        enable_gqa=grouped)

        def result(copy):
            return call(copy).transpose(1, 2).float().numpy().reshape(inputs.q.shape)

        call.result = result
        return call

    def ways_of_lengths(self, problem):
        """See Ours; by a boolean mask, as who pads a batch has it. Both are in use: models that generate pad on the left."""
        return {} if problem.quantised else {"padded on the right": {}, "padded on the left": {}}

    def attend_lengths(self, problem, sequences, scales, way):
        """See Ours. Results of tokens that are padding are left out."""
        torch = self.torch
        left = way == "padded on the left"
        q = self._tensor(problem, with_padding([s.q for s in sequences], 0, left)).transpose(1, 2).contiguous()
        k, v = (self._tensor(problem, with_padding(x, 1, left)) for x in ([s.k for s in sequences], [s.v for s in sequences]))
        n_q, n_kv = q.shape[2], k.shape[2]
        key = torch.arange(n_kv)
        real = torch.stack([key >= n_kv - s.n_kv if left else key < s.n_kv for s in sequences])
        mask = real[:, None, None, :]  # batch × 1 × queries × keys
        if n_q > 1:  # whole prompts: a query token's place is that of its key
            mask = mask & (key[None, :] <= key[:, None])
        with torch.inference_mode():
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=problem.query_heads != problem.kv_heads)
        rows = out.transpose(1, 2).float().numpy()
        return [row[n_q - s.n_q:] if left else row[:s.n_q] for row, s in zip(rows, sequences)]

    def _prepare_backward(self, q, k, v, d_out, grouped):
        """The backward pass alone, of a forward pass that is made once."""
        torch = self.torch
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=grouped)

        def call(_):
            return torch.autograd.grad(out, inputs, d_out, retain_graph=True)

        def result(copy):
            d_q, d_k, d_v = call(copy)
            return np.concatenate([x[0].float().numpy().ravel() for x in (d_q.transpose(1, 2), d_k, d_v)])

        call.result = result
        return call
