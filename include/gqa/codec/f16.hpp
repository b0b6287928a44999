// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of f16.
#pragma once

#include "gqa/codec/element_rows.hpp"

namespace gqa {

namespace detail {
/// Rows of f16.
struct F16 : ElementRows<f16> {};
}  // namespace detail

template <>
struct CodecWithId<2> {
  using type = detail::F16;
};

}  // namespace gqa
