// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of bf16.
#pragma once

#include "gqa/codec/element_rows.hpp"

namespace gqa {

namespace codec {
/// Rows of bf16.
struct Bf16 : ElementRows<bf16> {};
}  // namespace codec

template <>
struct CodecWithId<1> {
  using type = codec::Bf16;
};

}  // namespace gqa
