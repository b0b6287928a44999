// SPDX-License-Identifier: Apache-2.0
/// @file
/// The library's masks, chosen at run time: what a query sees, behind virtual functions that are called once a query token, or once a row and block.
#pragma once

#include <gqa/variants.hpp>
#include <memory>

#include "arrays.hpp"

namespace gqa::python {

/// A mask, with what it refers to. `two_ranges`: what it lets be seen are two ranges, not one.
struct Mask {
  bool two_ranges = false;
  bool has_bits = false;
  Mask() = default;
  Mask(const Mask&) = delete;
  Mask& operator=(const Mask&) = delete;
  virtual ~Mask() = default;
  virtual void check(const SequenceContext& sequence) const = 0;
  /// ranges[0], and ranges[1] where two_ranges says so.
  virtual void ranges(const QueryContext& query, Index kv_length, PositionRange* ranges) const = 0;
  virtual std::uint64_t bits(const RowContext& row, Index block_begin) const = 0;
};

/// One of the library's. `Kept`: what its spans refer to.
template <class V, class Kept = int>
struct MaskOf : Mask {
  Kept kept;
  V variant;

  template <class Make>
  MaskOf(Kept what, const Make& make) : kept(std::move(what)), variant(make(kept)) {
    has_bits = requires(RowContext row) { variant.visible_bits(row, Index{}); };
    two_ranges = std::is_same_v<decltype(seen({}, 0)), std::array<PositionRange, 2>>;
  }
  auto seen(const QueryContext& query, Index kv_length) const {
    if constexpr (requires { variant.visible_range(query, kv_length); }) return variant.visible_range(query, kv_length);
    else return variant.visible_range(query.position, kv_length);
  }
  void check([[maybe_unused]] const SequenceContext& sequence) const override {
    if constexpr (requires { variant.check(); }) variant.check();
    if constexpr (requires { variant.check(sequence); }) variant.check(sequence);
  }
  void ranges(const QueryContext& query, Index kv_length, PositionRange* ranges) const override {
    const auto all = seen(query, kv_length);
    if constexpr (std::is_same_v<std::remove_cv_t<decltype(all)>, PositionRange>) *ranges = all;
    else ranges[0] = all[0], ranges[1] = all[1];
  }
  std::uint64_t bits([[maybe_unused]] const RowContext& row, [[maybe_unused]] Index block_begin) const override {
    if constexpr (requires { variant.visible_bits(row, block_begin); }) return variant.visible_bits(row, block_begin);
    else return ~std::uint64_t{0};
  }
};

template <class V>
std::shared_ptr<const Mask> mask_of(const V& variant) {
  return std::make_shared<MaskOf<V>>(0, [&](int) { return variant; });
}
template <class V, class Kept, class Make>
std::shared_ptr<const Mask> mask_over(Kept kept, const Make& make) {
  return std::make_shared<MaskOf<V, Kept>>(std::move(kept), make);
}

/// Another mask for each sequence of a batch.
struct MaskOfEach : Mask {
  std::vector<std::shared_ptr<const Mask>> of_sequence;

  explicit MaskOfEach(std::vector<std::shared_ptr<const Mask>> masks) : of_sequence(std::move(masks)) {
    has_bits = true;
  }
  const Mask& at(const QueryContext& query) const { return *of_sequence[static_cast<std::size_t>(query.sequence)]; }
  void check(const SequenceContext& sequence) const override {
    if (sequence.sequence >= static_cast<Index>(of_sequence.size()))
      fail("len(masks)", std::to_string(of_sequence.size()),
           "one for each sequence, " + std::to_string(sequence.sequence + 1) + " at least");
    SequenceContext alone = sequence;
    alone.sequence = 0;
    of_sequence[static_cast<std::size_t>(sequence.sequence)]->check(alone);
  }
  void ranges(const QueryContext& query, Index kv_length, PositionRange* ranges) const override {
    QueryContext alone = query;
    alone.sequence = 0;
    at(query).ranges(alone, kv_length, ranges);
  }
  std::uint64_t bits(const RowContext& row, Index block_begin) const override {
    RowContext alone = row;
    alone.sequence = 0;
    return at(row).bits(alone, block_begin);
  }
};

}  // namespace gqa::python
