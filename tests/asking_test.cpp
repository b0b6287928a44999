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
Count count_tokens(const Lines& lines, Index first, Index tokens, Index stride, Index bytes) {
  Count found;
  for (Index t = first; t < tokens; ++t) {
    bool all = true;
    const std::size_t end = static_cast<std::size_t>(t * stride + bytes - 1) / kLineBytes + 1;
    for (std::size_t line = static_cast<std::size_t>(t * stride) / kLineBytes; line < end; ++line)
      all = all && lines.count[line] > 0;
    found.missed += all ? 0 : 1;
  }
  for (const int count : lines.count) found.most = std::max(found.most, count);
  return found;
}

// Lines that have been asked for behind so many bytes.
Index asked_behind(const Lines& lines, Index bytes) {
  const auto behind =
      lines.count.begin() + (bytes + static_cast<Index>(kLineBytes) - 1) / static_cast<Index>(kLineBytes);
  return std::count_if(behind, lines.count.end(), [](int count) { return count > 0; });
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
      for (const Index group : {1, 2, 4, 5, 6, 7, 9, 12, 16, 32, 40, 128})
        for (const Index tokens : {512, 500, 497, 193, 157}) {
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
          const Count of_keys = count_tokens(k, detail::kBlock, tokens, k_bytes, k_bytes);
          const Count of_values = count_tokens(v, 0, tokens, v_bytes, v_bytes);
          const Index ahead = detail::Stream::kAhead / std::max(k_bytes, v_bytes);
          EXPECT_EQ(of_keys.missed, 0);
          EXPECT_LE(of_values.missed, tokens % detail::kBlock == 0 ? 0 : std::max(ahead, Index{16}));
          EXPECT_LE(std::max(of_keys.most, of_values.most), 4);
          EXPECT_EQ(asked_behind(k, tokens * k_bytes), 0);
          EXPECT_EQ(asked_behind(v, tokens * v_bytes), 0);
        }
}

// Nothing before a window that begins within a block: in a ring that may lie before the cache.
TEST_P(Asking, NothingBeforeAWindowIsAskedFor) {
  const WithStreaming in_use(detail::Streaming::prefetched);
  constexpr Index kTokens = 512;
  constexpr Index kDim = 128;
  for (const Index group : {1, 4, 7, 16})
    for (const Index window : {100, 70, 20}) {
      const Index row_bytes = kDim * Index{sizeof(float)};
      Lines k(static_cast<std::size_t>(kTokens * row_bytes));
      Lines v(static_cast<std::size_t>(kTokens * row_bytes));
      const std::vector<float> query(static_cast<std::size_t>(group * kDim));
      std::vector<float> out(query.size());
      Options options;
      options.path = GetParam();
      const DynamicAttention attention;
      keys = &k;
      values = &v;
      attention(ConstTensorView(query.data(), 1, group, kDim),
                KvCacheView::contiguous(reinterpret_cast<const float*>(k.begin()),
                                        reinterpret_cast<const float*>(v.begin()), {kTokens, 1, kDim}),
                {out.data(), 1, group, kDim}, CausalWindow{window}, options);
      keys = values = nullptr;
      for (const Lines* lines : {&k, &v})
        EXPECT_EQ(std::count_if(lines->count.begin(),
                                lines->count.begin() + (kTokens - window) * row_bytes / static_cast<Index>(kLineBytes),
                                [](int count) { return count > 0; }),
                  0)
            << path_name(GetParam()) << ", G " << group << ", window " << window;
    }
}

// Several KV heads whose rows of a token lie side by side, with nothing or another head's row between one token's and the next one's.
TEST_P(Asking, EveryRowOfHeadsSideBySideIsAskedFor) {
  const WithStreaming in_use(detail::Streaming::prefetched);
  constexpr Index kBehind = 64;
  const std::pair<Index, Index> shapes[] = {{64, 20}, {128, 2}, {128, 3}, {128, 8}, {256, 3}};
  for (const ElementType type : {ElementType::f32, ElementType::bf16})
    for (const auto& [dim, heads] : shapes)
      for (const Index gap : {0, 1})
        for (const Index group : {1, 4, 5, 7, 12, 16, 20})
          for (const Index tokens : {256, 180}) {
            const Index row_bytes = dim * element_bytes(type);
            const Index token_bytes = (heads + gap) * row_bytes;
            Lines k(static_cast<std::size_t>((tokens + kBehind) * token_bytes));
            Lines v(static_cast<std::size_t>((tokens + kBehind) * token_bytes));
            const std::vector<float> query(static_cast<std::size_t>(heads * group * dim));
            std::vector<float> out(query.size());
            ConstTensorView q(query.data(), 1, heads * group, dim);
            q.type = type;
            KvCacheView kv = KvCacheView::contiguous(reinterpret_cast<const float*>(k.begin()),
                                                     reinterpret_cast<const float*>(v.begin()), {tokens, heads, dim});
            kv.k_type = kv.v_type = type;
            kv.k_strides = kv.v_strides = KvStrides::token_major(heads + gap, dim, tokens);
            Options options;
            options.path = GetParam();
            const DynamicAttention attention;
            keys = &k;
            values = &v;
            attention(q, kv, {out.data(), 1, heads * group, dim}, options);
            keys = values = nullptr;

            SCOPED_TRACE(std::string(path_name(GetParam())) + ", " + element_name(type) + ", " + std::to_string(heads) +
                         " KV heads, gap " + std::to_string(gap) + ", G " + std::to_string(group) + ", D " +
                         std::to_string(dim) + ", tokens " + std::to_string(tokens));
            const Count of_keys = count_tokens(k, detail::kBlock, tokens, token_bytes, heads * row_bytes);
            const Count of_values = count_tokens(v, 0, tokens, token_bytes, heads * row_bytes);
            EXPECT_EQ(of_keys.missed, 0);
            EXPECT_EQ(of_values.missed, 0);
            EXPECT_LE(std::max(of_keys.most, of_values.most), 4);
            EXPECT_EQ(asked_behind(k, tokens * token_bytes), 0);
            EXPECT_EQ(asked_behind(v, tokens * token_bytes), 0);
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
