// SPDX-License-Identifier: Apache-2.0
// Loads of test::Int8, once per path. What a codec of the library's would have in the paths' files, an operation each, stands here: this
// unit's compiler is not told which path it is in, so that it goes by the type of its vectors.

GQA_OP Vec load_part(test::Int8, const ScaledRow& row, Index d, Index count) {
  alignas(64) float lanes[kLanes] = {};
  for (Index i = 0; i < count; ++i) lanes[i] = static_cast<float>(static_cast<std::int8_t>(row.data[d + i]));
  float scale;
  __builtin_memcpy(&scale, row.scale, sizeof scale);
  return mul(load(lanes), set1(scale));
}
GQA_OP Vec load(test::Int8, const ScaledRow& row, Index d) { return load_part(test::Int8{}, row, d, kLanes); }
