// SPDX-License-Identifier: Apache-2.0
// What is prefetched: the rows of a cache in the order in which they are read, once, no farther ahead than the policy says, and nothing behind
// the cache. No result shows it, and a row that nobody has fetched is waited for.
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

// Lines of memory from `begin` on, and how often each has been prefetched.
struct Lines {
  explicit Lines(std::size_t bytes) : memory(bytes + kLineBytes), count(bytes / kLineBytes) {}
  std::byte* begin() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (kLineBytes - address % kLineBytes) % kLineBytes;
  }
  void fetched(std::uintptr_t address) {
    const auto first = reinterpret_cast<std::uintptr_t>(begin());
    if (address >= first && (address - first) / kLineBytes < count.size()) ++count[(address - first) / kLineBytes];
  }
  std::vector<std::byte> memory;
  std::vector<int> count;
};
Lines* keys = nullptr;
Lines* values = nullptr;

std::vector<const void*>* order = nullptr;  // of the lines that a Prefetcher fetches by itself

void count_line(const void* address) {
  if (order != nullptr) order->push_back(address);
  if (keys == nullptr) return;
  keys->fetched(reinterpret_cast<std::uintptr_t>(address));
  values->fetched(reinterpret_cast<std::uintptr_t>(address));
}

}  // namespace

namespace gqa::test {
namespace {

// Tokens of which a line has not been prefetched, from token `first` on; and the most often that any line has been.
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

// Lines that have been prefetched behind so many bytes.
Index fetched_behind(const Lines& lines, Index bytes) {
  const auto behind =
      lines.count.begin() + (bytes + static_cast<Index>(kLineBytes) - 1) / static_cast<Index>(kLineBytes);
  return std::count_if(behind, lines.count.end(), [](int count) { return count > 0; });
}

// One token over a cache whose tokens hold `heads` rows, and `gap` more that are nobody's.
struct Step {
  ElementType type;
  Index group;
  Index head_dim;
  Index value_dim;
  Index tokens;
  Index heads = 1;
  Index gap = 0;
  Index ring = 0;  // its capacity, if it is one

  Index k_bytes() const { return heads * head_dim * element_bytes(type); }  // of a token
  Index v_bytes() const { return heads * value_dim * element_bytes(type); }
  Index k_stride() const { return (heads + gap) * head_dim * element_bytes(type); }
  Index v_stride() const { return (heads + gap) * value_dim * element_bytes(type); }
  std::string name(Path path) const {
    return std::string(path_name(path)) + ", " + element_name(type) + ", " + std::to_string(heads) + " KV heads, gap " +
           std::to_string(gap) + ", G " + std::to_string(group) + ", D " + std::to_string(head_dim) + ", Dv " +
           std::to_string(value_dim) + ", tokens " + std::to_string(tokens);
  }
};

// What it prefetches, of keys and of values. Room for some tokens lies behind either.
template <class V = Causal>
std::pair<Lines, Lines> lines_fetched(Path path, const Step& step, const V& variant = {}) {
  constexpr Index behind = 64;
  Lines k(static_cast<std::size_t>((step.tokens + behind) * step.k_stride()));
  Lines v(static_cast<std::size_t>((step.tokens + behind) * step.v_stride()));
  const Index query_heads = step.heads * step.group;
  const std::vector<float> query(static_cast<std::size_t>(query_heads * step.head_dim));
  std::vector<float> out(static_cast<std::size_t>(query_heads * step.value_dim));
  ConstTensorView q(query.data(), 1, query_heads, step.head_dim);
  q.type = step.type;
  KvCacheView kv =
      KvCacheView::contiguous(reinterpret_cast<const float*>(k.begin()), reinterpret_cast<const float*>(v.begin()),
                              {step.tokens, step.heads, step.head_dim, step.value_dim});
  kv.k_type = kv.v_type = step.type;
  kv.k_strides = KvStrides::token_major(step.heads + step.gap, step.head_dim, step.tokens);
  kv.v_strides = KvStrides::token_major(step.heads + step.gap, step.value_dim, step.tokens);
  if (step.ring > 0) {
    kv.storage = Storage::ring;
    kv.capacity = step.ring;
  }
  Options options;
  options.path = path;
  const DynamicAttention attention;
  keys = &k;
  values = &v;
  attention(q, kv, {out.data(), 1, query_heads, step.value_dim}, variant, options);
  keys = values = nullptr;
  return {std::move(k), std::move(v)};
}

// Rows of 64 bytes, a line each, at numbers that say where they were: keys from 0 on, values from 1000 on, the next keys from 2000 on.
class Queue : public testing::Test {
 protected:
  static constexpr Index kRow = 64;
  Queue() : memory_(3000 * kRow) {}

  detail::PrefetchPolicy policy(Index distance) const {
    detail::PrefetchPolicy policy{};
    policy.on = true;
    policy.distance = distance;
    policy.limit = distance + 256;
    return policy;
  }
  detail::RowRun run(Index first, Index tokens, Index heads = 1) const {
    return {memory_.data() + first * kRow, nullptr, tokens, heads, kRow, kRow};
  }
  // What a call fetches at once, by number.
  template <class F>
  std::vector<Index> fetched(const F& f) const {
    std::vector<const void*> lines;
    order = &lines;
    f();
    order = nullptr;
    std::vector<Index> rows;
    for (const void* line : lines) rows.push_back((static_cast<const std::byte*>(line) - memory_.data()) / kRow);
    return rows;
  }
  // What the strips of a stretch fetch, strip by strip; and how far ahead that ever is.
  std::vector<Index> stretch(detail::Prefetcher& prefetcher, Index strips, Index tokens) const {
    prefetcher.share(strips, tokens);
    std::vector<Index> rows = fetched([&] {
      for (Index strip = 0; strip < strips; ++strip) {
        detail::PrefetchCursor cursor = prefetcher.cursor(strip, tokens);
        for (Index t = 0; t < tokens; ++t) {
          if (cursor.row == nullptr || !cursor.is_due(t)) continue;
          cursor.fetch();
          cursor.next();
        }
      }
    });
    for (const Index row : fetched([&] { prefetcher.end_stretch(tokens, tokens); })) rows.push_back(row);
    return rows;
  }
  static std::vector<Index> numbers(Index first, Index last) {
    std::vector<Index> all;
    for (; first < last; ++first) all.push_back(first);
    return all;
  }

  std::vector<std::byte> memory_;
  detail::RowRun room_[detail::Prefetcher::room(4)];
};

TEST_F(Queue, RowsAreFetchedInTheOrderOfReadingEachOnce) {
  detail::Prefetcher prefetcher(policy(16), room_, 4);
  prefetcher.begin_stage(1, 128, kRow);
  prefetcher.append(run(0, 64), run(1000, 64));
  prefetcher.append(run(64, 64), run(1100, 64));  // keys go on, values do not
  prefetcher.append_next(run(2000, 64));
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  std::vector<Index> rows;
  for (Index token = 0; token < 256;) {
    const Index end = prefetcher.end_of_stretch(token, 256);
    for (const Index row : stretch(prefetcher, 1, end - token)) rows.push_back(row);
    token = end;
    EXPECT_EQ(prefetcher.lead(), 16);
  }
  std::vector<Index> expected = numbers(16, 128);  // the first ones are read too soon
  for (const auto& [first, last] : {std::pair<Index, Index>{1000, 1064}, {1100, 1164}, {2000, 2016}})
    for (const Index row : numbers(first, last)) expected.push_back(row);
  EXPECT_EQ(rows, expected);
}

TEST_F(Queue, StripsShareARowForEachToken) {
  detail::PrefetchPolicy shared = policy(16);
  shared.shared = true;
  detail::Prefetcher prefetcher(shared, room_, 4);
  prefetcher.begin_stage(1, 64, kRow);
  prefetcher.append(run(0, 64), run(1000, 64));
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  for (const Index strips : {1, 2, 3}) {
    const Index first = 16 * strips;
    EXPECT_EQ(stretch(prefetcher, strips, 16), numbers(first, first + 16)) << strips;
  }
}

// Where a run ends within a stretch, the next one's rows follow when the stretch is over.
TEST_F(Queue, NoRowIsLeftOutWhereARunEnds) {
  detail::Prefetcher prefetcher(policy(16), room_, 4);
  prefetcher.begin_stage(1, 64, kRow);
  prefetcher.append(run(0, 37), run(1000, 37));
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  EXPECT_EQ(prefetcher.end_of_stretch(0, 64), 32);  // 21 rows are left: whole grains
  std::vector<Index> expected = numbers(16, 37);
  for (const Index row : numbers(1000, 1011)) expected.push_back(row);
  EXPECT_EQ(stretch(prefetcher, 1, 32), expected);
  EXPECT_EQ(prefetcher.lead(), 16);
}

TEST_F(Queue, WhatIsAheadOfTheDistanceIsUsedUpAtHalfThePace) {
  detail::PrefetchPolicy between = policy(16);
  between.between = true;
  detail::Prefetcher prefetcher(between, room_, 4);
  prefetcher.begin_stage(1, 512, kRow);
  std::vector<Index> planned;
  for (Index first = 0; first < 512; first += 64)
    for (const Index row : fetched([&] { prefetcher.append(run(first, 64), run(1000 + first, 64)); }))
      planned.push_back(row);
  EXPECT_EQ(planned, numbers(0, static_cast<Index>(planned.size())));
  const Index lead = prefetcher.lead();
  ASSERT_EQ(lead, static_cast<Index>(planned.size()));
  ASSERT_GE(lead, 32);
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  ASSERT_LT(lead, 504);
  EXPECT_EQ(stretch(prefetcher, 1, 16), numbers(lead, lead + 8));
  EXPECT_EQ(prefetcher.lead(), lead - 8);
}

TEST_F(Queue, ScatteredRowsOfSeveralHeadsAreFetchedTokenByToken) {
  const Index offset[] = {40 * kRow, 8 * kRow, 24 * kRow, 0};
  detail::Prefetcher prefetcher(policy(1), room_, 4);
  prefetcher.begin_stage(2, 64, kRow);
  prefetcher.append({memory_.data(), offset, 4, 2, 3 * kRow, kRow}, run(1000, 4, 2));
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  EXPECT_EQ(stretch(prefetcher, 3, 4), (std::vector<Index>{8, 11, 24, 27}));  // of one head, and one strip
  EXPECT_EQ(stretch(prefetcher, 3, 4), (std::vector<Index>{0, 3, 1000, 1001}));
}

// Strips that share the fetching of evenly spaced rows may come, before they share anew, to a run of scattered ones of several heads.
TEST_F(Queue, StripsFindTheirRowsInAScatteredRunThatBeganMeanwhile) {
  const Index offset[] = {1080 * kRow, 1040 * kRow, 1060 * kRow, 1000 * kRow};
  detail::PrefetchPolicy shared = policy(2);
  shared.shared = true;
  detail::Prefetcher prefetcher(shared, room_, 4);
  prefetcher.begin_stage(3, 64, kRow);
  prefetcher.append(run(0, 4, 3), {memory_.data(), offset, 4, 3, 5 * kRow, kRow});
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  prefetcher.share(4, 4);
  prefetcher.end_stretch(8, 8);  // of the keys' 12 rows, 6 had been fetched
  std::vector<Index> rows;
  for (Index strip = 0; strip < 3; ++strip) {
    detail::PrefetchCursor cursor = prefetcher.cursor(strip, 4);
    for (Index t = 0; t < 4 && cursor.row != nullptr; ++t, cursor.next())
      for (const Index row : fetched([&] { cursor.fetch(); })) rows.push_back(row);
  }
  // But for the two that the end of the stretch has fetched.
  EXPECT_EQ(rows, (std::vector<Index>{1090, 1040, 1045, 1050, 1060, 1065, 1070, 1000, 1005, 1010}));
}

TEST_F(Queue, AStageGoesOnWhereTheLastOneEnded) {
  detail::Prefetcher prefetcher(policy(16), room_, 4);
  prefetcher.begin_stage(1, 64, kRow);
  prefetcher.append(run(0, 32), run(1000, 32));
  prefetcher.append_next(run(2000, 64));
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  for (int i = 0; i < 4; ++i) stretch(prefetcher, 1, 16);
  prefetcher.begin_stage(1, 64, kRow);
  prefetcher.append(run(2000, 64), run(1000, 64));
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  EXPECT_EQ(stretch(prefetcher, 1, 16), numbers(2016, 2032));
  prefetcher.restart();  // elsewhere
  prefetcher.begin_stage(1, 64, kRow);
  prefetcher.append(run(0, 64), run(1000, 64));
  EXPECT_EQ(prefetcher.lead(), 0);
}

TEST_F(Queue, NothingIsFetchedWhereLoadsAreFollowed) {
  detail::Prefetcher prefetcher;
  prefetcher.begin_stage(1, 64, kRow);
  prefetcher.append(run(0, 64), run(1000, 64));
  prefetcher.begin_reading();
  prefetcher.begin_stretches();
  EXPECT_TRUE(stretch(prefetcher, 2, 64).empty());
}

class Prefetching : public testing::TestWithParam<Path> {};

// One span of one KV head: its first keys are read as they come, of its other rows none may be left out.
TEST_P(Prefetching, EveryRowOfADecodeStepIsFetched) {
  report_paths_not_run();
  const WithStreaming in_use(detail::Streaming::prefetched);
  const std::pair<Index, Index> widths[] = {{128, 128}, {64, 128}, {128, 32}, {80, 80}, {96, 256}, {256, 256}};
  for (const ElementType type : {ElementType::f32, ElementType::bf16})
    for (const auto& [head_dim, value_dim] : widths)
      for (const Index group : {1, 2, 4, 5, 6, 7, 9, 12, 16, 32, 40, 128})
        for (const Index tokens : {512, 500, 497, 193, 157}) {
          const Step step{type, group, head_dim, value_dim, tokens};
          const auto [k, v] = lines_fetched(GetParam(), step);
          SCOPED_TRACE(step.name(GetParam()));
          const Count of_keys = count_tokens(k, detail::kBlock, tokens, step.k_stride(), step.k_bytes());
          const Count of_values = count_tokens(v, 0, tokens, step.v_stride(), step.v_bytes());
          EXPECT_EQ(of_keys.missed, 0);
          EXPECT_LE(of_values.missed,
                    step.v_bytes() % static_cast<Index>(kLineBytes) == 0 ? 0 : 1);  // the last one's last line
          EXPECT_LE(std::max(of_keys.most, of_values.most), 4);
          EXPECT_EQ(fetched_behind(k, tokens * step.k_stride()), 0);
          EXPECT_EQ(fetched_behind(v, tokens * step.v_stride()), 0);
        }
}

// What is fetched during a softmax is not fetched again by those who read it, but for a row that a softmax has fetched a part of.
TEST_P(Prefetching, ValuesOfOneHeadAreFetchedOnce) {
  const WithStreaming in_use(detail::Streaming::prefetched);
  for (const ElementType type : {ElementType::f32, ElementType::bf16})
    for (const Index dim : {64, 96, 128, 256}) {  // rows of whole lines
      const Step step{type, 1, dim, dim, 4 * detail::kSpan};
      const auto [k, v] = lines_fetched(GetParam(), step);
      const Index again = std::count_if(v.count.begin(), v.count.end(), [](int count) { return count > 1; });
      const Index blocks = step.tokens / detail::kBlock;
      EXPECT_LE(again, blocks * (step.v_bytes() / static_cast<Index>(kLineBytes))) << step.name(GetParam());
    }
}

// Nothing before a window that begins within a block: in a ring that may lie before the cache.
TEST_P(Prefetching, NothingBeforeAWindowIsFetched) {
  const WithStreaming in_use(detail::Streaming::prefetched);
  for (const Index group : {1, 4, 7, 16})
    for (const Index window : {100, 70, 20}) {
      const Step step{ElementType::f32, group, 128, 128, 512};
      const auto [k, v] = lines_fetched(GetParam(), step, CausalWindow{window});
      const Index before = (step.tokens - window) * step.k_stride() / static_cast<Index>(kLineBytes);
      for (const Lines* lines : {&k, &v})
        EXPECT_EQ(
            std::count_if(lines->count.begin(), lines->count.begin() + before, [](int count) { return count > 0; }), 0)
            << step.name(GetParam()) << ", window " << window;
    }
}

// Nor behind a ring that goes round within a block.
TEST_P(Prefetching, NothingBehindARingIsFetched) {
  const WithStreaming in_use(detail::Streaming::prefetched);
  constexpr Index window = 20;
  for (const Index heads : {1, 4})
    for (const Index group : {1, 4, 10})
      for (const Index tokens : {44, 49, 100, 901})
        for (const Index capacity : {26, 38, 68}) {
          const Step step{ElementType::f32, group, 64, 64, tokens, heads, 0, capacity};
          const auto [k, v] = lines_fetched(GetParam(), step, CausalWindow{window});
          SCOPED_TRACE(step.name(GetParam()) + ", capacity " + std::to_string(capacity));
          EXPECT_EQ(fetched_behind(k, capacity * step.k_stride()), 0);
          EXPECT_EQ(fetched_behind(v, capacity * step.v_stride()), 0);
        }
}

// Several KV heads whose rows of a token lie side by side, with nothing or another head's row between one token's and the next one's.
TEST_P(Prefetching, EveryRowOfHeadsSideBySideIsFetched) {
  const WithStreaming in_use(detail::Streaming::prefetched);
  const std::pair<Index, Index> shapes[] = {{64, 20}, {128, 2}, {128, 3}, {128, 8}, {256, 3}};
  for (const ElementType type : {ElementType::f32, ElementType::bf16})
    for (const auto& [dim, heads] : shapes)
      for (const Index gap : {0, 1})
        for (const Index group : {1, 4, 5, 7, 12, 16, 20})
          for (const Index tokens : {640, 256, 180}) {
            const Step step{type, group, dim, dim, tokens, heads, gap};
            const auto [k, v] = lines_fetched(GetParam(), step);
            SCOPED_TRACE(step.name(GetParam()));
            const Count of_keys = count_tokens(k, detail::kBlock, tokens, step.k_stride(), step.k_bytes());
            const Count of_values = count_tokens(v, 0, tokens, step.v_stride(), step.v_bytes());
            EXPECT_EQ(of_keys.missed, 0);
            EXPECT_EQ(of_values.missed, 0);
            EXPECT_LE(std::max(of_keys.most, of_values.most), 4);
            EXPECT_EQ(fetched_behind(k, tokens * step.k_stride()), 0);
            EXPECT_EQ(fetched_behind(v, tokens * step.v_stride()), 0);
          }
}

std::vector<Path> paths_that_count() {  // tiles have their own way
  std::vector<Path> paths;
  for (const Path path : available_paths())
    if (path != Path::amx) paths.push_back(path);
  return paths;
}
INSTANTIATE_TEST_SUITE_P(EveryPath, Prefetching, testing::ValuesIn(paths_that_count()),
                         [](const auto& each) { return std::string(path_name(each.param)); });

}  // namespace
}  // namespace gqa::test
