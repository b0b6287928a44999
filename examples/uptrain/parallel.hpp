// SPDX-License-Identifier: Apache-2.0
/// @file
/// A function for each of a number of tasks, on an executor of the library.
#pragma once

#include <exception>
#include <mutex>

#include "gqa/gqa.hpp"

namespace uptrain {

using gqa::Index;

/// Runs call(0) … call(count − 1), each once, in any order, and returns when all are done.
/// @throws the first that any of them threw
template <class Call>
void for_each(gqa::ExecutorRef executor, Index count, const Call& call) {
  struct Work {
    const Call& call;
    std::mutex mutex{};
    std::exception_ptr thrown{};
  } work{call};
  executor.parallel_for(count, gqa::TaskRef(&work, [](void* context, Index task) {
                          Work& all = *static_cast<Work*>(context);
                          try {
                            all.call(task);
                          } catch (...) {
                            const std::lock_guard lock(all.mutex);
                            if (!all.thrown) all.thrown = std::current_exception();
                          }
                        }));
  if (work.thrown) std::rethrow_exception(work.thrown);
}

}  // namespace uptrain
