// SPDX-License-Identifier: Apache-2.0
/// @file
/// What crosses from the baseline code to a path's kernels: pointers and plain structs, never a vector.
#pragma once

#include "gqa/codec.hpp"
#include "gqa/cpu.hpp"
#include "gqa/detail/rotation.hpp"
#include "gqa/heads.hpp"
#include "gqa/variant.hpp"

namespace gqa::detail {

/// Lanes of the logical vector that every f32 path computes with: one AVX-512 register, two of AVX2, four of NEON.
inline constexpr Index kLanes = 16;
/// Tokens that the online softmax takes at a time. Blocks start at multiples of kBlock, absolute positions.
inline constexpr Index kBlock = 64;
/// Tokens in a span, the unit of parallel work along the sequence. Spans start at multiples of kSpan, absolute positions: a
/// span's state depends on its own tokens alone, and the states of a super-span's spans merge in ascending order.
inline constexpr Index kSpan = 512;
/// Tokens in a super-span. Super-spans start at multiples of kSuperSpan, absolute positions, and their states merge in ascending order: so
/// a sequence can be split over machines at such a multiple, each sends one state, and the bits are those of one machine.
inline constexpr Index kSuperSpan = 32768;
/// log2 e: scores are kept in units of log2.
inline constexpr float kLog2E = 1.44269504088896340736f;
/// Rows, (query token, query head) pairs, that share one pass over a KV head.
inline constexpr Index kTileRows = 128;
/// Spans, and blocks, that one stage of a task takes at most.
inline constexpr Index kStageSpans = 8;
inline constexpr Index kStageBlocks = kStageSpans * kSpan / kBlock;
/// Blocks of a stage of several heads side by side with few rows each: two spans', or one's where they have many rows together.
GQA_ALWAYS_INLINE constexpr Index side_blocks(Index rows) noexcept {
  return (rows <= 2 * kLanes ? 2 : 1) * kSpan / kBlock;
}
/// Every token of a block, as bits.
inline constexpr std::uint64_t kEveryToken = ~std::uint64_t{0};
static_assert(kBlock == 64, "the visible tokens of a block are the bits of one std::uint64_t");
static_assert(kSpan % kBlock == 0);
static_assert(kSuperSpan % kSpan == 0);

GQA_ALWAYS_INLINE constexpr Index round_up(Index value, Index multiple) noexcept {
  return (value + multiple - 1) / multiple * multiple;
}

GQA_ALWAYS_INLINE constexpr Index magnitude(Index stride) noexcept { return stride < 0 ? -stride : stride; }

/// What a functor's scores and outputs are compiled for: one of the extents that there are kernels for, any (gqa::dynamic), or any but
/// those (kOtherDim).
inline constexpr int kOtherDim = 0;
GQA_ALWAYS_INLINE constexpr int compiled_head_dim(int extent) noexcept {
  return extent == dynamic || extent == 64 || extent == 128 || extent == 256 ? extent : kOtherDim;
}
GQA_ALWAYS_INLINE constexpr int compiled_value_dim(int extent) noexcept {
  return extent == dynamic || extent == 128 || extent == 256 ? extent : kOtherDim;
}
/// Whether what is compiled for an extent may be called with `dim`.
GQA_ALWAYS_INLINE constexpr bool may_be(int compiled, int dim) noexcept {
  return compiled == dim || compiled == dynamic;
}

/// Rows from which a panel of 16, a row a lane, is worth its idle lanes.
inline constexpr Index kPanelRows = 13;
/// What `rows` rows are rounded up to where each has one float: whole panels, if there are any.
GQA_ALWAYS_INLINE constexpr Index state_rows(Index rows) noexcept {
  return rows < kPanelRows ? rows : round_up(rows, kLanes);
}

/// What a variant is told and says of the rows of one KV head's tile, before its scores and masks are worked out.
struct VariantRows {
  const void* variant = nullptr;
  const RowContext* row = nullptr;     ///< [row]
  const float* constants = nullptr;    ///< [constant][stride]: of its expressions, the score's first, by row
  const RowLookup* lookups = nullptr;  ///< [lookup][stride]
  Index stride = 0;                    ///< rows, whole panels of kLanes
};

/// The rows of one tile for one KV head, and the scratch that holds them. Strides in floats.
///
/// A row's state over the tokens seen so far is (m, l, o): running maximum of its scores in units of log2, the sum of
/// exp2(score − m), as one number or as kLanes partial sums, and the unnormalised output. Where weights are rounded before they meet
/// values, o is divided by the sum of the rounded ones: what all values have in common is then free of the roundings.
struct QueryTile {
  Index rows = 0;
  Index head_dim = 0;
  Index value_dim = 0;
  void* q = nullptr;   ///< packed queries, the path's own layout; rows × q_stride floats of room
  Index q_stride = 0;  ///< round_up(head_dim, 2·kLanes)
  float* weights =
      nullptr;  ///< of one block: scores, then weights; [row][token], [token][row] in panels; or the path's own
  Index weight_floats = 0;   ///< from one block's to the next one's, in a stage of several; set by unit_tile
  float* m = nullptr;        ///< state_rows(rows)
  float* l = nullptr;        ///< state_rows(rows) × l_stride
  float* o = nullptr;        ///< rows × o_stride
  Index l_stride = 1;        ///< partial sums: 1 or kLanes
  bool has_divisor = false;  ///< whether o is divided by something else than l
  float* divisor = nullptr;  ///< state_rows(rows): the sum of rounded weights, if so
  Index o_stride = 0;      ///< value_dim rounded up to what the path asks for; the order within a row is the path's own
  float* alpha = nullptr;  ///< round_up(rows, kLanes): what this block's softmax multiplies the older o by
  std::byte* staging = nullptr;  ///< the path's own, staging_bytes() of it: widened or repacked K and V of one block
  float score_scale = 1.0f;      ///< multiplies q·k; includes log2 e unless a scoring variant wants natural scores
  bool scored = false;           ///< a variant changes scores: the softmax leaves them in units of log2
  const VariantRows* variant_rows = nullptr;  ///< if the variant asks for any
};

/// Where something of each token of a block lies: of token t at base + offset[t] bytes, or if offset is null, at base + t · stride.
struct RowSpan {
  const std::byte* base = nullptr;
  const Index* offset = nullptr;
  Index stride = 0;
  GQA_ALWAYS_INLINE const std::byte* row(Index t) const noexcept {
    return base + (offset == nullptr ? t * stride : offset[t]);
  }
  /// The same, counted from a token on.
  GQA_ALWAYS_INLINE RowSpan from(Index t) const noexcept {
    return offset == nullptr ? RowSpan{base + t * stride, nullptr, stride} : RowSpan{base, offset + t, stride};
  }
};

/// The scales of a block's rows, of codecs that have them outside: a token's first one, and bytes from an element's to the next
/// element's; 0: a row has one. Base null: the codec has none there.
struct BlockScales {
  RowSpan k{};
  RowSpan v{};
  Index k_dim = 0;
  Index v_dim = 0;
};

/// A row whose scales lie outside of it, as loads take it.
struct ScaledRow {
  const std::byte* data = nullptr;
  const std::byte* scale = nullptr;  ///< the first
  Index scale_step = 0;              ///< bytes from an element's to the next element's; 0: the row has one
};

/// The tokens of one block of one KV head that some row of the tile sees: [first, last) within the block.
///
/// Row of token t: k + k_offset[t] bytes, for t in [first, last) only.
struct Block {
  Index begin = 0;  ///< the block's first position, a multiple of kBlock
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  const Index* k_offset = nullptr;  ///< kBlock entries
  const Index* v_offset = nullptr;  ///< kBlock entries
  Index k_stride = 0;  ///< bytes from each token to the next, if that is the same for all of [first, last); or 0
  Index v_stride = 0;
  Index first = 0;
  Index last = 0;
  const std::uint64_t* visible = nullptr;  ///< per row, bit t: sees token t; null: every row sees all kBlock tokens
  std::uint64_t hidden = 0;                ///< tokens of [first, last) that some row does not see
  bool careful = false;  ///< V holds a non-finite value in a token of [first, last) that is hidden from some row
  const BlockScales* scales = nullptr;  ///< of keys and values that have them outside of rows; or none

  GQA_ALWAYS_INLINE Block() noexcept = default;  // not emitted: units of other flags would share it
};

/// Whether a codec's rows are all that its loads need; else a row comes with its scales.
template <class Codec>
inline constexpr bool kWholeRows = KvType(Codec::type).scale_bytes() == 0;

/// A row, as a codec's loads take it.
template <class Codec>
using RowOf = std::conditional_t<kWholeRows<Codec>, const std::byte*, ScaledRow>;

/// The rows of a block, by token.
template <class Codec>
struct BlockRows {
  RowSpan rows;
  RowSpan scales{};
  Index scale_step = 0;
  GQA_ALWAYS_INLINE RowOf<Codec> operator()(Index t) const noexcept {
    const std::byte* const row = rows.base + rows.offset[t];
    if constexpr (kWholeRows<Codec>) return row;
    else return ScaledRow{row, scales.row(t), scale_step};
  }
  /// The same, counted from a token on.
  GQA_ALWAYS_INLINE BlockRows from(Index t) const noexcept {
    BlockRows behind = *this;
    behind.rows.offset += t;
    if constexpr (!kWholeRows<Codec>) behind.scales = scales.from(t);
    return behind;
  }
};
template <class Codec>
GQA_ALWAYS_INLINE BlockRows<Codec> block_keys(const Block& block) noexcept {
  if constexpr (kWholeRows<Codec>) return {{block.k, block.k_offset, 0}};
  else return {{block.k, block.k_offset, 0}, block.scales->k, block.scales->k_dim};
}
template <class Codec>
GQA_ALWAYS_INLINE BlockRows<Codec> block_values(const Block& block) noexcept {
  if constexpr (kWholeRows<Codec>) return {{block.v, block.v_offset, 0}};
  else return {{block.v, block.v_offset, 0}, block.scales->v, block.scales->v_dim};
}

/// What one stage of a task takes before the next stage has its turn: the keys of some blocks, then their softmax, then their
/// values. A decode step has few rows, and its stages many blocks: memory is then read in long runs. A tile of many rows has one
/// block, which stays in the caches. Either way a block's arithmetic is its own.
///
/// A unit is one block of one KV head; the unit of block b and head j is units[b · heads + j].
struct Stage {
  const Block* units = nullptr;
  Index blocks = 0;
  Index heads = 1;  ///< KV heads side by side; they share the tokens [first, last) of a block
  bool runs =
      false;  ///< few rows, many blocks: those that follow each other in memory are taken as one run, see run_of
  Index weight_floats = 0;  ///< from a unit's weights to the next one's
  Index alpha_floats = 0;   ///< from a unit's alpha to the next one's
};

/// How many blocks of a stage, from b on, are one run: whole, not careful, and their rows (keys or values) evenly spaced as if they
/// were of one block. Kernels take a run of one head's at a time, where rows are streamed: what a block begins and ends with leaves
/// memory idle.
GQA_ALWAYS_INLINE Index run_of(const Stage& stage, Index b, const std::byte* Block::*rows,
                               Index Block::*stride) noexcept {
  const Block* const first = stage.units + b * stage.heads;
  const auto whole = [](const Block& block) __attribute__((always_inline)) {
    return block.first == 0 && block.last == kBlock && !block.careful;
  };
  Index run = 1;
  if (!stage.runs || first->*stride == 0 || !whole(*first)) return run;
  for (; b + run < stage.blocks; ++run) {
    const Block& next = first[run * stage.heads];
    if (!whole(next) || next.*stride != first->*stride || next.*rows != first->*rows + run * kBlock * (first->*stride))
      break;
  }
  return run;
}

/// The j-th KV head's state and queries, of a tile that holds several heads.
GQA_ALWAYS_INLINE QueryTile head_tile(const QueryTile& tile, Index j) noexcept {
  QueryTile part = tile;
  part.q = static_cast<float*>(tile.q) + j * round_up(tile.rows, kLanes) * tile.q_stride;
  if (tile.variant_rows != nullptr) part.variant_rows = tile.variant_rows + j;
  part.m = tile.m + j * state_rows(tile.rows);
  part.l = tile.l + j * state_rows(tile.rows) * tile.l_stride;
  part.divisor = tile.divisor + (tile.has_divisor ? j * state_rows(tile.rows) : 0);
  part.o = tile.o + j * tile.rows * tile.o_stride;
  return part;
}

/// The state, queries, weights and alpha of one unit.
GQA_ALWAYS_INLINE QueryTile unit_tile(const QueryTile& tile, const Stage& stage, Index b, Index j) noexcept {
  QueryTile part = head_tile(tile, j);
  part.weights = tile.weights + (b * stage.heads + j) * stage.weight_floats;
  part.weight_floats = stage.weight_floats;
  part.alpha = tile.alpha + (b * stage.heads + j) * stage.alpha_floats;
  return part;
}

/// A row's query token, and its query head among those of its KV head: `row` counts from a sequence's first, `group` rows a token.
struct RowPlace {
  Index token = 0;
  Index head = 0;
  GQA_ALWAYS_INLINE RowPlace(Index row, Index group) noexcept : head(row) {
    if (row < group) return;  // a decode step divides nothing
    token = row / group;
    head = row % group;
  }
};

/// Where a tile's rows of queries or outputs lie: row r is at RowPlace(first_row + r, group).
template <class Byte>
struct TensorRows {
  Byte* data = nullptr;  ///< query token 0, the KV head's first query head
  ElementType type = ElementType::f32;
  Index token_stride = 0;  ///< bytes
  Index head_stride = 0;   ///< bytes
  Index dim_stride = 0;    ///< elements
  Index group = 1;
  Index first_row = 0;

  GQA_ALWAYS_INLINE Byte* row(Index r) const noexcept {
    const RowPlace at(first_row + r, group);
    return data + at.token * token_stride + at.head * head_stride;
  }
};

/// The rows of a view in a KV head, from its row number `first_row` on.
template <class Byte, class View>
GQA_ALWAYS_INLINE TensorRows<Byte> rows_of_head(const View& view, Index kv_head, Index group,
                                                Index first_row) noexcept {
  TensorRows<Byte> rows;
  const Index bytes = element_bytes(view.type);
  rows.type = view.type;
  rows.token_stride = view.strides.token * bytes;
  rows.head_stride = view.strides.head * bytes;
  rows.dim_stride = view.strides.dim;
  rows.group = group;
  rows.first_row = first_row;
  rows.data = static_cast<Byte*>(view.data) + kv_head * group * rows.head_stride;
  return rows;
}

/// Where a tile's queries come from.
using QuerySource = TensorRows<const std::byte>;

/// Where a tile's outputs go; or nowhere, if there is no data.
struct OutputTarget : TensorRows<std::byte> {
  RotateRow turn_back = nullptr;  ///< if values are rotated: outputs are turned back before they are stored
  Index rotation = 0;             ///< in such blocks
  float* turned = nullptr;        ///< room for one row, round_up(value_dim, kLanes) floats
  float* lse = nullptr;           ///< query token 0, the KV head's first query head; or null
  Index lse_token_stride = 0;
};

/// What a variant does to an output row once it is there.
struct OutputChange {
  float factor = 1.0f;
  GateRow gate{};  ///< of no data: none

  GQA_ALWAYS_INLINE constexpr OutputChange() noexcept {}
};

class Prefetcher;

/// target ← rows of `dim` floats, `stride` apart, changed.
using FinishKernel = void (*)(float* rows, Index stride, Index count, Index dim, const OutputChange* changes,
                              const OutputTarget& target);

using SoftmaxKernel = void (*)(const QueryTile&, const Block&, Prefetcher&);

/// Up to so many rows, keys and values of a codec are streamed: many blocks a stage.
struct StreamRows {
  Index prefetched = 0;
  Index followed = 0;
  GQA_ALWAYS_INLINE constexpr Index of(Streaming streaming) const noexcept {
    return streaming == Streaming::prefetched ? prefetched : followed;
  }
};

/// A path's kernels for one codec. `scores` and `accumulate` take all units of a stage, in the order of memory.
struct CodecKernels {
  void (*scores)(const QueryTile&, const Stage&, Prefetcher&) = nullptr;  ///< weights ← scaled q·k of the blocks
  void (*accumulate)(const QueryTile&, const Stage&,
                     Prefetcher&) = nullptr;  ///< o ← alpha·o + weights·V, block by block
  /// Any NaN or infinity in V of these tokens of [first, last)?
  bool (*nonfinite)(const Block&, std::uint64_t tokens, Index value_dim) = nullptr;
  StreamRows stream_rows{};
  /// tile.q ← queries, as `scores` wants them; null: Kernels::pack
  void (*pack)(const QueryTile&, const QuerySource&) = nullptr;
  const CodecKernels* (*row_scales)() noexcept = nullptr;  ///< those for rows of one scale each, if they are other ones
};

/// One path's kernels: the stages of a task. Those that read keys and values are the codecs'; the others take one head's tile.
struct Kernels {
  Path path = Path::portable;
  const CodecKernels* codecs = nullptr;  ///< by id, those of the codecs that they are compiled for
  unsigned compiled = 0;                 ///< which codecs those are, as bits, see codec_bit
  void (*pack)(const QueryTile&, const QuerySource&) = nullptr;  ///< tile.q ← queries, scaled
  void (*begin)(const QueryTile&) = nullptr;                     ///< state ← that of no tokens: (−∞, 0, 0)
  /// weights ← exp2(score − m); m, l, divisor, alpha
  SoftmaxKernel softmax = nullptr;
  void (*merge)(const QueryTile& into, const QueryTile& from) = nullptr;  ///< state `into` ← into, then from
  void (*store)(const QueryTile&, const OutputTarget&) = nullptr;         ///< out ← o / divisor; lse ← m + log l
  Index (*few_rows_distance)(Index head_dim) = nullptr;                   ///< see PrefetchFacts
  Index (*staging_bytes)(Index rows, Index head_dim, Index value_dim) = nullptr;
  int bf16_terms = 0;         ///< as which inputs are taken, where the path's softmax depends on it
  Index weight_rows = 1;      ///< what state_rows(rows) is rounded up to for weights
  Index l_stride = 1;         ///< see QueryTile
  bool has_divisor = false;   ///< likewise
  Index o_multiple = kLanes;  ///< what o_stride is a multiple of
  void (*enter)() = nullptr;  ///< before and after tasks, where the path has state of the thread to set up; or null
  void (*leave)() = nullptr;

  /// Whether there are kernels for keys and values of these types, which are codecs'.
  GQA_ALWAYS_INLINE constexpr bool supports(KvType k, KvType v) const noexcept {
    return ((compiled >> (k.id() & 31)) & (compiled >> (v.id() & 31)) & 1u) != 0;
  }
  /// Those of a type that is supported.
  GQA_ALWAYS_INLINE constexpr const CodecKernels& of(KvType type) const noexcept { return codecs[type.id()]; }
  /// Those of rows whose scales, if they lie outside, are so far apart from element to element; 0: a row has one.
  GQA_ALWAYS_INLINE const CodecKernels& of(KvType type, Index scale_step) const noexcept {
    const CodecKernels& usual = of(type);
    return usual.row_scales == nullptr || scale_step != 0 ? usual : *usual.row_scales();
  }
};

}  // namespace gqa::detail
