// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of f32: what most paths compute with, as it lies.
#pragma once

#include "gqa/codec/element_rows.hpp"

namespace gqa {

namespace detail {
/// Rows of f32: what most paths compute with, as it lies.
struct F32 : ElementRows<float> {};
}  // namespace detail

template <>
struct CodecWithId<0> {
  using type = detail::F32;
};

}  // namespace gqa
