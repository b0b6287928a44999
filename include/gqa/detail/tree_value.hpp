// SPDX-License-Identifier: Apache-2.0
/// @file
/// A score expression's value for one pair, in double precision: what paths are held to.
#pragma once

#include "gqa/expression.hpp"

namespace gqa::detail::inline GQA_ABI {

/// Which operand is the result.
inline bool takes_first(expression::Min, double a, double b) { return __builtin_isnan(a) || a < b; }
inline bool takes_first(expression::Max, double a, double b) { return __builtin_isnan(a) || a > b; }

inline double applied(expression::Add, double a, double b) { return a + b; }
inline double applied(expression::Subtract, double a, double b) { return a - b; }
inline double applied(expression::Multiply, double a, double b) { return a * b; }
inline double applied(expression::Divide, double a, double b) { return a / b; }
inline double applied(expression::Negate, double a) { return -a; }
inline double applied(expression::Fma, double a, double b, double c) { return __builtin_fma(a, b, c); }
inline double applied(expression::Min op, double a, double b) { return takes_first(op, a, b) ? a : b; }
inline double applied(expression::Max op, double a, double b) { return takes_first(op, a, b) ? a : b; }
inline double applied(expression::Abs, double a) { return __builtin_fabs(a); }
inline double applied(expression::Exp, double a) { return __builtin_exp(a); }
inline double applied(expression::Log, double a) { return __builtin_log(a); }
inline double applied(expression::Tanh, double a) { return __builtin_tanh(a); }
inline double applied(expression::Select, bool condition, double a, double b) { return condition ? a : b; }
inline bool applied(expression::Less, double a, double b) { return a < b; }
inline bool applied(expression::LessEqual, double a, double b) { return a <= b; }
inline bool applied(expression::And, bool a, bool b) { return a && b; }
inline bool applied(expression::Or, bool a, bool b) { return a || b; }
inline bool applied(expression::Not, bool a) { return !a; }

inline double tree_value(const expression::Score&, double score, Index) { return score; }
inline double tree_value(const expression::Key&, double, Index key_position) {
  return static_cast<double>(key_position);
}
inline double tree_value(const expression::Constant& part, double, Index) { return static_cast<double>(part.value); }
template <class T>
double tree_value(const expression::Lookup<T>& part, double, Index key_position) {
  return static_cast<double>(static_cast<float>(part.data[key_position * part.stride]));
}
template <class Op, class A>
auto tree_value(const expression::Unary<Op, A>& part, double score, Index key_position);
template <class Op, class A, class B>
auto tree_value(const expression::Binary<Op, A, B>& part, double score, Index key_position);
template <class Op, class A, class B, class C>
auto tree_value(const expression::Ternary<Op, A, B, C>& part, double score, Index key_position);

template <class Op, class A>
auto tree_value(const expression::Unary<Op, A>& part, double score, Index key_position) {
  return applied(Op{}, tree_value(part.a, score, key_position));
}
template <class Op, class A, class B>
auto tree_value(const expression::Binary<Op, A, B>& part, double score, Index key_position) {
  return applied(Op{}, tree_value(part.a, score, key_position), tree_value(part.b, score, key_position));
}
template <class Op, class A, class B, class C>
auto tree_value(const expression::Ternary<Op, A, B, C>& part, double score, Index key_position) {
  return applied(Op{}, tree_value(part.a, score, key_position), tree_value(part.b, score, key_position),
                 tree_value(part.c, score, key_position));
}

}  // namespace gqa::detail::inline GQA_ABI
