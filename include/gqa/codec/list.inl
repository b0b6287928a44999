// SPDX-License-Identifier: Apache-2.0
// The codecs, a line each. Whoever includes the list says which of their files, beside this one, it wants: GQA_CODEC(name) is "name.hpp",
// with a codec's layout and encoding, or "name.inl", with its loads, which every path includes in its region:
//
//   Vec load(Codec, row, d)               elements d … d + 15 of a row, d a multiple of 16, all of them there
//   Vec load_part(Codec, row, d, count)   the first `count` of them, at most 16; zeros behind them, where nothing is read
//
// A row is a pointer to its first byte; of a codec with scales outside of rows a ScaledRow. Loads are written with what every path has:
// its vectors, load_floats_part, load_words, widen_bf16 and so on.
#include GQA_CODEC(f32)
#include GQA_CODEC(bf16)
#include GQA_CODEC(f16)
#include GQA_CODEC(q8_0)
#include GQA_CODEC(q4_0)
#include GQA_CODEC(int8)
#include GQA_CODEC(int4)
#include GQA_CODEC(q5_0)
#include GQA_CODEC(q5_1)
#include GQA_CODEC(iq4_nl)
#include GQA_CODEC(q8_kv)
#include GQA_CODEC(fp8)
#include GQA_CODEC(mxfp4)
