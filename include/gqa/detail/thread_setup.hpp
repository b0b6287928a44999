// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a thread is set to before it runs tasks.
#pragma once

#include "gqa/detail/float_environment.hpp"
#include "gqa/detail/kernel_types.hpp"

namespace gqa::detail::inline GQA_ABI {

/// The thread as the kernels need it, for a lifetime.
class ThreadSetup {
 public:
  explicit ThreadSetup(const Kernels& kernels) noexcept : kernels_(kernels) {
    if (kernels_.enter != nullptr) kernels_.enter();
  }
  ~ThreadSetup() {
    if (kernels_.leave != nullptr) kernels_.leave();
  }
  ThreadSetup(const ThreadSetup&) = delete;
  ThreadSetup& operator=(const ThreadSetup&) = delete;

 private:
  const FloatEnvironment environment_{};
  const Kernels& kernels_;
};

}  // namespace gqa::detail::inline GQA_ABI
