// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of bf16.
#pragma once

#include "gqa/codec/element_rows.hpp"

namespace gqa {

namespace detail {
/// Rows of bf16.
struct Bf16 : ElementRows<bf16> {};
}  // namespace detail

template <>
struct CodecWithId<1> {
  using type = detail::Bf16;
};

}  // namespace gqa
