// SPDX-License-Identifier: Apache-2.0
/// @file
/// Head counts and widths, static or dynamic.
#pragma once

#include "gqa/detail/config.hpp"

namespace gqa {

/// An extent that is known at run time only; it comes with the constructor or with the call's views.
inline constexpr int dynamic = -1;

/// Head counts and widths of an attention layer. An extent of gqa::dynamic is taken from the views of each call.
struct HeadShape {
  Index query_heads = dynamic;  ///< Hq
  Index kv_heads = dynamic;     ///< Hkv; must divide Hq. Query head h reads KV head h / (Hq / Hkv).
  Index head_dim = dynamic;     ///< D, the width of a query or key row
  Index value_dim = dynamic;    ///< Dv, the width of a value or output row
};

namespace detail {

template <int Extent>
concept HeadExtent = Extent == dynamic || Extent > 0;

template <int QueryHeads, int KvHeads>
inline constexpr bool heads_divide = QueryHeads == dynamic || KvHeads == dynamic || QueryHeads % KvHeads == 0;

}  // namespace detail
}  // namespace gqa
