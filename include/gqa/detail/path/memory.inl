// SPDX-License-Identifier: Apache-2.0
// Getting keys and values from memory in time. Part of every path.

// Into the second-level cache.
GQA_OP void prefetch(const std::byte* p) { __builtin_prefetch(p, 0, 2); }

// How far ahead of a touched line another is asked for.
inline constexpr Index kTouchAhead = 1024;

// Reads a byte of every line of a row that is about to be worked on, line after line, by one load instruction. The arithmetic
// itself reads a tile of tokens through many load instructions in an order that no processor's prefetching recognises (Zen 4's follows
// single load instructions with a constant stride, a handful of them); this one load it follows, and reads memory at full speed.
GQA_OP void touch_row(const std::byte* row, Index bytes) {
  for (Index line = 0; line < bytes; line += 64) {
    static_cast<void>(*static_cast<const volatile std::byte*>(row + line));
    prefetch(row + line + kTouchAhead);
  }
}
