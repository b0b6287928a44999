// SPDX-License-Identifier: Apache-2.0
/// @file
/// Score expressions: a change of scores, or a mask, that is written once in plain C++ and evaluated on the vectors of every path.
#pragma once

#include <concepts>
#include <cstring>
#include <type_traits>

#include "gqa/element.hpp"

namespace gqa {

/// What a variant is told of a query token.
struct QueryContext {
  Index position = 0;  ///< in its sequence
  Index query = 0;     ///< its row of q, 0 … n_q − 1
  Index sequence = 0;  ///< the sequence's index in the batch
};

/// What a variant is told of a query row, a query token and a query head.
struct RowContext : QueryContext {
  Index query_head = 0;
};

/// What a variant's check is told of a sequence.
struct SequenceContext {
  Index sequence = 0;        ///< its index in the batch
  Index query_heads = 0;     ///< Hq
  Index kv_heads = 0;        ///< Hkv
  Index queries = 0;         ///< n_q
  Index kv_length = 0;       ///< n_kv
  Index first_position = 0;  ///< the least position of a query
  Index last_position = 0;   ///< and the largest
  Index value_dim = 0;       ///< Dv
};

/// The logits of an output row's gate: Dv elements, next to each other. Implicit of a pointer to them.
struct GateRow {
  const void* data = nullptr;
  ElementType type = ElementType::f32;

  GQA_ALWAYS_INLINE constexpr GateRow() noexcept {}
  GQA_ALWAYS_INLINE constexpr GateRow(const void* first, ElementType element) noexcept : data(first), type(element) {}
  GQA_ALWAYS_INLINE constexpr GateRow(const float* first) noexcept : data(first) {}
  GQA_ALWAYS_INLINE constexpr GateRow(const bf16* first) noexcept : data(first), type(ElementType::bf16) {}
  GQA_ALWAYS_INLINE constexpr GateRow(const f16* first) noexcept : data(first), type(ElementType::f16) {}
};

/// The parts of a score expression. A variant's `score(s, row, k)` or `visible(row, k)` is called once for each query row of a call, with
/// a leaf `s` for the score (in natural units, scaled) and a leaf `k` for the key's position; what it returns is a tree whose *type* says what
/// is computed, and whose constants are the row's own. Paths evaluate that type on their vectors:
///
///     struct CapAndAlibi : gqa::Causal {
///       float cap;
///       const float* slopes;  // one for each query head
///       auto score(auto s, const gqa::RowContext& row, auto k) const {
///         return cap * tanh(s / cap) - slopes[row.query_head] * (row.position - k);
///       }
///     };
///
/// Every node is one operation in f32, rounded by itself; a fused multiply-add only where fma() is written. So the bits are the same on every
/// f32 path, whatever the unit's flags. What a tree may have:
///
/// | part | |
/// | --- | --- |
/// | `s`, `k` | the score; the key's position as a float, exact below 2^24 |
/// | a number | captured when the tree is built: as a float |
/// | `lookup(pointer, k)`, `lookup(pointer, k, stride)` | `pointer[position · stride]` of float, bf16, f16, std::int32_t, std::uint8_t or bool, for the positions of the cache |
/// | `+ − · /`, unary `−` | IEEE's, rounded to nearest |
/// | `fma(a, b, c)` | a·b + c, rounded once |
/// | `min max abs` | of NaN: NaN |
/// | `exp log tanh` | the library's own: error below 2 units in the last place for exp and log, 3 for tanh |
/// | `< <= > >= == != && \|\| !` | conditions, false where a side is NaN (but for !=) |
/// | `select(condition, a, b)` | a where it holds, else b |
///
/// Conditions are what `visible` returns, and what select takes. Trees hold numbers and pointers by value and refer to nothing else.
namespace expression {

/// What a node is: a number for each score, or true or false.
struct OfValue {};
struct OfCondition {};

template <class E>
concept Condition = std::same_as<typename E::ExpressionKind, OfCondition>;
template <class E>
concept Value = std::same_as<typename E::ExpressionKind, OfValue>;
template <class T>
concept Number = std::is_arithmetic_v<T>;

/// The score.
struct Score {
  using ExpressionKind = OfValue;
};
/// The key's position.
struct Key {
  using ExpressionKind = OfValue;
};
/// A number of the row's.
struct Constant {
  using ExpressionKind = OfValue;
  float value;
  GQA_ALWAYS_INLINE constexpr explicit Constant(float number) noexcept : value(number) {}
};
/// data[position · stride].
template <class T>
struct Lookup {
  using ExpressionKind = OfValue;
  const T* data;
  Index stride;
  GQA_ALWAYS_INLINE constexpr Lookup(const T* first, Index step) noexcept : data(first), stride(step) {}
};
/// An operation of one, two or three values or conditions.
template <class Op, class A>
struct Unary {
  using ExpressionKind = typename Op::Kind;
  A a;
  GQA_ALWAYS_INLINE constexpr explicit Unary(const A& x) noexcept : a(x) {}
};
template <class Op, class A, class B>
struct Binary {
  using ExpressionKind = typename Op::Kind;
  A a;
  B b;
  GQA_ALWAYS_INLINE constexpr Binary(const A& x, const B& y) noexcept : a(x), b(y) {}
};
template <class Op, class A, class B, class C>
struct Ternary {
  using ExpressionKind = typename Op::Kind;
  A a;
  B b;
  C c;
  GQA_ALWAYS_INLINE constexpr Ternary(const A& x, const B& y, const C& z) noexcept : a(x), b(y), c(z) {}
};

/// What is computed of values, and what is found out about them.
template <class K>
struct Operation {
  using Kind = K;
};
struct Add : Operation<OfValue> {};
struct Subtract : Operation<OfValue> {};
struct Multiply : Operation<OfValue> {};
struct Divide : Operation<OfValue> {};
struct Negate : Operation<OfValue> {};
struct Fma : Operation<OfValue> {};
struct Min : Operation<OfValue> {};
struct Max : Operation<OfValue> {};
struct Abs : Operation<OfValue> {};
struct Exp : Operation<OfValue> {};
struct Log : Operation<OfValue> {};
struct Tanh : Operation<OfValue> {};
struct Select : Operation<OfValue> {};
struct Less : Operation<OfCondition> {};
struct LessEqual : Operation<OfCondition> {};
struct And : Operation<OfCondition> {};
struct Or : Operation<OfCondition> {};
struct Not : Operation<OfCondition> {};

/// A node or a number, as a node.
template <Value E>
GQA_ALWAYS_INLINE constexpr E part(const E& node) noexcept {
  return node;
}
template <Number T>
GQA_ALWAYS_INLINE constexpr Constant part(T number) noexcept {
  return Constant(static_cast<float>(number));
}
template <class T>
using PartOf = decltype(part(std::declval<const T&>()));

/// Operands of which one at least is a node.
template <class A, class B>
concept Operands = (Value<A> || Number<A>)&&(Value<B> || Number<B>)&&(Value<A> || Value<B>);
template <class A, class B, class C>
concept ThreeOperands = (Value<A> || Number<A>)&&(Value<B> || Number<B>)&&(Value<C> || Number<C>)&&(Value<A> ||
                                                                                                    Value<B> ||
                                                                                                    Value<C>);

#define GQA_DETAIL_BINARY(function, Op)                                                                \
  template <class A, class B>                                                                          \
  requires Operands<A, B> GQA_ALWAYS_INLINE constexpr auto function(const A& a, const B& b) noexcept { \
    return Binary<Op, PartOf<A>, PartOf<B>>(part(a), part(b));                                         \
  }
GQA_DETAIL_BINARY(operator+, Add)
GQA_DETAIL_BINARY(operator-, Subtract)
GQA_DETAIL_BINARY(operator*, Multiply)
GQA_DETAIL_BINARY(operator/, Divide)
GQA_DETAIL_BINARY((min), Min)  // in parentheses, because other headers have macros of these names
GQA_DETAIL_BINARY((max), Max)
GQA_DETAIL_BINARY(operator<, Less)
GQA_DETAIL_BINARY(operator<=, LessEqual)
#undef GQA_DETAIL_BINARY

#define GQA_DETAIL_UNARY(function, Op)                             \
  template <Value A>                                               \
  GQA_ALWAYS_INLINE constexpr auto function(const A& a) noexcept { \
    return Unary<Op, A>(a);                                        \
  }
GQA_DETAIL_UNARY(operator-, Negate)
GQA_DETAIL_UNARY((abs), Abs)
GQA_DETAIL_UNARY(exp, Exp)
GQA_DETAIL_UNARY(log, Log)
GQA_DETAIL_UNARY(tanh, Tanh)
#undef GQA_DETAIL_UNARY

template <class A, class B>
requires Operands<A, B> GQA_ALWAYS_INLINE constexpr auto operator>(const A& a, const B& b) noexcept { return b < a; }
template <class A, class B>
requires Operands<A, B> GQA_ALWAYS_INLINE constexpr auto operator>=(const A& a, const B& b) noexcept { return b <= a; }

#if !defined(__clang__)  // -Weffc++ says what the next line does
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Weffc++"
#endif
/// Of conditions. Both sides are evaluated.
template <Condition A, Condition B>
GQA_ALWAYS_INLINE constexpr auto operator&&(const A& a, const B& b) noexcept {
  return Binary<And, A, B>(a, b);
}
template <Condition A, Condition B>
GQA_ALWAYS_INLINE constexpr auto operator||(const A& a, const B& b) noexcept {
  return Binary<Or, A, B>(a, b);
}
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
template <Condition A>
GQA_ALWAYS_INLINE constexpr auto operator!(const A& a) noexcept {
  return Unary<Not, A>(a);
}
template <class A, class B>
requires Operands<A, B> GQA_ALWAYS_INLINE constexpr auto operator==(const A& a, const B& b) noexcept {
  return a <= b && b <= a;
}
template <class A, class B>
requires Operands<A, B> GQA_ALWAYS_INLINE constexpr auto operator!=(const A& a, const B& b) noexcept {
  return !(a <= b && b <= a);
}

/// a·b + c, rounded once.
template <class A, class B, class C>
requires ThreeOperands<A, B, C> GQA_ALWAYS_INLINE constexpr auto fma(const A& a, const B& b, const C& c) noexcept {
  return Ternary<Fma, PartOf<A>, PartOf<B>, PartOf<C>>(part(a), part(b), part(c));
}
/// a where the condition holds, else b.
template <Condition If, class A, class B>
requires(Value<A> || Number<A>) && (Value<B> || Number<B>)GQA_ALWAYS_INLINE
    constexpr auto select(const If& condition, const A& a, const B& b) noexcept {
  return Ternary<Select, If, PartOf<A>, PartOf<B>>(condition, part(a), part(b));
}
/// What may be looked up: numbers of at most 32 bits, bf16 and f16.
template <class T>
concept LookedUp = std::same_as<T, float> || std::same_as<T, bf16> || std::same_as<T, f16> ||
    std::same_as<T, std::int32_t> || std::same_as<T, std::uint8_t> || std::same_as<T, bool>;
/// data[position · stride] of the key's position: biases, document numbers. Is read for positions that the cache has, in blocks in which some
/// row sees something; lives as long as the call. int32 beyond ±2^24 is rounded.
template <LookedUp T>
GQA_ALWAYS_INLINE constexpr auto lookup(const T* data, const Key&, Index stride = 1) noexcept {
  return Lookup<T>(data, stride);
}

}  // namespace expression

namespace detail {

/// A row's lookup, of either type.
struct RowLookup {
  const void* data = nullptr;
  Index stride = 0;  ///< elements
};

/// How many constants and lookups a tree has, in the order of writing.
template <class E>
struct TreeSize;
template <class... Parts>
struct SumOfSizes {
  static constexpr int constants = (0 + ... + TreeSize<Parts>::constants);
  static constexpr int lookups = (0 + ... + TreeSize<Parts>::lookups);
};
template <>
struct TreeSize<expression::Score> : SumOfSizes<> {};
template <>
struct TreeSize<expression::Key> : SumOfSizes<> {};
template <>
struct TreeSize<expression::Constant> {
  static constexpr int constants = 1;
  static constexpr int lookups = 0;
};
template <class T>
struct TreeSize<expression::Lookup<T>> {
  static constexpr int constants = 0;
  static constexpr int lookups = 1;
};
template <class Op, class A>
struct TreeSize<expression::Unary<Op, A>> : SumOfSizes<A> {};
template <class Op, class A, class B>
struct TreeSize<expression::Binary<Op, A, B>> : SumOfSizes<A, B> {};
template <class Op, class A, class B, class C>
struct TreeSize<expression::Ternary<Op, A, B, C>> : SumOfSizes<A, B, C> {};

/// Where a tree's numbers go: constant i of a row to constants[i · stride], lookup i to lookups[i · stride].
struct TreeSlots {
  float* constants = nullptr;
  RowLookup* lookups = nullptr;
  Index stride = 1;

  GQA_ALWAYS_INLINE void put(const expression::Score&) noexcept {}
  GQA_ALWAYS_INLINE void put(const expression::Key&) noexcept {}
  GQA_ALWAYS_INLINE void put(const expression::Constant& part) noexcept {
    *constants = part.value;
    constants += stride;
  }
  template <class T>
  GQA_ALWAYS_INLINE void put(const expression::Lookup<T>& part) noexcept {
    *lookups = {part.data, part.stride};
    lookups += stride;
  }
  template <class Op, class A>
  GQA_ALWAYS_INLINE void put(const expression::Unary<Op, A>& part) noexcept {
    put(part.a);
  }
  template <class Op, class A, class B>
  GQA_ALWAYS_INLINE void put(const expression::Binary<Op, A, B>& part) noexcept {
    put(part.a);
    put(part.b);
  }
  template <class Op, class A, class B, class C>
  GQA_ALWAYS_INLINE void put(const expression::Ternary<Op, A, B, C>& part) noexcept {
    put(part.a);
    put(part.b);
    put(part.c);
  }
};

}  // namespace detail
}  // namespace gqa
