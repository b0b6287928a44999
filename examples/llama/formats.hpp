// SPDX-License-Identifier: Apache-2.0
/// @file
/// How keys and values may be stored, by name, and attention over all of these.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "gqa/gqa.hpp"

namespace llama {

using gqa::Index;

/// Keys by one codec, values by another.
struct Format {
  std::string k_name, v_name;
  gqa::KvEncoding k, v;

  std::string name() const { return k_name == v_name ? k_name : k_name + " / " + v_name; }
};

/// Whether rows of these widths can be stored so: ggml's formats take whole blocks alone.
inline bool takes(const Format& format, const gqa::HeadShape& shape) {
  const auto whole = [](gqa::KvType type, Index dim) {
    return !type.whole_blocks() || dim % type.block_elements() == 0;
  };
  return whole(format.k, shape.head_dim) && whole(format.v, shape.value_dim);
}

/// Bytes of a token's keys and values, one KV head.
inline Index token_bytes(const Format& format, const gqa::HeadShape& shape) {
  const auto bytes = [](gqa::KvType type, Index dim) { return type.row_bytes(dim) + type.scale_bytes(); };
  return bytes(format.k, shape.head_dim) + bytes(format.v, shape.value_dim);
}

/// Bits of memory an element, of keys and values together.
inline double bits(const Format& format, const gqa::HeadShape& shape) {
  return 8 * static_cast<double>(token_bytes(format, shape)) / static_cast<double>(shape.head_dim + shape.value_dim);
}

/// All of them: first f32, the one that others are held against; those of one codec, then some with two.
inline std::vector<Format> every_format() {
  struct Named {
    const char* name;
    gqa::KvEncoding encoding;
  };
  using gqa::ElementType;
  const auto codec = []<class C>(C) { return Named{C::name, C{}}; };
  const Named int8 = codec(gqa::Int8{}), int4 = codec(gqa::Int4{}), q8_0 = codec(gqa::Q8_0{}),
              q4_0 = codec(gqa::Q4_0{}), q5_0 = codec(gqa::Q5_0{}), bf16 = {"bf16", ElementType::bf16};
  const Named one_codec[] = {{"f32", ElementType::f32},
                             {"f16", ElementType::f16},
                             bf16,
                             int8,
                             q8_0,
                             codec(gqa::Q8Kv{}),
                             codec(gqa::Fp8E4M3{}),
                             codec(gqa::Fp8E5M2{}),
                             codec(gqa::Q5_1{}),
                             q5_0,
                             codec(gqa::Iq4Nl{}),
                             q4_0,
                             int4,
                             codec(gqa::Mxfp4{})};
  std::vector<Format> made;
  const auto add = [&](const Named& k, const Named& v) { made.push_back({k.name, v.name, k.encoding, v.encoding}); };
  for (const Named& both : one_codec) add(both, both);
  add(q8_0, q4_0);
  add(q4_0, q8_0);
  add(q5_0, q4_0);
  add(int8, int4);
  add(int4, int8);
  return made;
}

/// The names that format_named knows.
inline std::vector<std::string> format_names() {
  std::vector<std::string> made;
  for (const Format& format : every_format())
    if (format.k_name == format.v_name) made.push_back(format.k_name);
  return made;
}

/// Keys and values by one codec. @throws std::invalid_argument if there is none of that name
inline Format format_named(const std::string& name) {
  std::string names;
  for (const Format& format : every_format()) {
    if (format.k_name != format.v_name) continue;
    if (format.k_name == name) return format;
    names += (names.empty() ? "" : ", ") + format.k_name;
  }
  throw std::invalid_argument("codec: " + name + "; expected one of " + names);
}

/// Any head counts and widths, over caches of every codec of the library.
using Attention = gqa::GroupedQueryAttention<
    gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic,
    gqa::CacheOf<float, gqa::bf16, gqa::f16, gqa::Int8, gqa::Int4, gqa::Q8_0, gqa::Q5_1, gqa::Q5_0, gqa::Q4_0,
                 gqa::Iq4Nl, gqa::Q8Kv, gqa::Fp8E4M3, gqa::Fp8E5M2, gqa::Mxfp4>>;

}  // namespace llama
