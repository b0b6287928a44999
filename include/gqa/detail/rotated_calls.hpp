// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a task does about keys and values that are stored rotated: queries are rotated likewise, and outputs turned back.
#pragma once

#include "gqa/detail/call.hpp"
#include "gqa/detail/path/kernels.hpp"
#include "gqa/detail/rotate_row.hpp"

namespace gqa::detail::inline GQA_ABI {

/// Floats that a task needs for rows of a sequence that are rotated: a tile's queries, or an output.
inline Index rotated_floats(const KvCacheView& kv, Index tile_rows) noexcept {
  const Index queries = rotates(kv.k_rotation) ? tile_rows * round_up(kv.head_dim, kLanes) : 0;
  const Index output = rotates(kv.v_rotation) ? round_up(kv.value_dim, kLanes) : 0;
  return queries > output ? queries : output;
}

/// `to` ← the rows of a tile's queries in f32, rotated. Returns where they are.
///
/// They are widened by the kernels of the f32 arithmetic: one row that these pack is that row, times a scale of 1.
[[gnu::noinline]] inline QuerySource rotate_queries(const CallPlan& call, const QueryTile& tile,
                                                    const QuerySource& queries, Index block, float* to) {
  const Kernels& kernels = call.kernels_for(call.path, 0);
  const RotateRow rotate = rotate_row_on(call.path);
  QuerySource given = queries;
  QueryTile row{};
  row.rows = 1;
  row.head_dim = tile.head_dim;
  row.q_stride = round_up(tile.head_dim, kLanes);
  constexpr Index ahead = 8;
  portable::prefetch_queries(tile, queries, 0, ahead);
  for (Index r = 0; r < tile.rows; ++r) {
    portable::prefetch_queries(tile, queries, r + ahead, r + ahead + 1);
    given.first_row = queries.first_row + r;
    float* const rotated = to + r * row.q_stride;
    row.q = rotated;
    kernels.pack(row, given);
    rotate(rotated, tile.head_dim, block);
  }
  QuerySource source{};
  source.data = reinterpret_cast<const std::byte*>(to);
  source.token_stride = row.q_stride * Index{sizeof(float)};
  source.dim_stride = 1;
  return source;
}

/// Has outputs turned back, if values are rotated. `turned` is room for one.
inline void turn_back(const KvCacheView& kv, Path path, float* turned, OutputTarget& target) noexcept {
  if (!rotates(kv.v_rotation)) return;
  target.turn_back = rotate_row_on(path);
  target.rotation = kv.v_rotation;
  target.turned = turned;
}

}  // namespace gqa::detail::inline GQA_ABI
