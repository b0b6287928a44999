// SPDX-License-Identifier: Apache-2.0
// Caches of every codec that the library has.
#pragma once

#include <utility>

#include "gqa/codec.hpp"

namespace gqa::test {

template <class Ids>
struct CachesOfIds;
template <int... Id>
struct CachesOfIds<std::integer_sequence<int, Id...>> {
  using Type = CacheOf<typename CodecWithId<Id>::type...>;
};
using EveryCache = CachesOfIds<std::make_integer_sequence<int, detail::CodecList::size>>::Type;

}  // namespace gqa::test
