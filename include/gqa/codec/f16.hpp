// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of f16.
#pragma once

#include "gqa/codec/element_rows.hpp"

namespace gqa {

namespace codec {
/// Rows of f16.
struct F16 : ElementRows<f16> {};
}  // namespace codec

template <>
struct CodecWithId<2> {
  using type = codec::F16;
};

}  // namespace gqa
