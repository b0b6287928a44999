// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rotation of rows by Hadamard matrices, which spreads what a few large elements would cost all others of a row when it is stored in few bits
/// (QuaRot: Ashkboos et al. 2024).
///
///     gqa::ContiguousKvCache cache({.kv_heads = 8, .head_dim = 128, .k_type = gqa::Q4_0{}, .k_rotation = 128, .v_rotation = 128, …});
///
/// A row is cut into blocks of `block` elements, a power of two that divides its width, and each block is multiplied by the Hadamard matrix
/// of that size over √block. That is an orthogonal matrix and its own inverse: products of two rotated rows are what they were, and what is
/// rotated twice is itself, but for roundings.
///
/// Owning caches rotate keys and values before they are stored, if they are told to (KvCacheConfig::k_rotation and v_rotation); views say so,
/// and a call rotates its queries in f32 and turns its outputs back before a variant's factor or gate. Where products are bf16, rotated queries
/// are rounded to bf16 as f32 ones are. Kernels know nothing of it: a call has the bits of one over the same rows without rotations, with
/// queries that hadamard_rotate has been applied to (in f32, or in bf16 where products are), and f32 outputs that it is applied to then.
///
/// A program can do without either side's work and fold a rotation into its weights: the rows that a projection makes are rotated if each
/// column of its matrix is. Keys that rotary embeddings turn cannot have theirs folded: it comes after these.
#pragma once

#include "gqa/detail/float_environment.hpp"
#include "gqa/detail/kv_rows.hpp"
#include "gqa/tensor_view.hpp"

namespace gqa {

namespace detail::inline GQA_ABI {

inline void rotate_rows(const TensorView& rows, Index block) {
  const RowRoom room(rows.dim);
  const RotateRow rotate = rotate_row_on(active_path().path);
  const RowEncoder widen = row_converter(row_ops(), ElementType::f32, rows.type);
  const RowEncoder narrow = row_converter(row_ops(), rows.type, ElementType::f32);
  const Index bytes = element_bytes(rows.type);
  const FloatEnvironment environment;
  for (Index token = 0; token < rows.tokens; ++token)
    for (Index head = 0; head < rows.heads; ++head) {
      std::byte* const row =
          static_cast<std::byte*>(rows.data) + (token * rows.strides.token + head * rows.strides.head) * bytes;
      widen(row, 1, rows.dim, room.row(), nullptr);
      rotate(typed<float>(room.row()), rows.dim, block);
      narrow(room.row(), 1, rows.dim, row, nullptr);
    }
}

}  // namespace detail::inline GQA_ABI

/// Each block of each row ← the Hadamard matrix · the block / √block, in place, in f32, rounded to the rows' type at the end. The same bits on
/// every path. Done twice it is undone, but for roundings: beside the exact transform an element is off by at most (log2(block) + 2) · 2⁻²⁴
/// times the block's magnitudes added up and divided by √block, to first order, and what the type rounds.
/// @param rows   tokens × heads × dim, of any element type; dim stride 1
/// @param block  a power of two that divides dim
/// @throws ArgumentError if the view or the block is wrong
GQA_ALWAYS_INLINE void hadamard_rotate(const TensorView& rows, Index block) {
  detail::check_tensor({}, detail::kRowsNames, rows);
  if (rows.strides.dim != 1) detail::fail("rows.strides.dim", rows.strides.dim, "1");
  if (block < 1 || !detail::is_rotation(block, rows.dim))
    detail::fail("block", block, "a power of two that divides rows.dim = " + detail::to_text(rows.dim));
  detail::rotate_rows(rows, block);
}

}  // namespace gqa
