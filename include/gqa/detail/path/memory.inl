// SPDX-License-Identifier: Apache-2.0
// Getting keys and values from memory in time. Part of every path.

// Into the second-level cache.
GQA_OP void prefetch(const std::byte* p) { __builtin_prefetch(p, 0, 2); }

// p, for a processor that runs ahead not before `value` is there. Reading what was prefetched ahead of the arithmetic gains nothing,
// and takes what prefetching waits in.
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
  asm volatile("");  // or a compiler may find that nothing comes of it, and leave the calls out
  const Index bytes = source.dim_stride == 1 ? tile.head_dim * element_bytes(source.type) : 0;
  for (Index row = first; row < last && row < tile.rows; ++row) {
    const Index at = source.first_row + row;
    const std::byte* q = source.data + at / source.group * source.token_stride + at % source.group * source.head_stride;
    for (Index line = 0; line < bytes; line += 64) prefetch(q + line);
  }
}

// Asks for the next row of a stream, of Bytes bytes if that is known.
template <Index Bytes = 0>
GQA_OP void ask_next(Stream& stream) {
  const std::byte* const row = stream.row;
  if (row == nullptr) return;
  if constexpr (Bytes > 0) {
    GQA_UNROLL
    for (Index line = 0; line < Bytes; line += 64) __builtin_prefetch(row + line, 0, 3);
  } else {
    for (Index line = 0; line < stream.bytes; line += 64) __builtin_prefetch(row + line, 0, 3);
  }
  stream.next();
}

// What a stream seldom does, as functions of their own: nothing is in registers yet.
GQA_KERNEL Stream part_of(const Stream& stream, Index strip, Index tokens) { return stream.part(strip, tokens); }
GQA_KERNEL void pass_end(Stream& stream, Index rows) { stream.passed(rows); }

// What a strip asks for, if it does.
GQA_OP Stream strip_stream(const Asker& asker, Index strip, Index tokens) {
  Stream mine;
  if (asker.stream.row == nullptr || strip >= asker.stream.pace()) return mine;
  if (strip == 0) mine = asker.stream;
  else mine = part_of(asker.stream, strip, tokens);
  return mine;
}
// After `tokens` that all strips have taken.
GQA_OP void next_tokens(Asker& asker, Index tokens) {
  Stream& stream = asker.stream;
  if (stream.row == nullptr) return;
  if (tokens >= stream.left) return pass_end(stream, tokens);
  stream.row += tokens * stream.stride;
  stream.left -= tokens;
}

// Asks for what a strip is to ask for before tokens [from, from + count).
GQA_OP void ask_rows(Stream& stream, Index from, Index count) {
  if (stream.row == nullptr) return;
  for (Index t = from; t < from + count; ++t)
    if ((t & (stream.pace() - 1)) == 0) ask_next(stream);
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
