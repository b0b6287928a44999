// SPDX-License-Identifier: Apache-2.0
// Thousands of random calls on sequences that share pages, beside a model: tokens appended, kept, erased, keys changed, forks.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "gqa/kv_cache.hpp"
#include "support/owned_caches.hpp"

namespace gqa::test {
namespace {

// A model's sequence is the list of the keys and values that it holds.
TEST(PagedKeep, AgreesWithAModelOverRandomCalls) {
  struct Modelled {
    PagedSequence sequence;
    std::vector<float> keys;
    std::vector<float> values;
  };
  Index exhausted = 0, copied = 0;
  for (const Index page_size : {1, 3, 16}) {
    constexpr Index kPages = 24;
    PagedKvPool pool({.kv_heads = 2, .head_dim = 2, .value_dim = 1, .page_size = page_size, .pages = kPages});
    Random random(static_cast<std::uint64_t>(page_size) + 327);
    std::vector<Modelled> all(5);
    for (Modelled& m : all) m.sequence = pool.sequence();
    float next = 0.0f;
    std::vector<std::vector<Index>> calls;
    for (int step = 0; step < 4000; ++step) {
      SCOPED_TRACE("page size " + std::to_string(page_size) + ", step " + std::to_string(step));
      Modelled& m = all[static_cast<std::size_t>(random.below(5))];
      const auto length = static_cast<Index>(m.keys.size());
      const Snapshot before(pool, m.sequence);
      const Index first = random.below(length + 1);
      const Index last = first + random.below(length - first + 1);
      try {
        switch (random.below(6)) {
          default: {
            const Index count = 1 + random.below(2 * page_size + 1);
            std::vector<float> keys, values, k, v;
            for (Index i = 0; i < count; ++i) {
              next += 1.0f;
              keys.push_back(next);
              values.push_back(-next);
              k.insert(k.end(), {next, next, next + 0.5f, next + 0.5f});
              v.insert(v.end(), {-next, -next});
            }
            m.sequence.append(k, v);
            m.keys.insert(m.keys.end(), keys.begin(), keys.end());
            m.values.insert(m.values.end(), values.begin(), values.end());
            break;
          }
          case 0: {
            std::vector<Index> tokens;
            for (Index i = 0; i < length - first; ++i)
              if (random.below(3) != 0) tokens.push_back(i);
            m.sequence.keep(first, tokens);
            for (std::size_t i = 0; i < tokens.size(); ++i)
              for (auto* list : {&m.keys, &m.values})
                (*list)[static_cast<std::size_t>(first) + i] = (*list)[static_cast<std::size_t>(first + tokens[i])];
            for (auto* list : {&m.keys, &m.values}) list->resize(static_cast<std::size_t>(first) + tokens.size());
            break;
          }
          case 1:
            m.sequence.erase(first, last);
            for (auto* list : {&m.keys, &m.values}) list->erase(list->begin() + first, list->begin() + last);
            break;
          case 2:
            m.sequence.change_keys(first, last, Adder{0.125f, &calls});
            for (Index i = first; i < last; ++i) m.keys[static_cast<std::size_t>(i)] += 0.125f;
            copied += before.free_pages - pool.free_pages();
            break;
          case 3: {
            Modelled& target = all[static_cast<std::size_t>(random.below(5))];
            std::vector<float> keys(m.keys.begin(), m.keys.begin() + last);
            std::vector<float> values(m.values.begin(), m.values.begin() + last);
            target.sequence = m.sequence.fork(last);
            target.keys = std::move(keys);
            target.values = std::move(values);
            break;
          }
        }
      } catch (const StorageExhausted&) {
        ++exhausted;
        ASSERT_EQ(Snapshot(pool, m.sequence), before);
      }
      std::vector<Index> uses(kPages);
      for (const Modelled& one : all)
        for (const std::int32_t page : one.sequence.pages()) ++uses[static_cast<std::size_t>(page)];
      for (Index page = 0; page < kPages; ++page)
        ASSERT_EQ(pool.reference_count(page), uses[static_cast<std::size_t>(page)]);
      ASSERT_EQ(pool.free_pages(), std::count(uses.begin(), uses.end(), Index{0}));
      for (const Modelled& one : all) {
        const KvCacheView view = one.sequence.view();
        ASSERT_EQ(view.length, static_cast<Index>(one.keys.size()));
        for (std::size_t p = 0; p < one.keys.size(); ++p) {
          const auto position = static_cast<Index>(p);
          ASSERT_EQ(stored(view, true, position, 0, 1), one.keys[p]) << position;
          ASSERT_EQ(stored(view, true, position, 1, 0), one.keys[p] + 0.5f) << position;
          ASSERT_EQ(stored(view, false, position, 1, 0), one.values[p]) << position;
        }
      }
    }
  }
  EXPECT_GT(exhausted, 50);
  EXPECT_GT(copied, 50);
}

}  // namespace
}  // namespace gqa::test
