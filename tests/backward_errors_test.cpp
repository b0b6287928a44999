// SPDX-License-Identifier: Apache-2.0
// What is wrong with a backward call is named, with its value and what was expected, and no gradient is touched then.
#include <gtest/gtest.h>

#include "gqa/backward.hpp"
#include "gqa/variants.hpp"
#include "support/backward_call.hpp"
#include "support/messages.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

constexpr Shape kShape{4, 2, 6, 3, 5, 20};

/// A call that a test spoils, and the memory that it lies in.
struct Call {
  explicit Call(const Place& place = {})
      : problem(kShape, 1101, ElementType::f32, place),
        forward(run_forward(problem.inputs(), {.path = Path::portable}, Causal{})),
        memory(GradientTensors::of<Sinks>(problem.inputs())),
        sequence{problem.inputs().q, problem.inputs().kv, forward.view(), {}, forward.lse()},
        gradients(memory.gradients(problem.inputs().d_out)) {
    gradients.d_sink = {};
    options.path = Path::portable;
  }
  StoredProblem problem;
  Output forward;
  GradientTensors memory;
  Sequence sequence;
  SequenceGradients gradients;
  BackwardOptions options;

  /// What is said of it, by the call and by scratch_bytes.
  template <class V = Causal>
  std::string said(const V& variant = {}) {
    const DynamicAttentionBackward backward;
    const std::string message = message_of([&] { backward(sequence, gradients, variant, options); });
    EXPECT_TRUE(message == kNothingThrown || memory.untouched()) << "gradients of a call that is refused are touched";
    if (options.scratch.empty()) {
      EXPECT_EQ(message, message_of([&] {
                  static_cast<void>(backward.scratch_bytes(std::span<const Sequence>(&sequence, 1),
                                                           std::span<const SequenceGradients>(&gradients, 1), variant,
                                                           options));
                }));
    }
    return message;
  }
};
template <class Spoil, class V = Causal>
std::string said(const Spoil& spoil, const V& variant = {}) {
  Call call;
  spoil(call);
  return call.said(variant);
}

TEST(BackwardErrors, NothingIsSaidOfARightCall) {
  EXPECT_EQ(said([](Call&) {}), kNothingThrown);
  Call sinks;
  sinks.gradients = sinks.memory.gradients(sinks.problem.inputs().d_out);
  EXPECT_EQ(sinks.said(Sinks{}), kNothingThrown);
  EXPECT_EQ(said([](Call& c) { c.gradients.d_q = c.gradients.d_k = c.gradients.d_v = {}; }), kNothingThrown);
}

TEST(BackwardErrors, WhatTheForwardCallRefuses) {
  EXPECT_TRUE(says(said([](Call& c) { c.sequence.q.dim = 5; }), "kv.head_dim", "6", "q.dim = 5"));
  EXPECT_TRUE(says(said([](Call& c) { c.sequence.kv.length = -1; }), "kv.length", "-1", "0"));
  EXPECT_TRUE(says(said([](Call& c) { c.sequence.out.dim = 2; }), "out.dim", "2", "kv.value_dim = 3"));
  EXPECT_TRUE(says(said([](Call&) {}, CausalWindow{0}), "variant.window", "0", "1 or more"));
  static constexpr Index positions[] = {1, 2};
  EXPECT_TRUE(says(said([](Call& c) { c.sequence.positions = positions; }), "positions.size()", "2", "q.tokens = 5"));
}

TEST(BackwardErrors, TheLogSumExp) {
  EXPECT_TRUE(says(said([](Call& c) { c.sequence.lse = {}; }), "lse.size()", "0", "q.tokens * q.heads = 20"));
  EXPECT_TRUE(says(said([](Call& c) { c.sequence.lse = c.sequence.lse.first(19); }), "lse.size()", "19",
                   "q.tokens * q.heads = 20"));
}

TEST(BackwardErrors, TheGradientOfOutputs) {
  EXPECT_TRUE(says(said([](Call& c) { c.gradients.d_out = {}; }), "d_out.tokens", "0", "q.tokens = 5"));
  EXPECT_TRUE(says(said([](Call& c) { c.gradients.d_out.tokens = 4; }), "d_out.tokens", "4", "q.tokens = 5"));
  EXPECT_TRUE(says(said([](Call& c) { c.gradients.d_out.heads = 2; }), "d_out.heads", "2", "q.heads = 4"));
  EXPECT_TRUE(says(said([](Call& c) { c.gradients.d_out.dim = 6; }), "d_out.dim", "6", "kv.value_dim = 3"));
  EXPECT_TRUE(says(said([](Call& c) { c.gradients.d_out.data = nullptr; }), "d_out.data", "null", "f32"));
  EXPECT_TRUE(says(said([](Call& c) { c.gradients.d_out.type = static_cast<ElementType>(99); }), "d_out.type", "99",
                   "ElementType"));
  EXPECT_TRUE(says(said([](Call& c) { c.gradients.d_out.strides.token = Index{1} << 50; }), "d_out.strides.token",
                   "1125899906842624", "48 bits"));
}

/// A gradient's member, and what it is called.
struct Written {
  const char* name;
  TensorView SequenceGradients::*member;
  const char *tokens, *heads, *dim;
};
constexpr Written kWritten[] = {
    {"d_q", &SequenceGradients::d_q, "q.tokens = 5", "q.heads = 4", "q.dim = 6"},
    {"d_k", &SequenceGradients::d_k, "kv.length - kv.first_position() = 20", "kv.kv_heads = 2", "kv.head_dim = 6"},
    {"d_v", &SequenceGradients::d_v, "kv.length - kv.first_position() = 20", "kv.kv_heads = 2", "kv.value_dim = 3"}};

TEST(BackwardErrors, EachGradientThatIsWritten) {
  for (const Written& w : kWritten) {
    const auto spoilt = [&](const auto& spoil) { return said([&](Call& c) { spoil(c.gradients.*w.member); }); };
    const std::string name = w.name;
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.tokens = 7; }), name + ".tokens", "7", w.tokens));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.heads = 3; }), name + ".heads", "3", w.heads));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.dim = 5; }), name + ".dim", "5", w.dim));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.type = ElementType::bf16; }), name + ".type", "bf16", "f32"));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.type = static_cast<ElementType>(99); }), name + ".type", "99",
                     "ElementType"));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.data = static_cast<std::byte*>(t.data) + 1; }), name + ".data",
                     "misaligned", "multiple of 4"));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.strides.dim = 2; }), name + ".strides.dim", "2", "1"));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.strides.token = 0; }), name + ".strides", "", "of its own"));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.strides.head = 1; }), name + ".strides", "", "of its own"));
    EXPECT_TRUE(says(spoilt([](TensorView& t) { t.strides.token = Index{1} << 50; }), name + ".strides.token",
                     "1125899906842624", "48 bits"));
  }
}

TEST(BackwardErrors, MemoryThatIsNotAGradientsOwn) {
  for (const Written& w : kWritten) {
    const auto at = [&](const auto& where) {
      return said([&](Call& c) { (c.gradients.*w.member).data = const_cast<void*>(where(c)); });
    };
    // It may reach farther than what lies there, into the memory of something else, which may be named first.
    const auto refused = [&](const std::string& message) {
      return message.rfind("gqa: d_", 0) == 0 && message.find(" is in the memory of ") != std::string::npos &&
                     message.find(w.name) != std::string::npos
                 ? testing::AssertionSuccess()
                 : testing::AssertionFailure() << message;
    };
    EXPECT_TRUE(refused(at([](Call& c) { return c.sequence.q.data; })));
    EXPECT_TRUE(refused(at([](Call& c) -> const void* { return c.sequence.out.data; })));
    EXPECT_TRUE(refused(at([](Call& c) { return c.gradients.d_out.data; })));
    EXPECT_TRUE(refused(at([](Call& c) -> const void* { return c.sequence.lse.data(); })));
    EXPECT_TRUE(refused(at([](Call& c) { return c.sequence.kv.k; })));
    EXPECT_TRUE(refused(at([](Call& c) { return c.sequence.kv.v; })));
    for (const Written& other : kWritten) {
      if (&other == &w) continue;
      const std::string message = at([&](Call& c) -> const void* { return (c.gradients.*other.member).data; });
      EXPECT_TRUE(refused(message));
    }
  }
  Call scratch;
  std::vector<std::byte> room(1 << 20);
  scratch.options.scratch = room;
  scratch.gradients.d_q.data = room.data() + 512;
  EXPECT_TRUE(says(scratch.said(), "d_q", "in the memory of options.scratch", "of its own"));
}

TEST(BackwardErrors, GradientsBySinks) {
  const auto with = [](std::size_t size) {
    return [size](Call& c) {
      static std::vector<float> numbers(100, 0.0f);
      c.gradients.d_sink = std::span(numbers).first(size);
    };
  };
  EXPECT_TRUE(says(said(with(20), Causal{}), "d_sink.size()", "20", "0: the variant has no sink"));
  EXPECT_TRUE(says(said(with(19), Sinks{}), "d_sink.size()", "19", "q.tokens * q.heads = 20"));
  const std::string shared = said(
      [](Call& c) {
        c.gradients.d_sink = {static_cast<float*>(c.gradients.d_k.data), 20};
      },
      Sinks{});
  EXPECT_TRUE(says(shared, "d_k", "in the memory of d_sink", "of its own"));
}

TEST(BackwardErrors, Rotations) {
  EXPECT_TRUE(says(said([](Call& c) { c.sequence.kv.k_rotation = 2; }), "kv.k_rotation", "2", "0: "));
}

TEST(BackwardErrors, Batches) {
  Call a, b;
  const Sequence batch[] = {a.sequence, b.sequence};
  SequenceGradients gradients[] = {a.gradients, b.gradients};
  const DynamicAttentionBackward backward;
  EXPECT_TRUE(says(message_of([&] { backward(batch, std::span(gradients).first(1), a.options); }), "gradients.size()",
                   "1", "batch.size() = 2"));
  EXPECT_TRUE(says(message_of([&] { backward(std::span<const Sequence>{}, gradients, a.options); }), "gradients.size()",
                   "2", "batch.size() = 0"));
  EXPECT_TRUE(says(message_of([&] {
                     backward(batch, std::span<const SequenceGradients>(static_cast<SequenceGradients*>(nullptr), 2),
                              a.options);
                   }),
                   "gradients.data()", "null", "gradients"));
  gradients[1].d_k.dim = 5;
  EXPECT_TRUE(
      says(message_of([&] { backward(batch, gradients, a.options); }), "gradients[1].d_k.dim", "5", "kv.head_dim = 6"));
  gradients[1] = b.gradients;
  gradients[1].d_q.strides.dim = 2;
  EXPECT_TRUE(
      says(message_of([&] { backward(batch, gradients, a.options); }), "gradients[1].d_q.strides.dim", "2", "1"));
  gradients[1] = b.gradients;
  gradients[1].d_q.data = nullptr;
  gradients[1].d_out.data = nullptr;
  EXPECT_TRUE(
      says(message_of([&] { backward(batch, gradients, a.options); }), "gradients[1].d_out.data", "null", "f32"));
  gradients[1] = b.gradients;
  gradients[1].d_v.type = static_cast<ElementType>(99);
  EXPECT_TRUE(
      says(message_of([&] { backward(batch, gradients, a.options); }), "gradients[1].d_v.type", "99", "ElementType"));
  EXPECT_TRUE(a.memory.untouched() && b.memory.untouched());
}

TEST(BackwardErrors, OptionsAndShapes) {
  std::vector<std::byte> small(100);
  EXPECT_TRUE(says(said([&](Call& c) { c.options.scratch = small; }), "options.scratch.size()", "100",
                   "at least scratch_bytes()"));
  EXPECT_TRUE(says(said([](Call& c) { c.options.path = static_cast<Path>(99); }), "options.path", "unknown",
                   "a path that this process can run"));
  EXPECT_TRUE(says(said([](Call& c) { c.options.scale = NAN; }), "options.scale", "nan", ""));
  Call call;
  const GroupedQueryAttentionBackward<4, 2, 8> other;
  EXPECT_TRUE(says(message_of([&] { other(call.sequence, call.gradients, call.options); }), "q.dim", "6", "8"));
  EXPECT_TRUE(says(message_of([] {
                     DynamicAttentionBackward(HeadShape{4, 3, 8, 8});
                   }),
                   "shape.kv_heads", "3", "query_heads = 4"));
}

TEST(BackwardErrors, Lookups) {
  static constexpr float numbers[20] = {};
  const auto variant = compose(Causal{}, AdditiveBias<float>{BroadcastView<float>(numbers, 1, 1, 1, 20)});
  std::vector<float> data(20, 7.0f);
  const auto with = [&](const auto& spoil) {
    LookupGradient lookup{0, data, {0, 0, 0, 1}, 0};
    spoil(lookup);
    return said([&](Call& c) { c.options.lookups = std::span<const LookupGradient>(&lookup, 1); }, variant);
  };
  EXPECT_EQ(with([](LookupGradient&) {}), kNothingThrown);
  std::fill(data.begin(), data.end(), 7.0f);
  EXPECT_TRUE(says(with([](LookupGradient& l) { l.lookup = 1; }), "options.lookups[0].lookup", "1", "0 to 0"));
  EXPECT_TRUE(says(with([](LookupGradient& l) { l.lookup = -1; }), "options.lookups[0].lookup", "-1", "0 to 0"));
  EXPECT_TRUE(says(with([](LookupGradient& l) { l.data = l.data.first(19); }), "options.lookups[0].data.size()", "19",
                   "at least 20"));
  EXPECT_TRUE(says(with([](LookupGradient& l) { l.data = {}; }), "options.lookups[0].offset", "0", ""));
  EXPECT_TRUE(
      says(with([](LookupGradient& l) { l.offset = 1; }), "options.lookups[0].data.size()", "20", "at least 21"));
  EXPECT_TRUE(says(with([](LookupGradient& l) { l.offset = -1; }), "options.lookups[0].offset", "-1", "at least 0"));
  EXPECT_TRUE(says(with([](LookupGradient& l) { l.offset = 20; }), "options.lookups[0].offset", "20", "below"));
  EXPECT_TRUE(
      says(with([](LookupGradient& l) { l.strides.key = -1; }), "options.lookups[0].offset", "0", "at least 19"));
  EXPECT_TRUE(
      says(with([](LookupGradient& l) { l.strides.head = 1; }), "options.lookups[0].data.size()", "20", "at least 23"));
  EXPECT_TRUE(says(with([](LookupGradient& l) { l.strides.query = Index{1} << 60; }),
                   "options.lookups[0].strides.query", "1152921504606846976", "48 bits"));
  for (const float x : data) EXPECT_EQ(x, 7.0f);
  const auto in_memory_of = [&](const auto& floats_of) {
    LookupGradient lookup{0, data, {0, 0, 0, 1}, 0};
    return said(
        [&](Call& c) {
          lookup.data = {static_cast<float*>(floats_of(c)), 20};
          c.options.lookups = std::span<const LookupGradient>(&lookup, 1);
        },
        variant);
  };
  EXPECT_TRUE(says(in_memory_of([](Call& c) { return c.gradients.d_k.data; }), "options.lookups[0].data",
                   "in the memory of d_k", "of its own"));
  EXPECT_TRUE(says(in_memory_of([](Call& c) { return const_cast<void*>(c.sequence.q.data); }),
                   "options.lookups[0].data", "in the memory of q", "of its own"));
  LookupGradient lookup{0, data};
  EXPECT_TRUE(says(said([&](Call& c) { c.options.lookups = std::span<const LookupGradient>(&lookup, 1); }),
                   "options.lookups[0].lookup", "0", "looks nothing up"));
}

TEST(BackwardErrors, SumOfTokens) {
  const float by_row[] = {1.0f, 2.0f, 4.0f, 8.0f, 16.0f, 32.0f};
  float sums[] = {100.0f, 100.0f};
  sum_of_tokens(by_row, sums);
  EXPECT_EQ(sums[0], 21.0f);
  EXPECT_EQ(sums[1], 42.0f);
  sum_of_tokens({}, sums);
  EXPECT_EQ(sums[0], 0.0f);
  EXPECT_TRUE(says(message_of([&] { sum_of_tokens(std::span(by_row).first(5), sums); }), "d_sink.size()", "5",
                   "a multiple of d_logits.size() = 2"));
  EXPECT_TRUE(says(message_of([&] { sum_of_tokens(by_row, {}); }), "d_sink.size()", "6", "d_logits.size() = 0"));
}

TEST(BackwardErrors, CodecsThatTheFunctorDoesNotName) {
  const GroupedQueryAttentionBackward<dynamic, dynamic, dynamic, dynamic, CacheOf<bf16>> of_bf16;
  Call call;
  EXPECT_TRUE(
      says(message_of([&] { of_bf16(call.sequence, call.gradients, call.options); }), "kv.k_type", "f32", "bf16"));
  EXPECT_TRUE(call.memory.untouched());
}

}  // namespace
}  // namespace gqa::test
