// SPDX-License-Identifier: Apache-2.0
// A program without exceptions: a wrong argument reaches the handler that was set, with the message that would have been thrown,
// and aborts the program where none was set.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gqa/gqa.hpp"

#if defined(__cpp_exceptions)
#error "to be compiled with -fno-exceptions"
#endif

namespace {

float q[8] = {};
float kv[8] = {};
float out[8] = {3.0f};

// Two query heads of width 4 over a cache whose keys have width 8.
void wrong_call() {
  gqa::DynamicAttention{}(gqa::ConstTensorView(q, 1, 2, 4), gqa::KvCacheView::contiguous(kv, kv, gqa::KvShape{1, 1, 8}),
                          gqa::TensorView(out, 1, 2, 4));
}

void check_message(const char* message) {
  std::puts(message);
  const bool named = std::strncmp(message, "gqa: ", 5) == 0 && std::strstr(message, "head_dim") != nullptr &&
                     std::strstr(message, "expected") != nullptr;
  std::_Exit(named && out[0] == 3.0f ? 0 : 1);
}

void aborted(int) { std::_Exit(0); }

}  // namespace

int main(int argc, char**) {
  if (gqa::set_error_handler(nullptr) != nullptr) return 2;
  if (argc == 1) {
    gqa::set_error_handler(check_message);
  } else {
    std::signal(SIGABRT, aborted);
  }
  wrong_call();
  return 3;  // the handler must not let the call return
}
