# SPDX-License-Identifier: Apache-2.0
"""Builds the extension: the library's headers are those of the repository that this folder is part of."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

folder = Path(__file__).resolve().parent
flags = ["-std=c++20", "-O2", "-g0", "-fopenmp", "-fvisibility=hidden", "-DGQA_COMPILED_KERNELS"]

setup(
    ext_modules=[
        CppExtension(
            "gqa_torch._C",
            sources=["csrc/gqa_torch.cpp", "csrc/cache.cpp", "csrc/kernels.cpp"],
            include_dirs=[str(folder / "../../include"), str(folder / "csrc")],
            extra_compile_args=flags,
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
