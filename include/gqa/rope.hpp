// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rotary position embeddings (RoFormer, Su et al. 2021): queries and keys are turned by their positions before they meet.
///
///     const gqa::Rope rope({.dims = 128, .base = 500000.0}, 131072);
///     rope(q, cache.length());             // queries, in place
///     cache.append(k, v, rope.keys());     // keys, on their way into a cache
///
/// A context shift: tokens [a, b) go, and those behind them take their positions.
///
///     cache.erase(a, b);
///     cache.change_keys(a, cache.length(), rope.shift(a - b));
#pragma once

#include <span>

#include "gqa/detail/float_environment.hpp"
#include "gqa/detail/kv_buffer.hpp"
#include "gqa/detail/rope_frequencies.hpp"
#include "gqa/detail/rope_rows.hpp"
#include "gqa/key_hook.hpp"

namespace gqa {

class RopeKeys;
class RopeShift;

/// Turns rows of queries and of keys by their positions: pair i of a row by position · frequency(i), in f32 from sines and cosines that were
/// computed in double precision. Those, their products, and sums of two are each rounded to f32, the same on every path. Keys are turned once,
/// as they go into a cache: append with the hook keys(). Cached keys can be moved by a number of positions where they are, with the hook
/// shift(), which is how a context is shortened in its middle.
///
/// Thread safe once made, for rows that no two threads share. Element types f32, bf16 and f16: a row is widened, turned, and rounded to its
/// type. A copy has a table of its own; one that has been moved from refuses every row.
class Rope {
 public:
  /// Sines and cosines of the positions [0, positions).
  /// @throws ArgumentError if an option is not as RopeOptions says, or positions < 0; StorageExhausted if there is no memory for them
  GQA_ALWAYS_INLINE Rope(const RopeOptions& options, Index positions) : options_(options) {
    if (positions < 0 || positions > (Index{1} << 32)) detail::fail("positions", positions, "0 to 2^32");
    detail::check_rope(options);
    constexpr const char* what = "rotary embeddings";
    frequencies_ = detail::CopiedBuffer(options.dims / 2 * static_cast<Index>(sizeof(double)), what);
    detail::fill_frequencies(options, {frequencies_.as<double>(), static_cast<std::size_t>(options.dims / 2)});
    factor_ = detail::attention_factor(options);
    table_ = detail::CopiedBuffer(positions * options.dims * static_cast<Index>(sizeof(float)), what);
    detail::fill_turns(frequencies(), 0, positions, factor_, table_.as<float>());
  }
  GQA_ALWAYS_INLINE Rope(const Rope& other)
      : options_(other.options_), frequencies_(other.frequencies_), table_(other.table_), factor_(other.factor_) {}
  GQA_ALWAYS_INLINE Rope(Rope&& other) noexcept
      : options_(other.options_),
        frequencies_(static_cast<detail::CopiedBuffer&&>(other.frequencies_)),
        table_(static_cast<detail::CopiedBuffer&&>(other.table_)),
        factor_(other.factor_) {}
  GQA_ALWAYS_INLINE Rope& operator=(const Rope& other) {
    if (this != &other) *this = Rope(other);
    return *this;
  }
  GQA_ALWAYS_INLINE Rope& operator=(Rope&& other) noexcept {
    options_ = other.options_;
    frequencies_ = static_cast<detail::CopiedBuffer&&>(other.frequencies_);
    table_ = static_cast<detail::CopiedBuffer&&>(other.table_);
    factor_ = other.factor_;
    return *this;
  }
  GQA_ALWAYS_INLINE ~Rope() {}

  /// Rows of consecutive positions, of `first_position` and on, in place.
  /// @param rows  tokens × heads × dim, dim stride 1, dim at least the turned dims
  /// @throws ArgumentError if a position is not in the table, or rows are too narrow
  GQA_ALWAYS_INLINE void operator()(const TensorView& rows, Index first_position) const {
    check(rows);
    if (first_position < 0 || first_position > positions() - rows.tokens)
      detail::fail("first_position", first_position,
                   "0 to " + detail::to_text(positions() - rows.tokens) + ", as the table has " +
                       detail::to_text(positions()) + " positions");
    const detail::FloatEnvironment environment;
    for (Index token = 0; token < rows.tokens; ++token)
      detail::turn_token(rows, token, turns_at(first_position + token), options_);
  }

  /// Rows of given positions, in place. With several axes (RopeOptions::sections) positions are axes × tokens: those of the first axis, then those
  /// of the next.
  /// @throws ArgumentError if a position is not in the table, or there are more or fewer of them
  GQA_ALWAYS_INLINE void operator()(const TensorView& rows, std::span<const Index> of_tokens) const {
    check(rows);
    check(of_tokens, "rows.tokens", rows.tokens);
    const detail::FloatEnvironment environment;
    for (Index token = 0; token < rows.tokens; ++token)
      detail::turn_token(rows, token, turns_at(of_tokens, token), options_);
  }

  /// Rows that have been turned for some position, moved by `by` positions, in place.
  /// @throws ArgumentError if rows are too narrow, or `by` is not −2^32 to 2^32
  GQA_ALWAYS_INLINE void shift(const TensorView& rows, Index by) const;

  /// A hook for append: each key is turned by its token's position in the cache, on all axes if there are several.
  GQA_ALWAYS_INLINE RopeKeys keys() const noexcept;
  /// A hook for append: each key is turned by a given position, such as a draft's depth in its tree, or an image's rows and columns.
  /// @param of_tokens  axes × the tokens of the append, as for operator(); the hook refers to them
  GQA_ALWAYS_INLINE RopeKeys keys(std::span<const Index> of_tokens) const noexcept;
  /// A hook for change_keys: keys that have been turned for some position, moved by `by` positions, on all axes if there are several. Its
  /// sines and cosines are computed here.
  /// @throws ArgumentError if `by` is not −2^32 to 2^32
  GQA_ALWAYS_INLINE RopeShift shift(Index by) const;

  /// Positions of the table; none, if it has been moved from.
  GQA_ALWAYS_INLINE Index positions() const noexcept {
    if (options_.dims == 0) return Index{1} << 32;
    return table_.bytes() / (options_.dims * static_cast<Index>(sizeof(float)));
  }
  /// Radians a position of each pair, dims / 2 of them.
  GQA_ALWAYS_INLINE std::span<const double> frequencies() const noexcept {
    return {frequencies_.as<const double>(), static_cast<std::size_t>(frequencies_.bytes()) / sizeof(double)};
  }
  /// What sines and cosines are multiplied by (YaRN, LongRoPE), or 1.
  GQA_ALWAYS_INLINE double attention_factor() const noexcept { return factor_; }
  GQA_ALWAYS_INLINE const RopeOptions& options() const noexcept { return options_; }

 private:
  friend class RopeKeys;

  GQA_ALWAYS_INLINE void check(const TensorView& rows) const {
    detail::check_tensor({}, detail::kRowsNames, rows);
    if (rows.dim < options_.dims)
      detail::fail("rows.dim", rows.dim, "options.dims = " + detail::to_text(options_.dims) + " or more");
    if (rows.strides.dim != 1) detail::fail("rows.strides.dim", rows.strides.dim, "1");
  }
  GQA_ALWAYS_INLINE void check(std::span<const Index> of_tokens, const char* what, Index tokens) const {
    const Index axes = options_.axes();
    if (static_cast<Index>(of_tokens.size()) != axes * tokens)
      detail::fail("positions.size()", static_cast<Index>(of_tokens.size()),
                   detail::Text("axes * ") + what + " = " + detail::to_text(axes * tokens));
    for (std::size_t i = 0; i < of_tokens.size(); ++i) {
      if (of_tokens[i] < 0 || of_tokens[i] >= positions())
        detail::fail("positions[" + detail::to_text(i) + "]", of_tokens[i],
                     "0 to " + detail::to_text(positions() - 1) + ", the positions of the table");
    }
  }
  GQA_ALWAYS_INLINE const float* table() const noexcept { return table_.as<const float>(); }
  /// Cosines of the pairs, then sines: the same on every axis, or those of each.
  GQA_ALWAYS_INLINE detail::TokenTurns turns_at(Index position) const noexcept {
    const float* const turns = table() + position * options_.dims;
    return {{turns, turns, turns, turns}};
  }
  GQA_ALWAYS_INLINE detail::TokenTurns turns_at(std::span<const Index> of_tokens, Index token) const noexcept {
    const std::size_t axes = static_cast<std::size_t>(options_.axes());
    const std::size_t tokens = of_tokens.size() / axes;
    detail::TokenTurns turns{};
    for (std::size_t axis = 0; axis < axes; ++axis)
      turns.of_axis[axis] = table() + of_tokens[axis * tokens + static_cast<std::size_t>(token)] * options_.dims;
    return turns;
  }

  RopeOptions options_;
  detail::CopiedBuffer frequencies_{};
  detail::CopiedBuffer table_{};  // [position][cosines, sines]
  double factor_ = 1.0;
};

namespace detail::inline GQA_ABI {

inline void check_turned_dims(const RopeOptions& options, const KeyRows& rows) {
  if (rows.dim < options.dims) fail("k.dim", rows.dim, "the rope's dims = " + to_text(options.dims) + " or more");
}

}  // namespace detail::inline GQA_ABI

/// Turns keys by their positions as they are appended: Rope::keys(). Refers to its Rope, and to the positions if they were given.
///
/// An append of more tokens than the rope's table has positions for, of rows that are narrower than the turned dims, or with more or fewer
/// positions than it has tokens throws ArgumentError.
class RopeKeys {
 public:
  GQA_ALWAYS_INLINE void change(const KeyRow& row) const noexcept {
    detail::turn_row(row.elements, given_ ? rope_->turns_at(of_tokens_, row.token) : rope_->turns_at(row.position),
                     rope_->options());
  }
  GQA_ALWAYS_INLINE void check(const KeyRows& rows) const {
    detail::check_turned_dims(rope_->options(), rows);
    if (given_) return rope_->check(of_tokens_, "k.tokens", rows.tokens);
    if (rows.first_position > rope_->positions() - rows.tokens)
      detail::fail("rope.positions()", rope_->positions(),
                   "the positions that keys take, " + detail::to_text(rows.first_position + rows.tokens) + " or more");
  }

 private:
  friend class Rope;
  GQA_ALWAYS_INLINE RopeKeys(const Rope& rope, std::span<const Index> of_tokens, bool given) noexcept
      : rope_(&rope), of_tokens_(of_tokens), given_(given) {}

  const Rope* rope_;
  std::span<const Index> of_tokens_;
  bool given_;
};

/// Moves keys by a number of positions: Rope::shift(by), of which it keeps nothing but numbers.
///
/// A key that is stored in a type with a relative rounding error of u has been rounded twice then: beside the row that its new position
/// would have given, each element of a pair (a, b) is off by at most 3 u √(a² + b²) and some roundings of f32.
class RopeShift {
 public:
  GQA_ALWAYS_INLINE RopeShift(const RopeShift& other) : options_(other.options_), turns_(other.turns_) {}
  RopeShift& operator=(const RopeShift&) = delete;
  GQA_ALWAYS_INLINE ~RopeShift() {}

  GQA_ALWAYS_INLINE void change(const KeyRow& row) const noexcept { detail::turn_row(row.elements, turns(), options_); }
  GQA_ALWAYS_INLINE void check(const KeyRows& rows) const { detail::check_turned_dims(options_, rows); }

 private:
  friend class Rope;
  GQA_ALWAYS_INLINE RopeShift(const Rope& rope, Index by)
      : options_(rope.options()),
        turns_(options_.dims * static_cast<Index>(sizeof(float)), "sines and cosines of a shift") {
    if (by < -(Index{1} << 32) || by > (Index{1} << 32)) detail::fail("by", by, "-2^32 to 2^32 positions");
    if (static_cast<Index>(rope.frequencies().size()) != options_.dims / 2)
      detail::fail("rope", "empty (moved from)", "one that has frequencies");
    detail::fill_turns(rope.frequencies(), by, 1, 1.0, turns_.as<float>());
  }
  GQA_ALWAYS_INLINE detail::TokenTurns turns() const noexcept {
    const float* const all = turns_.as<const float>();
    return {{all, all, all, all}};
  }

  RopeOptions options_;
  detail::CopiedBuffer turns_;
};

GQA_ALWAYS_INLINE RopeKeys Rope::keys() const noexcept { return {*this, {}, false}; }
GQA_ALWAYS_INLINE RopeKeys Rope::keys(std::span<const Index> of_tokens) const noexcept {
  return {*this, of_tokens, true};
}
GQA_ALWAYS_INLINE RopeShift Rope::shift(Index by) const { return {*this, by}; }
GQA_ALWAYS_INLINE void Rope::shift(const TensorView& rows, Index by) const {
  check(rows);
  const RopeShift shifted(*this, by);
  const detail::FloatEnvironment environment;
  for (Index token = 0; token < rows.tokens; ++token) detail::turn_token(rows, token, shifted.turns(), options_);
}

}  // namespace gqa
