// SPDX-License-Identifier: Apache-2.0
// The kernels of the backward pass: included once per path behind its forward kernels and backward_scores.inl, inside its namespace and region.
// No include guard, no includes. `Word` is what a product takes of one operand in a lane, see BackwardTile; a path has, besides FloatWord below:
//
//   kGradientRows      rows of a product's micro-tile
//   kGradientVectors   vectors of it: 1 or 2
//
// All five products go through one micro-kernel: c[m][n] (+)= Σ_k a(m, k) · b[k][n], one chain of multiply-adds an element, k ascending: so
// its bits do not depend on how the tile is cut, and are the same on every f32 path.
//
//   backward_products.inl   the micro-kernel, and the five products
//   backward_rows.inl       rows in: keys, values, queries and gradients as words; rows out
//   backward_softmax.inl    weights and gradients of scores

// One f32.
struct FloatWord {
  static constexpr int kElements = 1;
  static GQA_OP Vec splat(const float* word) { return set1(*word); }
  static GQA_OP Vec add(const Vec& a, const Vec& b, const Vec& sum) { return fma(a, b, sum); }
  // The words of lanes, element by element.
  static GQA_OP Vec join(const Vec (&elements)[1]) { return elements[0]; }
  // Elements d … d + 15 of a row of words.
  static GQA_OP void put(float* row, Index d, const Vec& elements) { store(row + d, elements); }
  static GQA_OP Vec get(const float* row, Index d) { return load(row + d); }
};

#include "gqa/detail/path/backward_products.inl"

#include "gqa/detail/path/backward_rows.inl"

#include "gqa/detail/path/backward_softmax.inl"

template <unsigned Types, class Word>
struct BackwardTable : BackwardKernels {
  StageRows keys[bits_of(Types)]{};
  StageRows values[bits_of(Types)]{};
};
template <int Id, unsigned Types, class Word>
constexpr void add_stages(BackwardTable<Types, Word>& table) {
  if constexpr (Id < bits_of(Types)) {
    if constexpr (((Types >> Id) & 1u) != 0) {
      using Codec = typename CodecWithId<Id>::type;
      if constexpr (kLoads<Codec>) {
        table.keys[Id] = stage_keys<Codec, Word>;
        table.values[Id] = stage_values<Codec, Word>;
        table.compiled |= 1u << Id;
      }
    }
    add_stages<Id + 1>(table);
  }
}
template <unsigned Types, class Word>
constexpr BackwardTable<Types, Word> make_backward(const BackwardTable<Types, Word>* self) {
  BackwardTable<Types, Word> table{};
  add_stages<0>(table);
  table.stage_keys = self->keys;
  table.stage_values = self->values;
  table.turn_keys = turn_keys<Word>;
  table.load_rows = load_rows;
  table.prepare = prepare;
  table.pack = pack_words<Word>;
  table.score = score_products<Word>;
  table.accumulate = accumulate_gradients<Word>;
  table.store_rows = store_gradient_rows;
  table.differentiate = differentiate<Word, BackwardScore<void>>;
  table.word_elements = Word::kElements;
  return table;
}
template <unsigned Types, class Word>
inline constexpr BackwardTable<Types, Word> kBackwardTable = make_backward<Types, Word>(&kBackwardTable<Types, Word>);

// What a call asks a path for, with one kind of words.
template <class Word>
struct Backward {
  template <unsigned Types>
  static const BackwardKernels& kernels() noexcept {
    return kBackwardTable<Types, Word>;
  }
  template <class V>
  static DifferentiateKernel differentiate_for() noexcept {
    return differentiate<Word, BackwardScore<V>>;
  }
  template <class V>
  static DifferentiateKernel differentiate_lookup_for(Index number) noexcept {
    return lookup_kernel<BackwardScore<V>>(number);
  }
};
