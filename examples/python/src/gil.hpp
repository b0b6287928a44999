// SPDX-License-Identifier: Apache-2.0
/// @file
/// Letting go of the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <thread>

namespace gqa::python {

/// While it lives others have the GIL. A daemon thread that would take it again when Python has ended is ended by Python before 3.14, by
/// unwinding it, which ends the process where that meets a destructor, as here: it waits for the process' end instead.
class GilReleased {
 public:
  GilReleased() : thread_(PyEval_SaveThread()) {}
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;
  ~GilReleased() {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {
      while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* thread_;
};

}  // namespace gqa::python
