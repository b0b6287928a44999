// SPDX-License-Identifier: Apache-2.0
// The library's codecs other than plain elements, to be gone through by tests.
#pragma once

#include <string>
#include <vector>

#include "gqa/kv_cache.hpp"

namespace gqa::test {

struct TestedCodec {
  const char* name;
  KvEncoding format;
  detail::RowEncoder encode[detail::kLastElementType + 1];  // the codec's own
  KvType type() const { return format; }
  const detail::RowCodec& rows() const { return *format.codec(); }
};

template <int Id = detail::kLastElementType + 1>
void add_codecs(std::vector<TestedCodec>& codecs) {
  if constexpr (Id < detail::CodecList::size) {
    using C = typename CodecWithId<Id>::type;
    codecs.push_back(
        {C::name, C{}, {detail::encode_row<C, float>, detail::encode_row<C, bf16>, detail::encode_row<C, f16>}});
    add_codecs<Id + 1>(codecs);
  }
}
inline const std::vector<TestedCodec>& tested_codecs() {
  static const std::vector<TestedCodec> all = [] {
    std::vector<TestedCodec> codecs;
    add_codecs(codecs);
    return codecs;
  }();
  return all;
}

/// A row and its scale, if that lies elsewhere.
struct StoredRow {
  std::vector<std::byte> row;
  std::vector<std::byte> scale = std::vector<std::byte>(4);

  bool operator==(const StoredRow&) const = default;
};
template <Element From>
StoredRow encoded(const TestedCodec& codec, const std::vector<From>& from, Index step, Index dim) {
  StoredRow stored{std::vector<std::byte>(static_cast<std::size_t>(codec.type().row_bytes(dim)), std::byte{0x5a})};
  codec.encode[static_cast<int>(ElementTraits<From>::type)](reinterpret_cast<const std::byte*>(from.data()), step, dim,
                                                            stored.row.data(), stored.scale.data());
  return stored;
}
inline StoredRow encoded(const TestedCodec& codec, const std::vector<float>& x) {
  return encoded(codec, x, 1, static_cast<Index>(x.size()));
}
inline std::vector<float> decoded(const TestedCodec& codec, const StoredRow& stored, Index dim) {
  std::vector<float> x(static_cast<std::size_t>(dim), 77.0f);
  codec.rows().decode(stored.row.data(), stored.scale.data(), dim, x.data());
  return x;
}

}  // namespace gqa::test
