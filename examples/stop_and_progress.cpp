// SPDX-License-Identifier: Apache-2.0
// A long prefill shows how far it is, and is stopped from another thread.
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "gqa/gqa.hpp"

int main() {
  constexpr gqa::Index tokens = 4096;
  const std::vector<float> q(static_cast<std::size_t>(tokens * 32 * 128), 0.5f);
  const std::vector<float> kv(static_cast<std::size_t>(tokens * 8 * 128), 0.25f);
  std::vector<float> out(q.size());
  const gqa::GroupedQueryAttention<32, 8, 128, 128, gqa::CacheOf<float>> attention;

  gqa::CallControl control;
  std::thread watcher([&] {
    // total is 0 until the call begins to work. A quarter is enough for this program.
    while (control.total == 0 || control.done * 4 < control.total)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::printf("%.0f%% done, stopping\n",
                100.0 * static_cast<double>(control.done) / static_cast<double>(control.total));
    control.stop = true;
  });
  bool stopped = false;
  try {
    attention({q.data(), tokens, 32, 128},
              gqa::KvCacheView::contiguous(kv.data(), kv.data(), {.length = tokens, .kv_heads = 8, .head_dim = 128}),
              {out.data(), tokens, 32, 128}, {.control = &control});
  } catch (const gqa::Stopped& stop) {
    std::printf("%s, with %.0f%% done\n", stop.what(),
                100.0 * static_cast<double>(control.done) / static_cast<double>(control.total));
    stopped = true;
  }
  watcher.join();
  return stopped ? 0 : 1;
}
