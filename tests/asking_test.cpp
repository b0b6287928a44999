// SPDX-License-Identifier: Apache-2.0
// What kernels ask memory for before they need it: every row, a few times at most, and nothing behind the cache. No result shows whether
// they do, and a row that nobody has asked for is waited for.
#undef GQA_COMPILED_KERNELS  // these are kernels whose prefetch instructions are counted

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace {
void count_line(const void* address);
}
#define __builtin_prefetch(address, ...) ::count_line(address)
#include "gqa/gqa.hpp"
#include "support/paths.hpp"

namespace {

constexpr std::size_t kLineBytes = 64;

// Lines of memory from `begin` on, and how often each has been asked for.
struct Lines {
  explicit Lines(std::size_t bytes) : memory(bytes + kLineBytes), count(bytes / kLineBytes) {}
  std::byte* begin() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (kLineBytes - address % kLineBytes) % kLineBytes;
  }
  void asked(std::uintptr_t address) {
    const auto first = reinterpret_cast<std::uintptr_t>(begin());
    if (address >= first && (address - first) / kLineBytes < count.size()) ++count[(address - first) / kLineBytes];
  }
  std::vector<std::byte> memory;
  std::vector<int> count;
};
Lines* keys = nullptr;
Lines* values = nullptr;

void count_line(const void* address) {
  if (keys == nullptr) return;
  keys->asked(reinterpret_cast<std::uintptr_t>(address));
  values->asked(reinterpret_cast<std::uintptr_t>(address));
}

}  // namespace

namespace gqa::test {
namespace {

// Tokens of which a line has not been asked for, from token `first` on; and the most often that any line has been.
struct Count {
  Index missed = 0;
  int most = 0;
};
Count count_tokens(const Lines& lines, Index first, Index tokens, Index row_bytes) {
  Count found;
  for (Index t = first; t < tokens; ++t) {
    bool all = true;
    for (Index byte = t * row_bytes; byte < (t + 1) * row_bytes; ++byte)
      all = all && lines.count[static_cast<std::size_t>(byte) / kLineBytes] > 0;
    found.missed += all ? 0 : 1;
  }
  for (const int count : lines.count) found.most = std::max(found.most, count);
  return found;
}

class Asking : public testing::TestWithParam<Path> {};

// One span of one KV head: its first keys are read as they come, of its other rows none may be left out. Values behind a last block of
// fewer tokens than a stream asks for ahead may be: their beginning, a stream's length.
TEST_P(Asking, EveryRowOfADecodeStepIsAskedFor) {
  report_paths_not_run();
  const WithStreaming in_use(detail::Streaming::prefetched);
  constexpr Index kBehind = 64;  // rows behind the cache
  const std::pair<Index, Index> widths[] = {{128, 128}, {64, 128}, {128, 32}, {80, 80}, {96, 256}, {256, 256}};
  for (const ElementType type : {ElementType::f32, ElementType::bf16})
    for (const auto& [head_dim, value_dim] : widths)
      for (const Index group : {1, 2, 4, 5, 6, 7, 9, 12, 16, 32, 40})
        for (const Index tokens : {512, 500, 497, 193}) {
          const Index k_bytes = head_dim * element_bytes(type);
          const Index v_bytes = value_dim * element_bytes(type);
          Lines k(static_cast<std::size_t>((tokens + kBehind) * k_bytes));
          Lines v(static_cast<std::size_t>((tokens + kBehind) * v_bytes));
          const std::vector<float> query(static_cast<std::size_t>(group * head_dim));
          std::vector<float> out(static_cast<std::size_t>(group * value_dim));
          ConstTensorView q(query.data(), 1, group, head_dim);
          q.type = type;
          KvCacheView kv =
              KvCacheView::contiguous(reinterpret_cast<const float*>(k.begin()),
                                      reinterpret_cast<const float*>(v.begin()), {tokens, 1, head_dim, value_dim});
          kv.k_type = kv.v_type = type;
          Options options;
          options.path = GetParam();
          const DynamicAttention attention;
          keys = &k;
          values = &v;
          attention(q, kv, {out.data(), 1, group, value_dim}, options);
          keys = values = nullptr;

          SCOPED_TRACE(std::string(path_name(GetParam())) + ", " + element_name(type) + ", G " + std::to_string(group) +
                       ", D " + std::to_string(head_dim) + ", Dv " + std::to_string(value_dim) + ", tokens " +
                       std::to_string(tokens));
          const Count of_keys = count_tokens(k, detail::kBlock, tokens, k_bytes);
          const Count of_values = count_tokens(v, 0, tokens, v_bytes);
          const Index ahead = detail::Stream::kAhead / std::max(k_bytes, v_bytes);
          EXPECT_EQ(of_keys.missed, 0);
          EXPECT_LE(of_values.missed, tokens % detail::kBlock == 0 ? 0 : std::max(ahead, Index{16}));
          EXPECT_LE(std::max(of_keys.most, of_values.most), 4);
          EXPECT_EQ(
              std::count_if(k.count.end() - kBehind * k_bytes / 64 + 1, k.count.end(), [](int n) { return n > 0; }), 0);
          EXPECT_EQ(
              std::count_if(v.count.end() - kBehind * v_bytes / 64 + 1, v.count.end(), [](int n) { return n > 0; }), 0);
        }
}

std::vector<Path> paths_that_ask() {  // tiles have their own way
  std::vector<Path> paths;
  for (const Path path : available_paths())
    if (path != Path::amx) paths.push_back(path);
  return paths;
}
INSTANTIATE_TEST_SUITE_P(EveryPath, Asking, testing::ValuesIn(paths_that_ask()),
                         [](const auto& each) { return std::string(path_name(each.param)); });

}  // namespace
}  // namespace gqa::test
