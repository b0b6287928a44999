// SPDX-License-Identifier: Apache-2.0
/// @file
/// A number for each (sequence, query head, query token, key position), of which any may be left out: masks and biases as frameworks have them.
#pragma once

#include "gqa/detail/checked.hpp"
#include "gqa/error.hpp"
#include "gqa/expression.hpp"

namespace gqa {

/// Distances in elements, along each of (sequence, query head, query token, key).
struct BroadcastStrides {
  Index sequence = 0;
  Index head = 0;
  Index query = 0;
  Index key = 1;
};

/// Elements (sequence, query head, query token, key) of the caller's. An extent of 1 stands for all sequences, heads or query tokens. Strides
/// count elements. Element (s, h, i, t) is data[s · strides.sequence + h · strides.head + i · strides.query + t · strides.key].
template <class T>
struct BroadcastView {
  using Strides = BroadcastStrides;
  const T* data = nullptr;
  Index sequences = 1;
  Index heads = 1;
  Index queries = 1;
  Index keys = 0;  ///< as many as the cache is long, or more
  Strides strides{};

  BroadcastView() = default;
  /// Packed elements (sequence, head, query, key), as a contiguous tensor has them.
  GQA_ALWAYS_INLINE constexpr BroadcastView(const T* first, Index sequence_count, Index head_count, Index query_count,
                                            Index key_count) noexcept
      : data(first),
        sequences(sequence_count),
        heads(head_count),
        queries(query_count),
        keys(key_count),
        strides{detail::product(head_count, query_count, key_count), detail::product(query_count, key_count), key_count,
                1} {}
  /// Elements with any strides.
  GQA_ALWAYS_INLINE constexpr BroadcastView(const T* first, Index sequence_count, Index head_count, Index query_count,
                                            Index key_count, Strides steps) noexcept
      : data(first),
        sequences(sequence_count),
        heads(head_count),
        queries(query_count),
        keys(key_count),
        strides(steps) {}

  /// Where the keys of a query row begin.
  GQA_ALWAYS_INLINE constexpr const T* row(const RowContext& at) const noexcept {
    return data + (sequences == 1 ? 0 : at.sequence * strides.sequence) +
           (heads == 1 ? 0 : at.query_head * strides.head) + (queries == 1 ? 0 : at.query * strides.query);
  }

  /// Fails if the view does not fit a sequence. `name`: the member that it is, with its dot.
  GQA_ALWAYS_INLINE void check(const char* name, const SequenceContext& sequence) const {
    const auto given = [&](const char* member) { return detail::Text("variant.") + name + "." + member; };
    if (data == nullptr && sequence.queries > 0 && sequence.kv_length > 0)  // else there are no elements
      detail::fail(given("data"), "null", "a pointer to the elements");
    if (sequences != 1 && sequence.sequence >= sequences)
      detail::fail(given("sequences"), sequences,
                   "1, or the sequences of the batch, " + detail::to_text(sequence.sequence + 1) + " at least");
    if (heads != 1 && heads != sequence.query_heads)
      detail::fail(given("heads"), heads, "1, or the query heads, " + detail::to_text(sequence.query_heads));
    if (queries != 1 && queries != sequence.queries)
      detail::fail(given("queries"), queries, "1, or q.tokens = " + detail::to_text(sequence.queries));
    if (keys < sequence.kv_length)
      detail::fail(given("keys"), keys, "kv.length = " + detail::to_text(sequence.kv_length) + " or more");
    const auto check_stride = [&](const char* member, Index steps, Index stride) {
      constexpr Index most = Index{1} << 48;
      const detail::Checked offset = detail::Checked(steps) * stride;
      if (!offset.at_most(most) || offset.value() < -most)
        detail::fail(given(member), stride, "a stride whose offsets fit in 48 bits");
    };
    if (sequences != 1) check_stride("strides.sequence", sequence.sequence, strides.sequence);
    check_stride("strides.head", heads - 1, strides.head);
    check_stride("strides.query", queries - 1, strides.query);
    check_stride("strides.key", sequence.kv_length + 63, strides.key);  // masks look at whole blocks
  }
};

}  // namespace gqa
