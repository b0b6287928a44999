// SPDX-License-Identifier: Apache-2.0
/// @file
/// From a codec's number to the codec.
#pragma once

#include "gqa/kv_type.hpp"

namespace gqa {

/// The codec whose type has an id: CodecWithId<0>::type is that of f32. Each codec says its own, in its header. The library's begin at 0 and
/// have no gaps; a program may give its own codecs the ids from kFirstOwnCodec to kMostCodecs − 1, each one codec in all of its units.
template <int Id>
struct CodecWithId {};

/// Ids are the bits of a set.
inline constexpr int kMostCodecs = 32;
inline constexpr int kFirstOwnCodec = 24;

}  // namespace gqa
