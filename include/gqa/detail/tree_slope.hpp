// SPDX-License-Identifier: Apache-2.0
/// @file
/// The derivative of a score expression for one pair, in double precision: by the score, or by one of the numbers that it looks up.
#pragma once

#include "gqa/detail/tree_value.hpp"

namespace gqa::detail {

/// What a derivative is taken by: the score, or lookup number L of the tree, in the order of writing (TreeSize, TreeSlots).
struct ByScore {
  template <class E>
  using Behind = ByScore;
};
template <int L>
struct ByLookup {
  /// The same lookup, counted from behind the part E.
  template <class E>
  using Behind = ByLookup<L - TreeSize<E>::lookups>;
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// The derivative of an operation by its operand, or by each of its operands.
struct Slopes {
  double a;
  double b;
  double c = 0.0;
};
inline double slope_of(expression::Negate, double) { return -1.0; }
inline double slope_of(expression::Abs, double a) { return a > 0.0 ? 1.0 : a < 0.0 ? -1.0 : 0.0; }
inline double slope_of(expression::Exp, double a) { return __builtin_exp(a); }
inline double slope_of(expression::Log, double a) { return 1.0 / a; }
inline double slope_of(expression::Tanh, double a) {
  const double value = __builtin_tanh(a);
  return (1.0 - value) * (1.0 + value);
}
inline Slopes slopes_of(expression::Add, double, double) { return {1.0, 1.0}; }
inline Slopes slopes_of(expression::Subtract, double, double) { return {1.0, -1.0}; }
inline Slopes slopes_of(expression::Multiply, double a, double b) { return {b, a}; }
inline Slopes slopes_of(expression::Divide, double a, double b) { return {1.0 / b, -(a / b) / b}; }
inline Slopes slopes_of(expression::Fma, double a, double b, double) { return {b, a, 1.0}; }

/// Whether a part E depends on what By stands for, which its type says, and its derivative then. Keys, constants and conditions do not.
template <class E, class By>
struct TreeSlope {
  static constexpr bool exists = false;
};

/// A factor times the derivative of a part. Nothing of a part without one, whatever the factor: also where that is infinite or NaN.
template <class By, class E>
double slope_share(double factor, const E& part, double score, Index key_position) {
  if constexpr (TreeSlope<E, By>::exists) return factor * TreeSlope<E, By>::at(part, score, key_position);
  else return 0.0;
}

template <>
struct TreeSlope<expression::Score, ByScore> {
  static constexpr bool exists = true;
  static double at(const expression::Score&, double, Index) { return 1.0; }
};
template <class T>
struct TreeSlope<expression::Lookup<T>, ByLookup<0>> {
  static constexpr bool exists = true;
  static double at(const expression::Lookup<T>&, double, Index) { return 1.0; }
};
template <class Op, class A, class By>
requires expression::Value<expression::Unary<Op, A>>
struct TreeSlope<expression::Unary<Op, A>, By> {
  static constexpr bool exists = TreeSlope<A, By>::exists;
  static double at(const expression::Unary<Op, A>& part, double score, Index key_position) {
    const double factor = slope_of(Op{}, tree_value(part.a, score, key_position));
    return slope_share<By>(factor, part.a, score, key_position);
  }
};
template <class Op, class A, class B, class By>
requires expression::Value<expression::Binary<Op, A, B>>
struct TreeSlope<expression::Binary<Op, A, B>, By> {
  using ByInB = typename By::template Behind<A>;
  static constexpr bool exists = TreeSlope<A, By>::exists || TreeSlope<B, ByInB>::exists;
  static double at(const expression::Binary<Op, A, B>& part, double score, Index key_position) {
    const double a = tree_value(part.a, score, key_position);
    const double b = tree_value(part.b, score, key_position);
    if constexpr (requires { takes_first(Op{}, a, b); }) {  // the other operand may have an infinite slope, or none
      if (takes_first(Op{}, a, b)) return slope_share<By>(1.0, part.a, score, key_position);
      return slope_share<ByInB>(1.0, part.b, score, key_position);
    } else {
      const Slopes slopes = slopes_of(Op{}, a, b);
      return slope_share<By>(slopes.a, part.a, score, key_position) +
             slope_share<ByInB>(slopes.b, part.b, score, key_position);
    }
  }
};
template <class A, class B, class C, class By>
struct TreeSlope<expression::Ternary<expression::Fma, A, B, C>, By> {
  using ByInB = typename By::template Behind<A>;
  using ByInC = typename ByInB::template Behind<B>;
  static constexpr bool exists = TreeSlope<A, By>::exists || TreeSlope<B, ByInB>::exists || TreeSlope<C, ByInC>::exists;
  static double at(const expression::Ternary<expression::Fma, A, B, C>& part, double score, Index key_position) {
    const Slopes slopes = slopes_of(expression::Fma{}, tree_value(part.a, score, key_position),
                                    tree_value(part.b, score, key_position), tree_value(part.c, score, key_position));
    return slope_share<By>(slopes.a, part.a, score, key_position) +
           slope_share<ByInB>(slopes.b, part.b, score, key_position) +
           slope_share<ByInC>(slopes.c, part.c, score, key_position);
  }
};
template <class If, class A, class B, class By>
struct TreeSlope<expression::Ternary<expression::Select, If, A, B>, By> {
  using ByInA = typename By::template Behind<If>;
  using ByInB = typename ByInA::template Behind<A>;
  static constexpr bool exists = TreeSlope<A, ByInA>::exists || TreeSlope<B, ByInB>::exists;
  static double at(const expression::Ternary<expression::Select, If, A, B>& part, double score, Index key_position) {
    if (tree_value(part.a, score, key_position)) return slope_share<ByInA>(1.0, part.b, score, key_position);
    return slope_share<ByInB>(1.0, part.c, score, key_position);
  }
};

/// The derivative of a tree's value (tree_value) by what By stands for. Where a minimum, a maximum or a selection changes sides, that of the
/// operand which is the value; of abs at 0, 0.
template <class By, class E>
double tree_slope(const E& tree, double score, Index key_position) {
  return slope_share<By>(1.0, tree, score, key_position);
}

}  // namespace gqa::detail::inline GQA_ABI
