// SPDX-License-Identifier: Apache-2.0
// A call that is right until a test spoils it.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "executors.hpp"
#include "one_call.hpp"

namespace gqa::test {

inline constexpr Index kHuge = std::numeric_limits<Index>::max();

struct SpoiltCall : OneCall {
  StoredCaches paged = store_cache(problem.kv, ElementType::f32, paged_place(8));
  StoredCaches ring = store_cache(problem.kv, ElementType::f32, ring_place(10));
  Options options;
  std::vector<std::int32_t> table;
  std::vector<std::byte> scratch;
  CountingExecutor executor;
  std::vector<Index> positions;

  SpoiltCall() : OneCall({4, 2, 16, 24, 3, 20}, Types{}, {}, 221) {}

  void use_paged() { sequence.kv = paged.view(); }
  void use_ring() { sequence.kv = ring.view(); }
  /// Page `page` of the table becomes `physical`.
  void set_page(std::size_t page, std::int32_t physical) {
    use_paged();
    table.assign(sequence.kv.page_table, sequence.kv.page_table + sequence.kv.page_table_size);
    table[page] = physical;
    sequence.kv.page_table = table.data();
  }
};

inline std::string number(Index value) { return std::to_string(value); }

}  // namespace gqa::test
