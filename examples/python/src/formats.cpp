// SPDX-License-Identifier: Apache-2.0
#include "formats.hpp"

namespace gqa::python {

namespace {

struct Format {
  const char* name;
  KvEncoding encoding;
};
const Format kFormats[] = {
    {"f32", ElementType::f32}, {"bf16", ElementType::bf16},
    {"f16", ElementType::f16}, {"int8", Int8{}},
    {"int4", Int4{}},          {"q8_0", Q8_0{}},
    {"q5_1", Q5_1{}},          {"q5_0", Q5_0{}},
    {"q4_0", Q4_0{}},          {"iq4_nl", Iq4Nl{}},
    {"q8_kv", Q8Kv{}},         {"fp8_e4m3", Fp8E4M3{}},
    {"fp8_e5m2", Fp8E5M2{}},   {"mxfp4", Mxfp4{}},
};

std::string in_short(const std::string& name) {
  return name == "float32" ? "f32" : name == "bfloat16" ? "bf16" : name == "float16" ? "f16" : name;
}

}  // namespace

KvEncoding encoding_named(const std::string& name, const std::string& argument) {
  std::string names;
  for (const Format& format : kFormats) {
    if (in_short(name) == format.name) return format.encoding;
    names += std::string(names.empty() ? "" : ", ") + format.name;
  }
  fail(argument, "\"" + name + "\"", "one of " + names);
}

std::string format_name(KvType type) {
  for (const Format& format : kFormats)
    if (static_cast<KvType>(format.encoding) == type) return format.name;
  return "unknown";
}

ElementType element_named(const std::string& name, const std::string& argument) {
  const std::string word = in_short(name);
  if (word != "f32" && word != "bf16" && word != "f16") fail(argument, "\"" + name + "\"", "f32, bf16 or f16");
  return static_cast<KvType>(encoding_named(word, argument));
}

}  // namespace gqa::python
