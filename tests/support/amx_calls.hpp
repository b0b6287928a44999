// SPDX-License-Identifier: Apache-2.0
// Whole calls on Path::amx beside the model of its arithmetic. For programs that define GQA_DETAIL_EMULATED_AMX.
#pragma once

#include <gtest/gtest.h>

#include "amx_emulator.hpp"
#include "amx_model.hpp"
#include "problem.hpp"

namespace gqa::test {

inline constexpr Types kBf16 = {ElementType::bf16, ElementType::bf16, ElementType::bf16, ElementType::f32};

class OnAmx : public testing::Test {
 protected:
  void SetUp() override {
    if (amx_provider == AmxProvider::nobody) GTEST_SKIP() << kNoTiles;
    RecordProperty("tiles", amx_provider == AmxProvider::processor ? "the processor's" : "emulated");
  }

  /// The path = the model, for one problem in one storage: inputs rounded to bf16, or sums of two terms.
  template <int Terms = 1, class V = Causal>
  static void expect_model(const Problem& p, const V& variant = {}, const Place& place = {}, const Types& types = kBf16,
                           std::optional<float> scale = std::nullopt, std::span<const Index> positions = {}) {
    const Tensor q(p.q, types.q);
    const StoredCaches kv = store_cache(p.kv, types.k, types.v, place);
    How how{Path::amx, types.out};
    how.scale = scale;
    how.products = Terms == 1 ? Products::bf16 : Products::bf16_terms;
    const Result model = amx_model<Terms>(q.const_view(), kv.view(), variant, scale, positions);
    EXPECT_TRUE(same_bits(rounded_result(model, types.out), attend(q.const_view(), kv.view(), how, variant, positions)))
        << p.shape << "; " << place.name() << "; " << types;
  }
};

}  // namespace gqa::test
