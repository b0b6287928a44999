// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rotary position embeddings (RoFormer, Su et al. 2021): queries and keys are turned by their positions before they meet.
#pragma once

#include <span>
#include <vector>

#include "gqa/detail/rope_frequencies.hpp"
#include "gqa/detail/rope_rows.hpp"

namespace gqa {

/// Turns rows of queries and of keys by their positions: pair i of a row by position · frequency(i), in f32 from sines and cosines that were
/// computed in double precision. Keys are turned once, as they go into a cache: `append` of what this returned. Cached keys can be moved by a
/// number of positions where they are (shift), which is how a context is shortened in its middle.
///
/// Thread safe once made, for rows that no two threads share. Element types f32, bf16 and f16: a row is widened, turned and rounded once.
class Rope {
 public:
  /// Sines and cosines of the positions [0, positions).
  /// @throws ArgumentError if an option is not as RopeOptions says, or positions < 0
  GQA_ALWAYS_INLINE Rope(const RopeOptions& options, Index positions) : options_(options) {
    if (positions < 0 || positions > (Index{1} << 32)) detail::fail("positions", positions, "0 to 2^32");
    detail::check_rope(options);
    frequencies_.resize(static_cast<std::size_t>(options.dims / 2));
    detail::fill_frequencies(options, frequencies_);
    factor_ = detail::attention_factor(options);
    table_.resize(static_cast<std::size_t>(positions * options.dims));
    detail::fill_turns(frequencies_, 0, positions, factor_, table_.data());
  }

  /// Rows of consecutive positions, of `first_position` and on, in place.
  /// @param rows  tokens × heads × dim, dim stride 1, dim at least the turned dims
  /// @throws ArgumentError if a position is not in the table, or rows are too narrow
  GQA_ALWAYS_INLINE void operator()(const TensorView& rows, Index first_position) const {
    check(rows);
    if (first_position < 0 || first_position > positions() - rows.tokens)
      detail::fail("first_position", first_position,
                   "0 to " + detail::to_text(positions() - rows.tokens) + ", as the table has " +
                       detail::to_text(positions()) + " positions");
    for (Index token = 0; token < rows.tokens; ++token)
      detail::turn_token(rows, token, turns_at(first_position + token), options_.dims, options_.pairs);
  }

  /// Rows of given positions, in place. With several axes (RopeOptions::sections) positions are axes × tokens: those of the first axis, then those
  /// of the next.
  /// @throws ArgumentError if a position is not in the table, or there are more or fewer of them
  GQA_ALWAYS_INLINE void operator()(const TensorView& rows, std::span<const Index> of_tokens) const {
    check(rows);
    const Index axes = options_.axes();
    if (static_cast<Index>(of_tokens.size()) != axes * rows.tokens)
      detail::fail("positions.size()", static_cast<Index>(of_tokens.size()),
                   "axes * rows.tokens = " + detail::to_text(axes * rows.tokens));
    for (std::size_t i = 0; i < of_tokens.size(); ++i) {
      if (of_tokens[i] < 0 || of_tokens[i] >= positions())
        detail::fail("positions[" + detail::to_text(i) + "]", of_tokens[i],
                     "0 to " + detail::to_text(positions() - 1) + ", the positions of the table");
    }
    std::vector<float> mixed(axes > 1 ? static_cast<std::size_t>(options_.dims) : 0);
    for (Index token = 0; token < rows.tokens; ++token) {
      const float* turns = turns_at(of_tokens[static_cast<std::size_t>(token)]);
      if (axes > 1) turns = mix_axes(of_tokens, token, rows.tokens, mixed);
      detail::turn_token(rows, token, turns, options_.dims, options_.pairs);
    }
  }

  /// Rows that have been turned for some position, moved by `by` positions, in place: keys of a cache whose tokens before them have gone.
  /// @throws ArgumentError if rows are too narrow, or `by` is not −2^32 to 2^32
  GQA_ALWAYS_INLINE void shift(const TensorView& rows, Index by) const {
    check(rows);
    if (by < -(Index{1} << 32) || by > (Index{1} << 32)) detail::fail("by", by, "-2^32 to 2^32 positions");
    std::vector<float> turns(static_cast<std::size_t>(options_.dims));
    detail::fill_turns(frequencies_, by, 1, 1.0, turns.data());
    for (Index token = 0; token < rows.tokens; ++token)
      detail::turn_token(rows, token, turns.data(), options_.dims, options_.pairs);
  }

  GQA_ALWAYS_INLINE Index positions() const noexcept {
    return options_.dims == 0 ? Index{1} << 32 : static_cast<Index>(table_.size()) / options_.dims;
  }
  /// Radians a position of each pair, dims / 2 of them.
  GQA_ALWAYS_INLINE std::span<const double> frequencies() const noexcept { return frequencies_; }
  /// What sines and cosines are multiplied by (YaRN, LongRoPE), or 1.
  GQA_ALWAYS_INLINE double attention_factor() const noexcept { return factor_; }
  GQA_ALWAYS_INLINE const RopeOptions& options() const noexcept { return options_; }

 private:
  GQA_ALWAYS_INLINE void check(const TensorView& rows) const {
    detail::check_tensor({}, detail::kRowsNames, rows);
    if (rows.dim < options_.dims)
      detail::fail("rows.dim", rows.dim, "options.dims = " + detail::to_text(options_.dims) + " or more");
    if (rows.strides.dim != 1) detail::fail("rows.strides.dim", rows.strides.dim, "1");
  }
  /// Cosines of the pairs, then sines.
  GQA_ALWAYS_INLINE const float* turns_at(Index position) const noexcept {
    return table_.data() + position * options_.dims;
  }
  GQA_ALWAYS_INLINE const float* mix_axes(std::span<const Index> of_tokens, Index token, Index tokens,
                                          std::vector<float>& mixed) const noexcept {
    const Index half = options_.dims / 2;
    Index pair = 0;
    for (Index axis = 0; axis < options_.axes(); ++axis) {
      const float* const turns = turns_at(of_tokens[static_cast<std::size_t>(axis * tokens + token)]);
      for (Index i = 0; i < options_.sections[static_cast<std::size_t>(axis)]; ++i, ++pair) {
        mixed[static_cast<std::size_t>(pair)] = turns[pair];
        mixed[static_cast<std::size_t>(half + pair)] = turns[half + pair];
      }
    }
    return mixed.data();
  }

  RopeOptions options_;
  std::vector<double> frequencies_{};
  std::vector<float> table_{};  // [position][cosines, sines]
  double factor_ = 1.0;
};

}  // namespace gqa
