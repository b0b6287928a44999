// SPDX-License-Identifier: Apache-2.0
// Getting keys and values from memory in time. Part of every path.

// Into the second-level cache.
GQA_OP void prefetch(const std::byte* p) { __builtin_prefetch(p, 0, 2); }

// Parts [part, part + count) of `parts` of rows [first, last), clipped to those there are; of `heads` heads one after the other.
GQA_KERNEL void prefetch_part(const Upcoming& next, Index first, Index last, Index part, Index count, Index parts,
                              Index heads) {
  asm volatile("");  // or a compiler may find that nothing comes of it, and leave the calls out
  Index t = first + (last - first) * part / parts;
  Index end = first + (last - first) * (part + count) / parts;
  if (t < next.first) t = next.first;
  if (end > next.last) end = next.last;
  for (; t < end; ++t)
    for (Index h = 0; h < heads; ++h)
      for (Index line = 0; line < next.row_bytes; line += 64)
        prefetch(next.data + h * next.head_stride + next.offset[t] + line);
}

// Asks for the queries of rows [first, last), clipped to those there are.
GQA_KERNEL void prefetch_queries(const RowTile& tile, const QuerySource& source, Index first, Index last) {
  asm volatile("");
  const Index bytes = source.dim_stride == 1 ? tile.head_dim * element_bytes(source.type) : 0;
  for (Index row = first; row < last && row < tile.rows; ++row) {
    const Index at = source.first_row + row;
    const std::byte* q = source.data + at / source.group * source.token_stride + at % source.group * source.head_stride;
    for (Index line = 0; line < bytes; line += 64) prefetch(q + line);
  }
}

// How far ahead of a touched line another is asked for.
inline constexpr Index kTouchAhead = 512;

// Reads a byte of every line of a row that is about to be worked on, line after line, by one load instruction. The arithmetic
// itself reads a tile of tokens through many load instructions in an order that no processor's prefetching recognises (Zen 4's follows
// single load instructions with a constant stride, a handful of them); this one load it follows, and reads memory at full speed.
GQA_OP void touch_row(const std::byte* row, Index bytes) {
  for (Index line = 0; line < bytes; line += 64) {
    static_cast<void>(*static_cast<const volatile std::byte*>(row + line));
    prefetch(row + line + kTouchAhead);
  }
}
