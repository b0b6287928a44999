// SPDX-License-Identifier: Apache-2.0
// Score expressions and their derivatives on a path's vectors: forward-mode differentiation (Griewank and Walther 2008, "Evaluating
// Derivatives", ch. 3). Part of backward.inl. `Seed` says by which leaf:
//
//   ByScore       the score
//   ByLookup<N>   lookup number N of the tree
//
// A part in which the seed does not occur has no slope, by its type: nothing is computed for it, so that 0 · ∞ is not either.

struct ByScore {};
template <int N>
struct ByLookup {};

// A value, and its slope if it has one.
template <bool HasSlope>
struct Dual {
  static constexpr bool kHasSlope = true;
  Vec value;
  Vec slope;
};
template <>
struct Dual<false> {
  static constexpr bool kHasSlope = false;
  Vec value;
};

// The sum of slopes that are there.
template <class A, class B>
GQA_OP Vec sum_of_slopes(const A& a, const B& b) {
  if constexpr (A::kHasSlope && B::kHasSlope) return add(a.slope, b.slope);
  else if constexpr (A::kHasSlope) return a.slope;
  else return b.slope;
}
template <class A>
GQA_OP Vec slope_or_zero(const A& a) {
  if constexpr (A::kHasSlope) return a.slope;
  else return zero();
}
// factor · slope, where there is one.
template <class A>
GQA_OP auto scaled_slope(const A& a, const Vec& factor) {
  if constexpr (A::kHasSlope) return Dual<true>{factor, product(factor, a.slope)};
  else return a;
}

GQA_OP Vec slope_of(expression::Negate, const Vec&, const Vec&) { return set1(-1.0f); }
GQA_OP Vec slope_of(expression::Abs, const Vec& a, const Vec&) {
  const Vec sign = bit_or(bit_and(a, set1(-0.0f)), set1(1.0f));
  return select_negative(equal(a, zero()), zero(), sign);
}
GQA_OP Vec slope_of(expression::Exp, const Vec&, const Vec& value) { return value; }
GQA_OP Vec slope_of(expression::Log, const Vec& a, const Vec&) { return div(set1(1.0f), a); }
GQA_OP Vec slope_of(expression::Tanh, const Vec&, const Vec& value) { return fma(negated(value), value, set1(1.0f)); }

template <class A, class B>
GQA_OP Vec slope_of(expression::Add, const A& a, const B& b, const Vec&) {
  return sum_of_slopes(a, b);
}
template <class A, class B>
GQA_OP Vec slope_of(expression::Subtract, const A& a, const B& b, const Vec&) {
  if constexpr (!B::kHasSlope) return a.slope;
  else if constexpr (!A::kHasSlope) return negated(b.slope);
  else return sub(a.slope, b.slope);
}
template <class A, class B>
GQA_OP Vec slope_of(expression::Multiply, const A& a, const B& b, const Vec&) {
  return sum_of_slopes(scaled_slope(a, b.value), scaled_slope(b, a.value));
}
template <class A, class B>
GQA_OP Vec slope_of(expression::Divide, const A& a, const B& b, const Vec& value) {
  if constexpr (!B::kHasSlope) return div(a.slope, b.value);
  else if constexpr (!A::kHasSlope) return div(negated(product(value, b.slope)), b.value);
  else return div(sub(a.slope, product(value, b.slope)), b.value);
}
// That of the operand that is returned.
template <class A, class B>
GQA_OP Vec slope_of(expression::Min, const A& a, const B& b, const Vec&) {
  const Vec first = select_negative(less(a.value, b.value), slope_or_zero(a), slope_or_zero(b));
  return select_negative(less_equal(a.value, a.value), first, slope_or_zero(a));
}
template <class A, class B>
GQA_OP Vec slope_of(expression::Max, const A& a, const B& b, const Vec&) {
  const Vec first = select_negative(less(b.value, a.value), slope_or_zero(a), slope_or_zero(b));
  return select_negative(less_equal(a.value, a.value), first, slope_or_zero(a));
}

template <class E, int C, int L, class Seed>
struct Slope;

// A part in which no seed may occur.
template <class E, int C, int L>
struct Fixed {
  static constexpr bool kHasSlope = false;
  template <class Lanes>
  static GQA_OP Dual<false> on(const Lanes& lanes) {
    return {Evaluated<E, C, L>::on(lanes)};
  }
};
template <int C, int L>
struct Slope<expression::Score, C, L, ByScore> {
  static constexpr bool kHasSlope = true;
  template <class Lanes>
  static GQA_OP Dual<true> on(const Lanes& lanes) {
    return {lanes.score, set1(1.0f)};
  }
};
template <int C, int L, int N>
struct Slope<expression::Score, C, L, ByLookup<N>> : Fixed<expression::Score, C, L> {};
template <int C, int L, class Seed>
struct Slope<expression::Key, C, L, Seed> : Fixed<expression::Key, C, L> {};
template <int C, int L, class Seed>
struct Slope<expression::Constant, C, L, Seed> : Fixed<expression::Constant, C, L> {};
template <class T, int C, int L>
struct Slope<expression::Lookup<T>, C, L, ByScore> : Fixed<expression::Lookup<T>, C, L> {};
template <class T, int C, int L, int N>
struct Slope<expression::Lookup<T>, C, L, ByLookup<N>> {
  static constexpr bool kHasSlope = L == N;
  template <class Lanes>
  static GQA_OP Dual<L == N> on(const Lanes& lanes) {
    if constexpr (L == N) return {lanes.template lookup<T, L>(), set1(1.0f)};
    else return {lanes.template lookup<T, L>()};
  }
};
template <class Op, class A, int C, int L, class Seed>
struct Slope<expression::Unary<Op, A>, C, L, Seed> {
  using First = Slope<A, C, L, Seed>;
  static constexpr bool kHasSlope = First::kHasSlope && std::is_same_v<typename Op::Kind, expression::OfValue>;
  template <class Lanes>
  static GQA_OP Dual<kHasSlope> on(const Lanes& lanes) {
    if constexpr (!kHasSlope) {
      return {Evaluated<expression::Unary<Op, A>, C, L>::on(lanes)};
    } else {
      const auto a = First::on(lanes);
      const Vec value = apply(Op{}, a.value);
      return {value, product(slope_of(Op{}, a.value, value), a.slope)};
    }
  }
};
template <class Op, class A, class B, int C, int L, class Seed>
struct Slope<expression::Binary<Op, A, B>, C, L, Seed> {
  using First = Slope<A, C, L, Seed>;
  using Second = Slope<B, C + TreeSize<A>::constants, L + TreeSize<A>::lookups, Seed>;
  static constexpr bool kHasSlope =
      (First::kHasSlope || Second::kHasSlope) && std::is_same_v<typename Op::Kind, expression::OfValue>;
  template <class Lanes>
  static GQA_OP Dual<kHasSlope> on(const Lanes& lanes) {
    if constexpr (!kHasSlope) {
      return {Evaluated<expression::Binary<Op, A, B>, C, L>::on(lanes)};
    } else {
      const auto a = First::on(lanes);
      const auto b = Second::on(lanes);
      const Vec value = apply(Op{}, a.value, b.value);
      return {value, slope_of(Op{}, a, b, value)};
    }
  }
};
template <class A, class B, class D, int C, int L, class Seed>
struct Slope<expression::Ternary<expression::Fma, A, B, D>, C, L, Seed> {
  using Sizes = SumOfSizes<A, B>;
  using First = Slope<A, C, L, Seed>;
  using Second = Slope<B, C + TreeSize<A>::constants, L + TreeSize<A>::lookups, Seed>;
  using Third = Slope<D, C + Sizes::constants, L + Sizes::lookups, Seed>;
  static constexpr bool kHasSlope = First::kHasSlope || Second::kHasSlope || Third::kHasSlope;
  template <class Lanes>
  static GQA_OP Dual<kHasSlope> on(const Lanes& lanes) {
    if constexpr (!kHasSlope) {
      return {Evaluated<expression::Ternary<expression::Fma, A, B, D>, C, L>::on(lanes)};
    } else {
      const auto a = First::on(lanes);
      const auto b = Second::on(lanes);
      const auto c = Third::on(lanes);
      const Vec value = fma(a.value, b.value, c.value);
      if constexpr (First::kHasSlope || Second::kHasSlope) {
        const Dual<true> factors{value, slope_of(expression::Multiply{}, a, b, value)};
        return {value, sum_of_slopes(factors, c)};
      } else {
        return {value, c.slope};
      }
    }
  }
};
template <class A, class B, class D, int C, int L, class Seed>
struct Slope<expression::Ternary<expression::Select, A, B, D>, C, L, Seed> {
  using Sizes = SumOfSizes<A, B>;
  using Second = Slope<B, C + TreeSize<A>::constants, L + TreeSize<A>::lookups, Seed>;
  using Third = Slope<D, C + Sizes::constants, L + Sizes::lookups, Seed>;
  static constexpr bool kHasSlope = Second::kHasSlope || Third::kHasSlope;
  template <class Lanes>
  static GQA_OP Dual<kHasSlope> on(const Lanes& lanes) {
    if constexpr (!kHasSlope) {
      return {Evaluated<expression::Ternary<expression::Select, A, B, D>, C, L>::on(lanes)};
    } else {
      const Vec condition = Evaluated<A, C, L>::on(lanes);
      const auto b = Second::on(lanes);
      const auto c = Third::on(lanes);
      return {select_negative(condition, b.value, c.value),
              select_negative(condition, slope_or_zero(b), slope_or_zero(c))};
    }
  }
};
