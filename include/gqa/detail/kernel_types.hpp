// SPDX-License-Identifier: Apache-2.0
/// @file
/// What crosses from the baseline code to a path's kernels: pointers and plain structs, never a vector.
#pragma once

#include "gqa/cpu.hpp"
#include "gqa/element.hpp"

namespace gqa::detail {

/// Lanes of the logical vector that every f32 path computes with: one AVX-512 register, two of AVX2, four of NEON.
inline constexpr Index kLanes = 16;
/// Tokens that the online softmax takes at a time. Blocks start at multiples of kBlock, absolute positions.
inline constexpr Index kBlock = 64;
/// Tokens in a span, the unit of parallel work along the sequence. Spans start at multiples of kSpan, absolute positions: a
/// span's state depends on its own tokens alone, and states merge in ascending order.
inline constexpr Index kSpan = 512;
/// log2 e: scores are kept in units of log2.
inline constexpr float kLog2E = 1.44269504088896340736f;
/// Rows, (query token, query head) pairs, that share one pass over a KV head.
inline constexpr Index kTileRows = 128;
static_assert(kBlock == 64, "the visible tokens of a block are the bits of one std::uint64_t");
static_assert(kSpan % kBlock == 0);

constexpr Index round_up(Index value, Index multiple) noexcept { return (value + multiple - 1) / multiple * multiple; }

/// The rows of one tile for one KV head, and the scratch that holds them. Strides in floats.
///
/// A row's state over the tokens seen so far is (m, l, o): running maximum of its scores in units of log2, the sum of
/// exp2(score − m) kept as kLanes partial sums (which tokens a lane sums is fixed by the path), and the unnormalised output.
struct RowTile {
  Index rows = 0;
  Index head_dim = 0;
  Index value_dim = 0;
  void* q = nullptr;         ///< packed queries, the path's own layout; rows × q_stride floats of room
  Index q_stride = 0;        ///< round_up(head_dim, 2·kLanes)
  float* weights = nullptr;  ///< rows × kBlock: scores of one block, then weights; rows rounded up to 16
  float* m = nullptr;        ///< rows
  float* l = nullptr;        ///< rows × kLanes
  float* o = nullptr;        ///< rows × o_stride
  Index o_stride = 0;        ///< round_up(value_dim, kLanes)
  float* alpha = nullptr;    ///< rows: what this block's softmax multiplies the older o by
  std::byte* staging = nullptr;  ///< the path's own, staging_bytes() of it: widened or repacked K and V of one block
  float score_scale = 1.0f;      ///< multiplies q·k; includes log2 e unless a scoring variant wants natural scores
  bool scored = false;           ///< a scoring variant goes over the scores: `transform` leaves them in units of log2
};

/// Rows that will be read soon: row t at data + offset[t] bytes, for t in [first, last).
struct Upcoming {
  const std::byte* data = nullptr;
  const Index* offset = nullptr;
  Index first = 0;
  Index last = 0;
};

/// The tokens of one block of one KV head that some row of the tile sees: [first, last) within the block.
///
/// Row of token t: k + k_offset[t] bytes, for t in [first, last) only.
struct Block {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  const Index* k_offset = nullptr;  ///< kBlock entries
  const Index* v_offset = nullptr;  ///< kBlock entries
  Index k_stride = 0;               ///< bytes from each token to the next, if that is the same for all of [first, last); or 0
  Index v_stride = 0;
  Index first = 0;
  Index last = 0;
  const std::uint64_t* visible = nullptr;  ///< per row, bit t: sees token t; null: every row sees all kBlock tokens
  bool careful = false;                    ///< V holds a non-finite value in a token that some rows see and others do not
  Upcoming next_k;                         ///< the keys that the task reads after this block
};

/// Where a tile's queries come from: row r is query token (first_row + r) / group, query head head + (first_row + r) % group.
struct QuerySource {
  const std::byte* data = nullptr;  ///< query token 0, query head `head`
  ElementType type = ElementType::f32;
  Index token_stride = 0;  ///< bytes
  Index head_stride = 0;   ///< bytes
  Index dim_stride = 0;    ///< elements
  Index group = 1;
  Index first_row = 0;
};

/// Where a tile's outputs go; rows as in QuerySource.
struct OutputTarget {
  std::byte* data = nullptr;
  ElementType type = ElementType::f32;
  Index token_stride = 0;  ///< bytes
  Index head_stride = 0;   ///< bytes
  Index dim_stride = 0;    ///< elements
  Index group = 1;
  Index first_row = 0;
  float* lse = nullptr;  ///< query token 0, query head `head`; or null
  Index lse_token_stride = 0;
};

/// One path's kernels: the stages of a task. Every function works on one tile; `scores` and `accumulate` are per element type.
struct Kernels {
  Path path = Path::portable;
  void (*pack)(const RowTile&, const QuerySource&) = nullptr;            ///< tile.q ← queries, scaled
  void (*begin)(const RowTile&) = nullptr;                               ///< state ← that of no tokens: (−∞, 0, 0)
  void (*scores[3])(const RowTile&, const Block&) = {};                  ///< tile.weights ← scaled q·k of the block
  void (*softmax)(const RowTile&, const Block&) = nullptr;               ///< weights ← exp2(score − m); m, l, alpha
  void (*accumulate[3])(const RowTile&, const Block&) = {};              ///< o ← alpha·o + weights·V
  bool (*nonfinite[3])(const Block&, Index value_dim) = {};              ///< any NaN or infinity in V of [first, last)?
  void (*merge)(const RowTile& into, const RowTile& from) = nullptr;     ///< state `into` ← into, then from
  void (*store)(const RowTile&, const OutputTarget&) = nullptr;          ///< out ← o / l; lse ← m + log l
  Index (*staging_bytes)(Index rows, Index head_dim, Index value_dim) = nullptr;
  void (*enter)() = nullptr;  ///< before and after a task, where the path has state of the thread to set up; or null
  void (*leave)() = nullptr;
};

}  // namespace gqa::detail
