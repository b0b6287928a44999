// SPDX-License-Identifier: Apache-2.0
// Getting keys and values from memory in time: what a path's kernels do with a PrefetchCursor. Part of every path.

// The Prefetcher's stretches, and its rows between them. Functions of their own: nothing of a kernel is in registers where they are called.
GQA_KERNEL void begin_stretches(Prefetcher& prefetcher) { prefetcher.begin_stretches(); }
GQA_KERNEL void end_stretch(Prefetcher& prefetcher, Index tokens, Index used) { prefetcher.end_stretch(tokens, used); }
GQA_KERNEL PrefetchCursor softmax_cursor(Prefetcher& prefetcher, Index rows) { return prefetcher.softmax_cursor(rows); }

// Fetches the next row; of Usual bytes without a loop.
template <Index Usual = 0>
GQA_OP void prefetch_row(PrefetchCursor& cursor) {
  if (cursor.row == nullptr) return;
  if (Usual > 0 && cursor.near_bytes == Usual) {
    GQA_UNROLL
    for (Index line = 0; line < Usual; line += 64) __builtin_prefetch(cursor.row + line, 0, 3);
  } else {
    cursor.fetch();
  }
  cursor.next();
}
// Fetches what is due while tokens [from, to) go by.
template <Index Usual = 0>
GQA_OP void prefetch_rows(PrefetchCursor& cursor, Index from, Index to) {
  if (cursor.row == nullptr) return;
  const Index pace = Index{1} << cursor.shift;
  for (Index t = (from + pace - 1) & -pace; t < to; t += pace) prefetch_row<Usual>(cursor);
}

// p, for a processor that runs ahead not before `value` is there, see PrefetchPolicy::Pace.
GQA_OP const std::byte* once_known(const std::byte* p, float value) {
#if GQA_DETAIL_X86
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  asm("and{l $0, %0| %0, 0}" : "+r"(bits));  // in either dialect of assembler
  return p + bits;
#else
  static_cast<void>(value);
  return p;
#endif
}

// Fetches the queries of rows [first, last), clipped to those there are, into the second-level cache.
GQA_KERNEL void prefetch_queries(const QueryTile& tile, const QuerySource& source, Index first, Index last) {
  asm volatile("");  // or a compiler may find that nothing comes of it, and leave the calls out
  const Index bytes = source.dim_stride == 1 ? tile.head_dim * element_bytes(source.type) : 0;
  for (Index r = first; r < last && r < tile.rows && bytes > 0; ++r) {
    const std::byte* const from = source.row(r);
    for (Index line = 0; line < bytes; line += 64) __builtin_prefetch(from + line, 0, 2);
    __builtin_prefetch(from + bytes - 1, 0, 2);
  }
}

// How far ahead of a touched line another is fetched.
inline constexpr Index kTouchAhead = 512;

// Reads a byte of every line of a row that is about to be worked on, line after line, by one load instruction: Streaming::followed. The
// arithmetic itself reads a tile of tokens through many load instructions in an order that no processor's prefetching recognises (Zen 4's
// follows single load instructions with a constant stride, a handful of them); this one load it follows, and reads memory at full speed.
GQA_OP void touch_row(const std::byte* row, Index bytes) {
  for (Index line = 0; line < bytes; line += 64) {
    static_cast<void>(*static_cast<const volatile std::byte*>(row + line));
    __builtin_prefetch(row + line + kTouchAhead, 0, 2);
  }
}
