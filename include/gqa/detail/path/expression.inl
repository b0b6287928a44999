// SPDX-License-Identifier: Apache-2.0
// Score expressions on a path's vectors. Part of kernel.inl. A tree's type says what is computed; its numbers are where TreeSlots has put
// them, for each row. `Lanes` says what a lane is:
//
//   TokenLanes   16 tokens of one row
//   RowLanes     16 rows of one token, whose numbers have been looked up row by row before: PanelLookups

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

// Elements 0 … 15 of p, as floats.
template <class T>
GQA_OP Vec sixteen(const T* p) {
  if constexpr (std::is_same_v<T, float>) {
    return load(p);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return load(Bf16{}, reinterpret_cast<const std::byte*>(p), 0);
  } else if constexpr (std::is_same_v<T, f16>) {
    return load(F16{}, reinterpret_cast<const std::byte*>(p), 0);
  } else {
    alignas(64) float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(p[i]);
    return load(lanes);
  }
}
// What a row looks up for tokens t0 … t0 + 15 of the block at `begin`, of which only [first, last) may be; 0 for the others.
template <class T>
GQA_OP Vec looked_up(const RowLookup& from, Index begin, Index t0, Index first, Index last) {
  const T* const data = static_cast<const T*>(from.data);
  if (from.stride == 1 && first <= t0 && t0 + kLanes <= last) return sixteen(data + begin + t0);
  alignas(64) float lanes[kLanes] = {};
  for (Index t = t0 < first ? first : t0; t < t0 + kLanes && t < last; ++t)
    lanes[t - t0] = static_cast<float>(data[(begin + t) * from.stride]);
  return load(lanes);
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
    return looked_up<T>(rows.lookups[N * rows.stride + row], begin, t0, first, last);
  }
};

// What rows row … row + 15 of a tile, fewer if it has no more, look up for the tokens of a block, of which only [first, last) may be.
template <int Count>
struct PanelLookups {
  alignas(64) float number[Count][kBlock][kLanes];  // [lookup][token][row]

  template <class T, int N>
  GQA_OP void look_up(const VariantRows& rows, Index row, Index count, Index begin, Index first, Index last) {
    GQA_NO_UNROLL
    for (Index t0 = first / kLanes * kLanes; t0 < last; t0 += kLanes) {
      Vec of_row[kLanes];
      for (Index r = 0; r < kLanes; ++r)
        of_row[r] =
            row + r < count ? looked_up<T>(rows.lookups[N * rows.stride + row + r], begin, t0, first, last) : zero();
      transpose(of_row);
      GQA_UNROLL
      for (int t = 0; t < kLanes; ++t) store(number[N][t0 + t], of_row[t]);
    }
  }
};
template <>
struct PanelLookups<0> {};

// Rows row … row + 15, and token t of the block at `begin`.
template <class Lookups>
struct RowLanes {
  const VariantRows& rows;
  const Lookups& lookups;
  Index row;
  Index begin;
  Index t;
  Vec score;

  GQA_OP Vec key() const { return set1(static_cast<float>(begin + t)); }
  template <int N>
  GQA_OP Vec constant() const {
    return load(rows.constants + N * rows.stride + row);
  }
  template <class T, int N>
  GQA_OP Vec lookup() const {
    return load(lookups.number[N][t]);
  }
};

// The value of a tree whose first constant is number C of a row's, its first lookup number L. look_up(f) calls
// f.look_up<T, L>() for each lookup.
template <class E, int C, int L>
struct Evaluated;
template <int C, int L>
struct Evaluated<expression::Score, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return lanes.score;
  }
  template <class F>
  static GQA_OP void look_up(F&) {}
};
template <int C, int L>
struct Evaluated<expression::Key, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return lanes.key();
  }
  template <class F>
  static GQA_OP void look_up(F&) {}
};
template <int C, int L>
struct Evaluated<expression::Constant, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return lanes.template constant<C>();
  }
  template <class F>
  static GQA_OP void look_up(F&) {}
};
template <class T, int C, int L>
struct Evaluated<expression::Lookup<T>, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return lanes.template lookup<T, L>();
  }
  template <class F>
  static GQA_OP void look_up(F& f) {
    f.template look_up<T, L>();
  }
};
template <class Op, class A, int C, int L>
struct Evaluated<expression::Unary<Op, A>, C, L> {
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return apply(Op{}, Evaluated<A, C, L>::on(lanes));
  }
  template <class F>
  static GQA_OP void look_up(F& f) {
    Evaluated<A, C, L>::look_up(f);
  }
};
template <class Op, class A, class B, int C, int L>
struct Evaluated<expression::Binary<Op, A, B>, C, L> {
  using Second = Evaluated<B, C + TreeSize<A>::constants, L + TreeSize<A>::lookups>;
  template <class Lanes>
  static GQA_OP Vec on(const Lanes& lanes) {
    return apply(Op{}, Evaluated<A, C, L>::on(lanes), Second::on(lanes));
  }
  template <class F>
  static GQA_OP void look_up(F& f) {
    Evaluated<A, C, L>::look_up(f);
    Second::look_up(f);
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
  template <class F>
  static GQA_OP void look_up(F& f) {
    Evaluated<A, C, L>::look_up(f);
    Second::look_up(f);
    Third::look_up(f);
  }
};

// No change of scores.
struct PlainScore {
  static constexpr bool kChanges = false;
  struct Panel {
    GQA_OP Panel(const QueryTile&, const Block&, Index, Index, Index) {}
    GQA_OP Vec operator()(Index, const Vec& s) const { return s; }
  };
};

// A variant's change of scores: s → log2 e · score(s).
template <class V>
struct VariantScore;

template <class V>
requires(ScoreExpression<V>) struct VariantScore<V> {
  static constexpr bool kChanges = true;
  using Tree = Evaluated<ScoreTree<V>, 0, 0>;
  // Of tokens t0 … t0 + 15 of a row.
  static GQA_OP Vec tokens(const QueryTile& tile, const Block& block, Index row, Index t0, const Vec& s) {
    const TokenLanes lanes{*tile.variant_rows, row, block.begin, block.first, block.last, t0, s};
    return product(Tree::on(lanes), set1(kLog2E));
  }
  // Of rows row … row + 15, for tokens in [from, to), token by token.
  struct Panel {
    const QueryTile& tile;
    const Block& block;
    Index row;
    Index first;
    Index last;
    PanelLookups<ScoreSize<V>::lookups> lookups;

    GQA_OP Panel(const QueryTile& of, const Block& in, Index from_row, Index from, Index to)
        : tile(of),
          block(in),
          row(from_row),
          first(in.first > from ? in.first : from),
          last(in.last < to ? in.last : to) {
      Tree::look_up(*this);
    }
    template <class T, int N>
    GQA_OP void look_up() {
      lookups.template look_up<T, N>(*tile.variant_rows, row, tile.rows, block.begin, first, last);
    }
    GQA_OP Vec operator()(Index t, const Vec& s) const {
      if (t < first || t >= last) return s;
      const RowLanes<decltype(lookups)> lanes{*tile.variant_rows, lookups, row, block.begin, t, s};
      return product(Tree::on(lanes), set1(kLog2E));
    }
  };
};

template <class V>
requires(!ScoreExpression<V>) struct VariantScore<V> {
  static constexpr bool kChanges = true;
  static GQA_OP Vec tokens(const QueryTile& tile, const Block& block, Index row, Index t0, const Vec& s) {
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
  struct Panel {
    const QueryTile& tile;
    const Block& block;
    Index row;

    GQA_OP Panel(const QueryTile& of, const Block& in, Index from_row, Index, Index)
        : tile(of), block(in), row(from_row) {}
    GQA_OP Vec operator()(Index t, const Vec& s) const {
      if (t < block.first || t >= block.last) return s;
      const VariantRows& rows = *tile.variant_rows;
      alignas(64) float scores[kLanes];
      store(scores, s);
      for (Index r = 0; r < kLanes && row + r < tile.rows; ++r) {
        if (block.visible != nullptr && ((block.visible[row + r] >> t) & 1u) == 0) continue;
        const RowContext& context = rows.row[row + r];
        scores[r] = kLog2E * user_score(*static_cast<const V*>(rows.variant), scores[r], context, block.begin + t);
      }
      return load(scores);
    }
  };
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
