# SPDX-License-Identifier: Apache-2.0
"""Tensors with a shape and no elements, by which something else than elements passes through a model's code."""

import torch


class TensorWithoutData(torch.Tensor):
    """Has the shape and type that a model may ask for. An operation on it is done on materialise(), which a subclass has or refuses."""

    @staticmethod
    def __new__(cls, shape, dtype):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device="cpu")

    def __init__(self, shape, dtype):
        pass

    def __repr__(self):
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"

    def materialise(self):
        raise NotImplementedError

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def made(x):
            return x.materialise() if isinstance(x, TensorWithoutData) else x

        args, kwargs = torch.utils._pytree.tree_map(made, (args, kwargs or {}))
        return function(*args, **kwargs)
