// SPDX-License-Identifier: Apache-2.0
// What variants make of scores, their slopes and their masks, 16 rows at a time; gradients by lookups. f32 whatever the products are of:
// included once per set of vector operations, behind its forward kernels and before backward.inl. No include guard, no includes.

#include "gqa/detail/path/slope.inl"

// What a variant V makes of scores, and its slope; void: nothing.
template <class V>
struct BackwardScore {
  static constexpr bool kChanges = true;
  using Tree = ScoreTree<V>;
  static constexpr int kLookups = ScoreSize<V>::lookups;
};
template <>
struct BackwardScore<void> {
  static constexpr bool kChanges = false;
  static constexpr int kLookups = 0;
};

// Scores of rows row … row + 15, token by token, by the seed of a derivative.
template <class Score, class Seed>
struct ScorePanel {
  const BackwardTile& tile;
  const Block& block;
  Index row;
  PanelLookups<Score::kLookups> lookups;

  GQA_OP ScorePanel(const BackwardTile& of, const Block& in, Index first_row) : tile(of), block(in), row(first_row) {
    if constexpr (Score::kChanges) Evaluated<typename Score::Tree, 0, 0>::look_up(*this);
  }
  template <class T, int N>
  GQA_OP void look_up() {
    lookups.template look_up<T, N>(*tile.variant_rows, row, tile.rows, block.begin, block.first, block.last);
  }
  // s: the scaled product. The score in units of log2, and its slope.
  GQA_OP auto operator()(Index t, const Vec& s) const {
    using Lanes = RowLanes<decltype(lookups)>;
    const auto dual =
        Slope<typename Score::Tree, 0, 0, Seed>::on(Lanes{*tile.variant_rows, lookups, row, block.begin, t, s});
    if constexpr (dual.kHasSlope) return Dual<true>{product(dual.value, set1(kLog2E)), dual.slope};
    else return Dual<true>{product(dual.value, set1(kLog2E)), zero()};
  }
};

// Which of 16 rows see a token, token after token from the block's first on.
class PanelMask {
 public:
  GQA_OP PanelMask(const BackwardTile& tile, const Block& block, Index row) : bits_(zero()) {
    for (Index r = 0; r < kLanes; ++r) {
      const std::uint64_t seen = row + r < tile.rows ? block.visible[row + r] : 0;
      half_[0][r] = static_cast<std::uint32_t>(seen);
      half_[1][r] = static_cast<std::uint32_t>(seen >> 32);
    }
    bits_ = load(reinterpret_cast<const float*>(half_[0]));
  }
  // Lanes whose highest bit is set see token t; t ascends by 1 from 0 on.
  GQA_OP Vec next(Index t) {
    if (t == kBlock / 2) bits_ = load(reinterpret_cast<const float*>(half_[1]));
    const Vec seen = shift_left<31>(bits_);
    bits_ = shift_right<1>(bits_);
    return seen;
  }

 private:
  alignas(64) std::uint32_t half_[2][kLanes] = {};
  Vec bits_;
};

// d · slope; d where a weight is 0: of a score of −∞ the slope may be no number.
GQA_OP Vec sloped(const Vec& d, const Vec& weight, const Vec& slope) {
  return select_negative(equal(weight, zero()), d, product(d, slope));
}

// d_lookups[t][row] ← by what lookup N of the variant's score gave; before differentiate().
template <class Score, int N>
inline void differentiate_lookup(const BackwardTile& tile, const Block& block) {
  const Vec scale = set1(tile.scale);
  for (Index row = 0; row < tile.rows; row += kLanes) {
    const ScorePanel<Score, ByLookup<N>> by_lookup(tile, block, row);
    PanelMask mask(tile, block, row);
    const Vec lse = load(tile.lse + row);
    const Vec delta = load(tile.delta + row);
    for (Index t = 0; t < block.last; ++t) {
      const Vec seen = mask.next(t);
      if (t < block.first) continue;
      const auto score = by_lookup(t, product(load(tile.scores + t * kBackwardRows + row), scale));
      const Vec w = exp2_nonpositive(sub(score.value, lse));
      const Vec away = sub(load(tile.d_weights + t * kBackwardRows + row), delta);
      store(tile.d_lookups + t * kBackwardRows + row,
            select_negative(seen, sloped(product(w, away), w, score.slope), zero()));
    }
  }
}

// By number of the lookup; null: the score has no such.
template <class Score, int N = 0>
inline DifferentiateKernel lookup_kernel(Index number) noexcept {
  if constexpr (N < Score::kLookups)
    return number == N ? differentiate_lookup<Score, N> : lookup_kernel<Score, N + 1>(number);
  else return nullptr;
}
