// SPDX-License-Identifier: Apache-2.0
// For paths whose panels of rows take one piece of a key at a time: a lane is a row, and nothing is left to be put in order or added up.
// Part of such a path, after its vector operations.

inline constexpr int kPieces = 1;  // lanes of a row

GQA_OP Vec repeat_pieces(const std::byte* p) {
  float one;
  __builtin_memcpy(&one, p, sizeof one);
  return set1(one);
}
GQA_OP void order_pieces(Vec (&)[kLanes]) {}
GQA_OP Vec join_pieces(const Vec (&a)[kPieces]) { return a[0]; }
