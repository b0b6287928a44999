// SPDX-License-Identifier: Apache-2.0
// Factors and gates of outputs: the plain outputs, changed as their definition says; the same bits however the call is cut.
#include <gtest/gtest.h>

#include "gqa/reference.hpp"
#include "gqa/variants.hpp"
#include "support/messages.hpp"
#include "support/paths.hpp"
#include "support/problem.hpp"

namespace gqa::test {
namespace {

constexpr Index kHeads = 6;
constexpr Index kKvHeads = 2;
constexpr Index kQueries = 23;
constexpr Index kLength = 150;

/// Logits (query, head, dim) with gaps between rows, far enough from 0 on both sides that a gate closes.
struct Gate {
  Index value_dim;
  std::vector<std::byte> bytes;
  ConstTensorView view{};

  Gate(ElementType type, Index width) : value_dim(width) {
    Random random(311);
    const Index row = value_dim + 3, token = kHeads * row + 5;
    bytes.resize(static_cast<std::size_t>(kQueries * token * element_bytes(type)));
    fill_with_garbage(bytes, type);
    for (Index i = 0; i < kQueries; ++i)
      for (Index h = 0; h < kHeads; ++h)
        for (Index d = 0; d < value_dim; ++d) {
          const float x = d % 7 == 0 ? 200.0f * random.normal() : 3.0f * random.normal();
          write_element(bytes.data() + (i * token + h * row + d) * element_bytes(type), type, x);
        }
    view = ConstTensorView(bytes.data(), type, kQueries, kHeads, value_dim, {token, row, 1});
  }
  double at(Index i, Index h, Index d) const {
    const Index offset = i * view.strides.token + h * view.strides.head + d;
    return static_cast<double>(read_element(bytes.data() + offset * element_bytes(view.type), view.type));
  }
};

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

/// Factors differ by head; one is negative.
constexpr float kFactors[] = {0.37f, -1.75f};

class OutputChange : public PerPathAndType {
 protected:
  Types types() const { return cache_of(type()); }
};

TEST_P(OutputChange, AreThePlainOutputsTimesFactorAndGate) {
  for (const Index width : {16, 33, 70}) {
    const Problem p = make_problem({kHeads, kKvHeads, 24, width, kQueries, kLength}, 312);
    const How how{path()};
    const Result plain = solve(p, types(), how, Causal{});
    for (const ElementType of_gate : {ElementType::f32, ElementType::bf16, ElementType::f16}) {
      const Gate gate(of_gate, width);
      const ConstTensorView gates[] = {gate.view};
      const auto variant = compose(Causal{}, ValueScale{kFactors, kHeads / kKvHeads}, OutputGate{gates});
      const Result changed = solve(p, types(), how, variant);
      for (Index i = 0; i < kQueries; ++i)
        for (Index h = 0; h < kHeads; ++h) {
          ASSERT_EQ(plain.lse_at(i, h), changed.lse_at(i, h));
          for (Index d = 0; d < width; ++d) {
            const double opened = sigmoid(gate.at(i, h, d));
            const double expected =
                static_cast<double>(plain.at(i, h, d)) * static_cast<double>(kFactors[h / 3]) * opened;
            // The exponential is off by 2 units at most, its sum, quotient and both products by half a unit each; a gate below 2^-125 is 0.
            const double bound = 5.0 * 0x1p-23 * std::abs(expected) + 0x1p-120;
            ASSERT_LE(std::abs(static_cast<double>(changed.at(i, h, d)) - expected), bound)
                << "width " << width << ", token " << i << ", head " << h << ", dim " << d;
          }
        }
    }
  }
}

TEST_P(OutputChange, HaveTheSameBitsTokenByTokenAndInPages) {
  const Index width = 40;
  const Problem p = make_problem({kHeads, kKvHeads, 24, width, kQueries, kLength}, 313);
  const Gate gate(ElementType::bf16, width);
  const ConstTensorView gates[] = {gate.view};
  const How how{path()};
  const auto variant = compose(Causal{}, OutputGate{gates}, ValueScale{kFactors, kHeads / kKvHeads});
  const Tensor q(p.q, types().q);
  const StoredCaches kv = store_cache(p.kv, types().k, types().v, {});
  const StoredCaches paged = store_cache(p.kv, types().k, types().v, paged_place(7));
  const Result whole = attend(q.const_view(), kv.view(), how, variant);
  EXPECT_TRUE(same_bits(whole, attend(q.const_view(), paged.view(), how, variant)));
  for (Index token = 0; token < kQueries; ++token) {
    const Index position[] = {kLength - kQueries + token};
    const ConstTensorView one[] = {gate.view.slice(token, 1)};
    ASSERT_TRUE(
        same_bits(whole.slice(token, 1),
                  attend(q.const_view().slice(token, 1), kv.view(), how,
                         compose(Causal{}, OutputGate{one}, ValueScale{kFactors, kHeads / kKvHeads}), position)))
        << "token " << token;
  }
}

TEST_P(OutputChange, AreRoundedOnceToTheOutputsType) {
  const Index width = 40;
  const Problem p = make_problem({kHeads, kKvHeads, 24, width, kQueries, kLength}, 314);
  const Gate gate(ElementType::f32, width);
  const ConstTensorView gates[] = {gate.view};
  const auto variant = compose(Causal{}, OutputGate{gates});
  const Result exact = solve(p, types(), {path()}, variant);
  for (const ElementType out : {ElementType::bf16, ElementType::f16}) {
    Types rounded = types();
    rounded.out = out;
    const Result given = solve(p, rounded, {path(), out}, variant);
    for (Index i = 0; i < kQueries; ++i)
      for (Index h = 0; h < kHeads; ++h)
        for (Index d = 0; d < width; ++d) ASSERT_EQ(given.at(i, h, d), rounded_to(out, exact.at(i, h, d)));
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, OutputChange, OutputChange::cases(), OutputChange::name);

/// A user's own, in its simplest forms.
struct Halved : Causal {
  const float* logits;
  explicit Halved(const float* gate) : logits(gate) {}
  float output_factor(const RowContext&) const { return 0.5f; }
  const float* output_gate(const RowContext&) const { return logits; }
};

TEST(OutputChangeDefinition, TheReferenceHasIt) {
  const Problem p = make_problem({2, 1, 8, 3, 1, 20}, 315);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  const float logits[] = {0.0f, 1.5f, -900.0f};
  const ReferenceResult plain = reference_attention(q.const_view(), kv.view());
  const ReferenceResult changed = reference_attention(q.const_view(), kv.view(), Halved(logits));
  for (Index row = 0; row < 2; ++row)
    for (Index d = 0; d < 3; ++d)
      EXPECT_DOUBLE_EQ(changed.out(row, d), 0.5 * plain.out(row, d) * sigmoid(static_cast<double>(logits[d])));
}

TEST(OutputChangeErrors, NameWhatDoesNotFit) {
  const Problem p = make_problem({4, 2, 8, 8, 3, 20}, 316);
  const Tensor q(p.q, ElementType::f32);
  const StoredCaches kv = store_cache(p.kv, ElementType::f32, ElementType::f32, {});
  const auto said = [&](const auto& part) {
    return message_of([&] { attend(q.const_view(), kv.view(), {active_path().path}, compose(Causal{}, part)); });
  };
  const std::vector<float> logits(4 * 3 * 8);
  const auto gated = [&](const ConstTensorView& gate) { return said(OutputGate{std::span(&gate, 1)}); };
  EXPECT_EQ(said(OutputGate{}), "gqa: variant.gates.size() is 0; expected the sequences of the batch, 1 at least");
  EXPECT_EQ(gated({logits.data(), 2, 4, 8}), "gqa: variant.gates[0].tokens is 2; expected q.tokens = 3");
  EXPECT_EQ(gated({logits.data(), 3, 2, 8}), "gqa: variant.gates[0].heads is 2; expected the query heads, 4");
  EXPECT_EQ(gated({logits.data(), 3, 4, 7}), "gqa: variant.gates[0].dim is 7; expected kv.value_dim = 8");
  EXPECT_EQ(gated({static_cast<const float*>(nullptr), 3, 4, 8}),
            "gqa: variant.gates[0].data is null; expected a pointer to the logits");
  EXPECT_EQ(gated({logits.data(), ElementType::f32, 3, 4, 8, {32, 8, 2}}),
            "gqa: variant.gates[0].strides.dim is 2; expected 1");
  EXPECT_EQ(
      gated({logits.data(), ElementType::f32, 3, 4, 8, {Index{1} << 62, 8, 1}}),
      "gqa: variant.gates[0].strides.token is 4611686018427387904; expected a stride whose offsets fit in 48 bits");
  EXPECT_EQ(said(ValueScale{kFactors, 3}), "gqa: variant.group is 3; expected the query heads of a KV head, 2");
  EXPECT_EQ(said(ValueScale{std::span(kFactors, 1), 2}), "gqa: variant.factors.size() is 1; expected the KV heads, 2");
}

}  // namespace
}  // namespace gqa::test
