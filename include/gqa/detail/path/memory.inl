// SPDX-License-Identifier: Apache-2.0
// Getting keys and values from memory in time. Part of every path.

// Into the second-level cache.
GQA_OP void prefetch(const std::byte* p) { __builtin_prefetch(p, 0, 2); }

// p, for a processor that runs ahead not before `value` is there. Reading what was prefetched, or asking for more, ahead of the arithmetic
// gains nothing, and takes what prefetching waits in.
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

// Ahead::done where nothing is in registers.
GQA_KERNEL void look_ahead(Ahead& ahead, Index part) { ahead.done(part); }

// Asks for the queries of rows [first, last), clipped to those there are.
GQA_KERNEL void prefetch_queries(const RowTile& tile, const QuerySource& source, Index first, Index last) {
  source.ask<0, 2>(first, last < tile.rows ? last : tile.rows, tile.head_dim);
}

// The stream of a stage whose rows `now` are worked on: `count` of them, then `after`, which must live as long; so many tokens' have been
// asked for as is usual, and `surplus` more. This and passing on are functions of their own: nothing of a kernel is in registers where
// they are called.
GQA_KERNEL Stream stream_of(const Stage& stage, const Upcoming& now, Index count, const Upcoming& after,
                            Index surplus) {
  if (!stage.asks) return {};
  const Index more = surplus > 0 ? surplus / Stream::kSlowTokens * Stream::kSlowTokens : 0;
  return Stream(now, count, after, stage.ahead, more, stage.heads, !stage.runs());
}
GQA_KERNEL void pass(Stream& stream, Index tokens) { stream.passed(tokens); }

// Asks for so many bytes from p on; for Usual ones without a loop.
template <Index Usual>
GQA_OP void ask_bytes(const std::byte* p, Index bytes) {
  if (Usual > 0 && bytes == Usual) {
    GQA_UNROLL
    for (Index line = 0; line < Usual; line += 64) __builtin_prefetch(p + line, 0, 3);
  } else {
    for (Index line = 0; line < bytes; line += 64) __builtin_prefetch(p + line, 0, 3);
  }
}
// Asks for the next row; of Usual bytes without a loop.
template <Index Usual = 0>
GQA_OP void ask_next(Asked& asked) {
  if (asked.row == nullptr) return;
  ask_bytes<Usual>(asked.row, asked.bytes);
  asked.next();
}
// Asks for what is due while tokens [from, to) go by.
template <Index Usual = 0>
GQA_OP void ask_rows(Asked& asked, Index from, Index to) {
  if (asked.row == nullptr) return;
  const Index pace = Index{1} << asked.shift;
  for (Index t = (from + pace - 1) & -pace; t < to; t += pace) ask_next<Usual>(asked);
}

// How far ahead of a touched line another is asked for.
inline constexpr Index kTouchAhead = 512;

// Reads a byte of every line of a row that is about to be worked on, line after line, by one load instruction: Streaming::followed. The
// arithmetic itself reads a tile of tokens through many load instructions in an order that no processor's prefetching recognises (Zen 4's
// follows single load instructions with a constant stride, a handful of them); this one load it follows, and reads memory at full speed.
GQA_OP void touch_row(const std::byte* row, Index bytes) {
  for (Index line = 0; line < bytes; line += 64) {
    static_cast<void>(*static_cast<const volatile std::byte*>(row + line));
    prefetch(row + line + kTouchAhead);
  }
}
