// SPDX-License-Identifier: Apache-2.0
// Rows to append to owning caches, and reading them back through the view by the formula of its documentation.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "gqa/kv_cache.hpp"
#include "support/random.hpp"
#include "support/row_address.hpp"
#include "support/tensors.hpp"

namespace gqa::test {

/// Heads and widths of a test's caches.
struct KvDims {
  Index kv_heads = 3;
  Index head_dim = 5;
  Index value_dim = 4;
};

inline constexpr ElementType kTypes[] = {ElementType::f32, ElementType::bf16, ElementType::f16};
inline constexpr KvLayout kLayouts[] = {KvLayout::head_major, KvLayout::token_major};
inline constexpr KvDims kDims;

inline KvCacheConfig config(Index capacity, ElementType k_type = ElementType::f32,
                            ElementType v_type = ElementType::f32, KvLayout layout = KvLayout::head_major,
                            const KvDims& dims = kDims) {
  return {.kv_heads = dims.kv_heads,
          .head_dim = dims.head_dim,
          .value_dim = dims.value_dim,
          .k_type = k_type,
          .v_type = v_type,
          .capacity = capacity,
          .layout = layout};
}

inline std::string types_and_layout(ElementType k, ElementType v, KvLayout layout) {
  return std::string(element_name(k)) + " keys, " + element_name(v) + " values, " +
         (layout == KvLayout::head_major ? "head-major" : "token-major");
}

inline constexpr Index kPageSizes[] = {1, 7, 16, 64, 1000};

inline KvPoolConfig pool_config(Index page_size, Index pages, ElementType k_type = ElementType::f32,
                                ElementType v_type = ElementType::f32, KvLayout layout = KvLayout::head_major,
                                const KvDims& dims = kDims) {
  return {.kv_heads = dims.kv_heads,
          .head_dim = dims.head_dim,
          .value_dim = dims.value_dim,
          .k_type = k_type,
          .v_type = v_type,
          .page_size = page_size,
          .pages = pages,
          .layout = layout};
}

inline std::vector<std::int32_t> pages_of(const PagedSequence& sequence) {
  return {sequence.pages().begin(), sequence.pages().end()};
}

/// Keys and values of a sequence, from position 0 on.
struct KvNumbers {
  Numbers k;
  Numbers v;
  KvNumbers(Index tokens, const KvDims& dims, std::uint64_t seed)
      : k(tokens, dims.kv_heads, dims.head_dim), v(tokens, dims.kv_heads, dims.value_dim) {
    Random random(seed);
    for (float& x : k.values) x = random.normal();
    for (float& x : v.values) x = random.normal();
  }
};

/// The same in memory, in any types and layout.
struct KvSource {
  Tensor k;
  Tensor v;
  KvSource(const KvNumbers& numbers, ElementType k_type, ElementType v_type, TensorLayout layout = TensorLayout::packed)
      : k(numbers.k, k_type, layout), v(numbers.v, v_type, layout) {}
  explicit KvSource(const KvNumbers& numbers) : KvSource(numbers, ElementType::f32, ElementType::f32) {}

  template <class Cache>
  void append_to(Cache& cache, Index first, Index count) const {
    cache.append(k.const_view().slice(first, count), v.const_view().slice(first, count));
  }
};

inline const std::byte* stored_row(const KvCacheView& view, bool key, Index position, Index head) {
  return row_address(view, key ? view.k : view.v, key ? view.k_type : view.v_type,
                     key ? view.k_strides : view.v_strides, position, head);
}

inline float stored(const KvCacheView& view, bool key, Index position, Index head, Index d) {
  const ElementType type = key ? view.k_type : view.v_type;
  return read_element(stored_row(view, key, position, head) + d * element_bytes(type), type);
}

/// Positions [first, length) of the view are those of the source, rounded to the stored types.
inline testing::AssertionResult holds(const KvCacheView& view, const KvSource& source, Index first, Index length) {
  if (view.length != length) return testing::AssertionFailure() << "length is " << view.length << ", not " << length;
  for (const bool key : {true, false}) {
    const Tensor& from = key ? source.k : source.v;
    const ElementType type = key ? view.k_type : view.v_type;
    for (Index position = first; position < length; ++position)
      for (Index head = 0; head < view.kv_heads; ++head)
        for (Index d = 0; d < (key ? view.head_dim : view.value_dim); ++d) {
          const float expected = rounded_to(type, from.at(position, head, d));
          const float found = stored(view, key, position, head, d);
          if (expected != found)
            return testing::AssertionFailure() << (key ? "k" : "v") << " of position " << position << ", head " << head
                                               << ", dim " << d << " is " << found << ", not " << expected;
        }
  }
  return testing::AssertionSuccess();
}
inline testing::AssertionResult holds(const KvCacheView& view, const KvSource& source, Index length) {
  return holds(view, source, 0, length);
}

/// What both hold of their tokens has the same bits.
inline testing::AssertionResult same_rows(const KvCacheView& a, const KvCacheView& b) {
  if (a.length != b.length) return testing::AssertionFailure() << "lengths " << a.length << " and " << b.length;
  for (const bool key : {true, false})
    for (Index position = std::max(a.first_position(), b.first_position()); position < a.length; ++position)
      for (Index head = 0; head < a.kv_heads; ++head) {
        const Index bytes = key ? a.k_type.row_bytes(a.head_dim) : a.v_type.row_bytes(a.value_dim);
        if (std::memcmp(stored_row(a, key, position, head), stored_row(b, key, position, head),
                        static_cast<std::size_t>(bytes)) != 0)
          return testing::AssertionFailure() << (key ? "k" : "v") << " of position " << position << ", head " << head;
      }
  return testing::AssertionSuccess();
}

/// A hook that writes down its calls (position, token, head, dim), and adds a number to elements.
struct Adder {
  float added;
  std::vector<std::vector<Index>>* calls;
  void change(const KeyRow& row) const noexcept {
    calls->push_back({row.position, row.token, row.head, row.dim});
    for (Index d = 0; d < row.dim; ++d) row.elements[d] += added;
  }
};

/// Everything of a sequence and its pool that a failed call must leave alone.
struct Snapshot {
  Index length;
  Index free_pages;
  std::vector<std::int32_t> pages;
  std::vector<std::int32_t> references;
  const void* table;
  Snapshot(const PagedKvPool& pool, const PagedSequence& sequence)
      : length(sequence.length()),
        free_pages(pool.free_pages()),
        pages(pages_of(sequence)),
        table(sequence.view().page_table) {
    for (Index page = 0; page < pool.pages(); ++page)
      references.push_back(static_cast<std::int32_t>(pool.reference_count(page)));
  }
  bool operator==(const Snapshot&) const = default;
};

/// Runs `call`, which must throw exactly E, and returns the message.
template <class E, class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace gqa::test
