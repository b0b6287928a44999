// SPDX-License-Identifier: Apache-2.0
// What a query row does not see reaches no gradient of it, and none by what it does not see; a NaN that is seen shows, in exactly these.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "gqa/variants.hpp"
#include "support/backward_call.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

constexpr Index kHeads = 4, kKvHeads = 2, kGroup = 2, kDim = 20, kValueDim = 18;

/// What of the gradients may or must differ.
enum class Spoilt { all, by_keys_and_queries, of_one_dim };

class BackwardGarbage : public PerPathAndType {
 protected:
  Shape shape() const {
    return path() == Path::portable ? Shape{kHeads, kKvHeads, kDim, kValueDim, 20, 290}
                                    : Shape{kHeads, kKvHeads, kDim, kValueDim, 100, 360};
  }
  Index first() const { return shape().n_kv - shape().n_q; }
  std::vector<BackwardHow> hows() const {
    std::vector<BackwardHow> all{{.path = path()}};
    if (!has_f32_arithmetic_only(path()) && type() != ElementType::bf16)
      all.push_back({.path = path(), .products = Products::bf16});
    return all;
  }

  /// A problem whose numbers are written over.
  struct Numbered {
    Problem p;
    Numbers d_out;
  };
  Numbered numbered() const {
    const Problem p = make_problem(shape(), 1001);
    return {p, StoredProblem::draw_d_out(shape(), 1001)};
  }
  template <class V>
  Gradients run(const Numbered& n, const BackwardHow& how, const V& variant) const {
    const StoredProblem stored(n.p, n.d_out, type());
    return differentiate(stored.inputs(), how, variant);
  }

  using Sees = std::function<bool(Index token, Index head, Index position)>;
  using Row = std::function<bool(Index token, Index head)>;

  /// Gradients are `clean` but for those of rows that are spoilt and by what these see; where `shows`, all of these are NaN.
  void compare(const Gradients& clean, const Gradients& actual, const Sees& sees, const Row& row_is_spoilt, Spoilt what,
               Index dim, bool shows, const std::string& where) const {
    Gradients expected = clean;
    const auto spoil = [&](Numbers& to, const Numbers& from, Index t, Index h, Index d) {
      to.at(t, h, d) = shows ? NAN : from.at(t, h, d);
    };
    for (Index token = 0; token < shape().n_q; ++token)
      for (Index head = 0; head < kHeads; ++head) {
        if (!row_is_spoilt(token, head)) continue;
        for (Index d = 0; d < kDim; ++d) spoil(expected.d_q, actual.d_q, token, head, d);
        for (Index t = 0; t < shape().n_kv; ++t) {
          if (!sees(token, head, t)) continue;
          for (Index d = 0; d < kDim; ++d) spoil(expected.d_k, actual.d_k, t, head / kGroup, d);
          for (Index d = 0; d < kValueDim; ++d)
            if (what == Spoilt::all || (what == Spoilt::of_one_dim && d == dim))
              spoil(expected.d_v, actual.d_v, t, head / kGroup, d);
        }
        const auto i = static_cast<std::size_t>(token * kHeads + head);
        if (!expected.d_sink.empty()) expected.d_sink[i] = shows ? NAN : actual.d_sink[i];
      }
    EXPECT_TRUE(same_gradients(expected, actual)) << where << ", " << on(path());
  }

  Sees window(Index width) const {
    return [this, width](Index token, Index, Index t) { return t <= first() + token && t > first() + token - width; };
  }
};

TEST_P(BackwardGarbage, ANaNThatIsSeenShowsWhereItIsSeenAndNowhereElse) {
  const Index width = 40;
  const CausalWindow causal{width};
  const float logits[] = {0.5f, 3.0f, -2.0f, 0.0f};
  const auto variant = compose(causal, LearnedSinks{logits});
  const Sees sees = window(width);
  for (const BackwardHow& how : hows()) {
    const Gradients clean = run(numbered(), how, variant);
    for (const Index position : {first() - 5, first() + 1, Index{256}, shape().n_kv - 1}) {
      const auto of_key = [&](Index token, Index head) { return head / kGroup == 1 && sees(token, head, position); };
      Numbered n = numbered();
      n.p.kv.k.at(position, 1, 7) = NAN;
      compare(clean, run(n, how, variant), sees, of_key, Spoilt::all, 0, true, describe("key", position));
      n = numbered();
      n.p.kv.v.at(position, 1, 17) = NAN;
      compare(clean, run(n, how, variant), sees, of_key, Spoilt::by_keys_and_queries, 0, true,
              describe("value", position));
    }
    for (const Index token : {Index{0}, shape().n_q / 3, shape().n_q - 1}) {
      const auto own = [&](Index i, Index head) { return i == token && head == 2; };
      Numbered n = numbered();
      n.p.q.at(token, 2, 19) = NAN;
      compare(clean, run(n, how, variant), sees, own, Spoilt::all, 0, true, describe("query", token));
      n = numbered();
      n.d_out.at(token, 2, 16) = NAN;
      compare(clean, run(n, how, variant), sees, own, Spoilt::of_one_dim, 16, true, describe("d_out", token));
    }
  }
}

// Infinities, and numbers that are infinite once they are rounded.
TEST_P(BackwardGarbage, WhatOthersSeeReachesNoRow) {
  const Sieve variant;
  const Sees sees = [&](Index token, Index head, Index t) {
    return t <= first() + token && variant.is_visible(first() + token, t, head);
  };
  for (const BackwardHow& how : hows()) {
    const Gradients clean = run(numbered(), how, variant);
    for (const float poison : {INFINITY, -INFINITY, std::numeric_limits<float>::max()}) {
      const Index position = first() + 3, token = 7;
      const auto of_key = [&](Index i, Index head) { return head / kGroup == 0 && sees(i, head, position); };
      const auto own = [&](Index i, Index head) { return i == token && head == 1; };
      const std::string what = describe(poison, products_name(how.products));
      Numbered n = numbered();
      n.p.kv.k.at(position, 0, 3) = poison;
      compare(clean, run(n, how, variant), sees, of_key, Spoilt::all, 0, false, "key, " + what);
      n = numbered();
      n.p.kv.v.at(position, 0, 3) = poison;
      compare(clean, run(n, how, variant), sees, of_key, Spoilt::all, 0, false, "value, " + what);
      n = numbered();
      n.p.q.at(token, 1, 3) = poison;
      compare(clean, run(n, how, variant), sees, own, Spoilt::all, 0, false, "query, " + what);
      n = numbered();
      n.d_out.at(token, 1, 3) = poison;
      compare(clean, run(n, how, variant), sees, own, Spoilt::all, 0, false, "d_out, " + what);
    }
  }
}

TEST_P(BackwardGarbage, WhatNobodySeesChangesNothing) {
  const auto nobody = [](Index, Index) { return false; };
  for (const BackwardHow& how : hows())
    for (const float poison : {NAN, INFINITY}) {
      Numbered n = numbered();
      const Gradients clean = run(n, how, CausalWindow{20});
      for (Index t = 0; t <= first() - 20; ++t)
        for (Index h = 0; h < kKvHeads; ++h) n.p.kv.k.at(t, h, t % kDim) = n.p.kv.v.at(t, h, t % kValueDim) = poison;
      compare(clean, run(n, how, CausalWindow{20}), window(20), nobody, Spoilt::all, 0, true, "before a window");

      // Rows that see nothing: their queries and gradients of outputs.
      n = numbered();
      const Gradients odd = run(n, how, StrictlyBeforeOdd{});
      for (Index token = 0; token < shape().n_q; ++token) {
        if ((first() + token) % 2 != 0) continue;
        for (Index h = 0; h < kHeads; ++h)
          n.p.q.at(token, h, token % kDim) = n.d_out.at(token, h, token % kValueDim) = poison;
      }
      compare(odd, run(n, how, StrictlyBeforeOdd{}), window(0), nobody, Spoilt::all, 0, true, "rows that see nothing");
    }
}

/// The same numbers with garbage all around: behind the length, in other pages, between rows, and in positions that a ring has lost.
TEST_P(BackwardGarbage, WhatLiesAroundChangesNothing) {
  const CausalWindow variant{30};
  const Numbered n = numbered();
  for (const BackwardHow& how : hows()) {
    const Gradients clean = run(n, how, variant);
    for (Place place :
         {contiguous_place(CacheLayout::padded, shape().n_kv + 40), paged_place(24, CacheLayout::padded)}) {
      place.keep_from = first() - 29;
      const StoredProblem stored(n.p, n.d_out, type(), place, TensorLayout::padded);
      EXPECT_TRUE(same_gradients(clean, differentiate(stored.inputs(), how, variant))) << place.name();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardGarbage, BackwardGarbage::cases(), BackwardGarbage::name);

}  // namespace
}  // namespace gqa::test
