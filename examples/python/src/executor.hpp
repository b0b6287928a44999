// SPDX-License-Identifier: Apache-2.0
/// @file
/// Threads: Eigen's pool where Eigen is, or else OpenMP's.
#pragma once

#include "arrays.hpp"

#if defined(GQA_PYTHON_THREADS_OF_EIGEN)
#include <gqa/thread_pool.hpp>
#endif

namespace gqa::python {

#if defined(GQA_PYTHON_THREADS_OF_EIGEN)
using Threads = ThreadPoolExecutor;
inline constexpr const char* kThreadsOf = "Eigen's thread pool";
#elif defined(_OPENMP)
struct Threads : OpenMpExecutor {
  explicit Threads(int count) : OpenMpExecutor{count} {
    if (count < 1) fail("threads", std::to_string(count), "1 or more");
  }
};
inline constexpr const char* kThreadsOf = "OpenMP";
#else
struct Threads : SerialExecutor {
  explicit Threads(int count) {
    if (count != 1) fail("threads", std::to_string(count), "1: the package was built without Eigen and without OpenMP");
  }
};
inline constexpr const char* kThreadsOf = "none: neither Eigen nor OpenMP was there";
#endif

}  // namespace gqa::python
