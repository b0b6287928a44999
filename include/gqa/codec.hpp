// SPDX-License-Identifier: Apache-2.0
/// @file
/// Codecs: how rows of keys and values are stored. The list of those that the library has, and what a functor is compiled for.
#pragma once

#include <utility>

#define GQA_DETAIL_TEXT(words) #words
#define GQA_CODEC(name) GQA_DETAIL_TEXT(name.hpp)
#include "gqa/codec/list.inl"
#undef GQA_CODEC

#include "gqa/detail/text.hpp"

namespace gqa {

/// One way of storing rows: its type, with which it knows how they lie in memory, and its encoding. `scales` is where the row's scales
/// lie, if the codec has them outside of rows.
///
///     encode<From>(from, step, dim, row, scales)   row ← dim elements of From that lie `step` of them apart
///     decode(row, scales, dim, to)                 to[0 … dim) ← the row as f32
///
/// How kernels load such rows is a second file, gqa/codec/name.inl, compiled once per path: see gqa/codec/list.inl. A program's own codec
/// has an id of its own (CodecWithId), and is compiled into a unit that defines GQA_OWN_CODECS, the name of a file with its loads. The library's
/// are encoded on vectors besides, into the same bytes: see gqa/codec/quantisers.inl.
template <class C>
concept Codec = requires(std::byte* to, const std::byte* from, float* floats) {
  { C::type } -> std::convertible_to<KvType>;
  { C::name } -> std::convertible_to<const char*>;
  C::template encode<float>(from, Index{1}, Index{1}, to, to);
  C::template encode<bf16>(from, Index{1}, Index{1}, to, to);
  C::template encode<f16>(from, Index{1}, Index{1}, to, to);
  C::decode(from, from, Index{1}, floats);
};

namespace detail {

/// Whether there is a codec of an id in gqa/codec/list.inl, or of the program.
template <int Id>
concept CodecId = Codec<typename CodecWithId<Id>::type>;

template <int Id = 0>
consteval int count_codecs() {
  if constexpr (CodecId<Id>) {
    static_assert(CodecWithId<Id>::type::type.id() == Id, "a codec's type has the id that the codec is found by");
    return count_codecs<Id + 1>();
  } else {
    return Id;
  }
}

/// The codecs of gqa/codec/list.inl: those with ids from 0 on.
struct CodecList {
  static constexpr int size = count_codecs();
};
static_assert(CodecList::size <= kFirstOwnCodec, "ids from there on are for programs' own codecs");
static_assert(CodecList::size > kLastElementType, "every element type is a codec");

template <class Ids>
struct CodecNames;
template <int... Id>
struct CodecNames<std::integer_sequence<int, Id...>> {
  static constexpr const char* name[] = {CodecWithId<Id>::type::name...};
};

inline namespace GQA_ABI {

/// "bf16"; "codec 24", if it is not one of the library's.
inline __attribute__((noinline, cold)) Text codec_name(KvType type) {
  if (type.id() >= CodecList::size) return Text("codec ") + to_text(type.id());
  return CodecNames<std::make_integer_sequence<int, CodecList::size>>::name[type.id()];
}

}  // namespace GQA_ABI

/// Sets of codecs: bit i is the codec with id i.
GQA_ALWAYS_INLINE constexpr unsigned codec_bit(KvType type) noexcept { return 1u << static_cast<unsigned>(type.id()); }
GQA_ALWAYS_INLINE constexpr bool is_among(unsigned codecs, KvType type) noexcept {
  return type.id() < kMostCodecs && (codecs & codec_bit(type)) != 0;
}

/// One more than the largest id among them.
GQA_ALWAYS_INLINE constexpr int bits_of(unsigned codecs) noexcept { return codecs == 0 ? 0 : 32 - __builtin_clz(codecs); }

/// float → detail::F32; a codec is itself.
template <class T>
struct CodecOf {
  using type = T;
};
template <Element T>
struct CodecOf<T> {
  using type = typename CodecWithId<static_cast<int>(ElementTraits<std::remove_cv_t<T>>::type)>::type;
};
/// What a cache may be compiled for.
template <class T>
concept Storable = Element<T> ||(Codec<T>&& CodecId<static_cast<int>(T::type.id())>);

}  // namespace detail

/// The types that keys and values may have in the caches a functor is given: elements (float, gqa::bf16, gqa::f16) and codecs. A functor is
/// compiled for these alone: for one type in two thirds of the time, and of the size, that the three element types take. Queries and
/// outputs may have any element type.
template <detail::Storable... T>
requires(sizeof...(T) > 0) struct CacheOf {
  /// Bit i: the codec with id i is among them.
  static constexpr unsigned types = (detail::codec_bit(detail::CodecOf<T>::type::type) | ...);
};

/// Plain rows of every element type, chosen by each call's views.
using AnyCache = CacheOf<float, bf16, f16>;

namespace detail {

template <class T>
inline constexpr bool is_cache_of = false;
template <class... T>
inline constexpr bool is_cache_of<CacheOf<T...>> = true;

/// gqa::CacheOf of one or more types.
template <class T>
concept CacheTypes = is_cache_of<T>;

}  // namespace detail
}  // namespace gqa
