// SPDX-License-Identifier: Apache-2.0
// The loads of every codec, and of the program's own. Part of a path, after its vector operations.

#define GQA_CODEC(name) GQA_DETAIL_TEXT(name.inl)
#include "gqa/codec/list.inl"
#undef GQA_CODEC
#if defined(GQA_OWN_CODECS)
#include GQA_OWN_CODECS
#endif

// Whether this path can load a codec's rows.
template <class Codec>
inline constexpr bool kLoads = requires(RowOf<Codec> row) {
  load(Codec{}, row, Index{0});
  load_part(Codec{}, row, Index{0}, Index{0});
};
