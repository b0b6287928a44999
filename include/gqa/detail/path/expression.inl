// SPDX-License-Identifier: Apache-2.0
// Score expressions on a path's vectors. Part of kernel.inl. A tree's type says what is computed; its numbers are where TreeSlots has put
// them, for each row. `Lanes` says what a lane is:
//
//   TokenLanes   16 tokens of one row
//   RowLanes     16 rows of one token

GQA_OP Vec apply(expression::Add, const Vec& a, const Vec& b) { return add(a, b); }
GQA_OP Vec apply(expression::Subtract, const Vec& a, const Vec& b) { return sub(a, b); }
GQA_OP Vec apply(expression::Multiply, const Vec& a, const Vec& b) { return product(a, b); }
GQA_OP Vec apply(expression::Divide, const Vec& a, const Vec& b) { return div(a, b); }
GQA_OP Vec apply(expression::Negate, const Vec& a) { return negated(a); }
GQA_OP Vec apply(expression::Fma, const Vec& a, const Vec& b, const Vec& c) { return fma(a, b, c); }
GQA_OP Vec apply(expression::Min, const Vec& a, const Vec& b) { return minimum(a, b); }
GQA_OP Vec apply(expression::Max, const Vec& a, const Vec& b) { return maximum(a, b); }
GQA_OP Vec apply(expression::Abs, const Vec& a) { return magnitude(a); }
GQA_OP Vec apply(expression::Exp, const Vec& a) { return exponential(a); }
GQA_OP Vec apply(expression::Log, const Vec& a) { return logarithm(a); }
GQA_OP Vec apply(expression::Tanh, const Vec& a) { return hyperbolic_tangent(a); }
GQA_OP Vec apply(expression::Select, const Vec& c, const Vec& a, const Vec& b) { return select_negative(c, a, b); }
GQA_OP Vec apply(expression::Less, const Vec& a, const Vec& b) { return less(a, b); }
GQA_OP Vec apply(expression::LessEqual, const Vec& a, const Vec& b) { return less_equal(a, b); }
GQA_OP Vec apply(expression::And, const Vec& a, const Vec& b) { return bit_and(a, b); }
GQA_OP Vec apply(expression::Or, const Vec& a, const Vec& b) { return bit_or(a, b); }
GQA_OP Vec apply(expression::Not, const Vec& a) { return opposite(a); }

template <class T>
GQA_OP float looked_up(const RowLookup& from, Index position) {
  return static_cast<float>(static_cast<const T*>(from.data)[position * from.stride]);
}

// Tokens t0 … t0 + 15 of a block, of which only [first, last) may be looked up.
struct TokenLanes {
  const VariantRows& rows;
  Index row;
  Index begin;  // the block's first position
  Index first;
  Index last;
  Index t0;
  Vec score;

  GQA_OP Vec key() const {
    alignas(64) float lane[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (begin + t0 < Index{1} << 28) return add(set1(static_cast<float>(begin + t0)), load(lane));
    // A multiple of 16 need not be a float any more: rounded once, as RowLanes has it.
    for (Index i = 0; i < kLanes; ++i) lane[i] = static_cast<float>(begin + t0 + i);
    return load(lane);
  }
  template <int N>
  GQA_OP Vec constant() const {
    return set1(rows.constants[N * rows.stride + row]);
  }
  template <class T, int N>
  GQA_OP Vec lookup() const {
    const RowLookup from = rows.lookups[N * rows.stride + row];
    if (std::is_same_v<T, float> && from.stride == 1 && first <= t0 && t0 + kLanes <= last)
      return load(static_cast<const float*>(from.data) + begin + t0);
    alignas(64) float lanes[kLanes] = {};
    for (Index t = t0 < first ? first : t0; t < t0 + kLanes && t < last; ++t)
      lanes[t - t0] = looked_up<T>(from, begin + t);
    return load(lanes);
  }
};

// Rows row … row + 15 of a tile, fewer if it has no more, and a token that may be looked up.
struct RowLanes {
  const VariantRows& rows;
  Index row;
  Index count;  // of the tile's
  Index position;
  Vec score;

  GQA_OP Vec key() const { return set1(static_cast<float>(position)); }
  template <int N>
  GQA_OP Vec constant() const {
    return load(rows.constants + N * rows.stride + row);
  }
  template <class T, int N>
  GQA_OP Vec lookup() const {
    alignas(64) float lanes[kLanes] = {};
    for (Index r = 0; r < kLanes && row + r < count; ++r)
      lanes[r] = looked_up<T>(rows.lookups[N * rows.stride + row + r], position);
    return load(lanes);
  }
};

// The value of a tree whose first constant is number C of a row's, its first lookup number L.
template <class E, int C, int L>
struct Evaluated;
template <int C, int L>
struct Evaluated<expression::Score, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return lanes.score;
  }
};
template <int C, int L>
struct Evaluated<expression::Key, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return lanes.key();
  }
};
template <int C, int L>
struct Evaluated<expression::Constant, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return lanes.template constant<C>();
  }
};
template <class T, int C, int L>
struct Evaluated<expression::Lookup<T>, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return lanes.template lookup<T, L>();
  }
};
template <class Op, class A, int C, int L>
struct Evaluated<expression::Unary<Op, A>, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return apply(Op{}, Evaluated<A, C, L>::on(lanes));
  }
};
template <class Op, class A, class B, int C, int L>
struct Evaluated<expression::Binary<Op, A, B>, C, L> {
  using Second = Evaluated<B, C + TreeSize<A>::constants, L + TreeSize<A>::lookups>;
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return apply(Op{}, Evaluated<A, C, L>::on(lanes), Second::on(lanes));
  }
};
template <class Op, class A, class B, class D, int C, int L>
struct Evaluated<expression::Ternary<Op, A, B, D>, C, L> {
  using Second = Evaluated<B, C + TreeSize<A>::constants, L + TreeSize<A>::lookups>;
  using Sizes = SumOfSizes<A, B>;
  using Third = Evaluated<D, C + Sizes::constants, L + Sizes::lookups>;
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return apply(Op{}, Evaluated<A, C, L>::on(lanes), Second::on(lanes), Third::on(lanes));
  }
};

// No change of scores.
struct PlainScore {
  static constexpr bool kChanges = false;
};

// A variant's change of scores: s → log2 e · score(s).
template <class V>
struct VariantScore {
  static constexpr bool kChanges = true;
  // Of tokens t0 … t0 + 15 of a row.
  static GQA_OP Vec tokens(const QueryTile& tile, const Block& block, Index row, Index t0, const Vec& s) {
    if constexpr (ScoreExpression<V>) {
      const TokenLanes lanes{*tile.variant_rows, row, block.begin, block.first, block.last, t0, s};
      return product(Evaluated<ScoreTree<V>, 0, 0>::on(lanes), set1(kLog2E));
    } else {
      const VariantRows& rows = *tile.variant_rows;
      alignas(64) float scores[kLanes];
      store(scores, s);
      for (Index t = t0 < block.first ? block.first : t0; t < t0 + kLanes && t < block.last; ++t) {
        if (block.visible != nullptr && ((block.visible[row] >> t) & 1u) == 0) continue;
        float& score = scores[t - t0];
        score = kLog2E * user_score(*static_cast<const V*>(rows.variant), score, rows.row[row], block.begin + t);
      }
      return load(scores);
    }
  }
  // Of rows row … row + 15, for token t.
  static GQA_OP Vec rows(const QueryTile& tile, const Block& block, Index row, Index t, const Vec& s) {
    if (t < block.first || t >= block.last) return s;
    const VariantRows& rows = *tile.variant_rows;
    if constexpr (ScoreExpression<V>) {
      const RowLanes lanes{rows, row, tile.rows, block.begin + t, s};
      return product(Evaluated<ScoreTree<V>, 0, 0>::on(lanes), set1(kLog2E));
    } else {
      alignas(64) float scores[kLanes];
      store(scores, s);
      for (Index r = 0; r < kLanes && row + r < tile.rows; ++r) {
        if (block.visible != nullptr && ((block.visible[row + r] >> t) & 1u) == 0) continue;
        const RowContext& context = rows.row[row + r];
        scores[r] = kLog2E * user_score(*static_cast<const V*>(rows.variant), scores[r], context, block.begin + t);
      }
      return load(scores);
    }
  }
};

// Which tokens of the block at `begin` a row sees, of the candidates (one at least), by the variant's `visible`.
template <class V>
inline std::uint64_t visible_tokens(const VariantRows& rows, Index row, Index begin, std::uint64_t candidates) {
  using Condition = Evaluated<VisibleTree<V>, ScoreSize<V>::constants, ScoreSize<V>::lookups>;
  const Index first = __builtin_ctzll(candidates);
  const Index last = kBlock - __builtin_clzll(candidates);
  std::uint64_t seen = 0;
  for (Index t0 = first / kLanes * kLanes; t0 < last; t0 += kLanes) {
    const TokenLanes lanes{rows, row, begin, first, last, t0, zero()};
    seen |= std::uint64_t{sign_bits(Condition::on(lanes))} << t0;
  }
  return seen & candidates;
}
