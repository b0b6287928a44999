// SPDX-License-Identifier: Apache-2.0
// The backward pass allocates nothing in steady state, and lives in the caller's scratch of exactly scratch_bytes(); scratch is O(tile). The
// caller's floating-point environment is nothing to it.
#include <gtest/gtest.h>

#include <cfenv>

#include "gqa/variants.hpp"
#include "support/allocations.hpp"
#include "support/backward_call.hpp"
#include "support/executors.hpp"
#include "support/variants.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gqa::test {
namespace {

class BackwardMemory : public PerPathAndType {
 protected:
  /// A call whose arguments lie in memory before counting begins.
  struct Call {
    StoredProblem problem;
    Output forward;
    GradientTensors memory;
    Sequence sequence;
    SequenceGradients gradients;
    Call(const Shape& shape, ElementType type, Path path, const Place& place = {})
        : problem(shape, 1301, type, place),
          forward(run_forward(problem.inputs(), {.path = path}, Sinks{})),
          memory(GradientTensors::of<Sinks>(problem.inputs())),
          sequence{problem.inputs().q, problem.inputs().kv, forward.view(), {}, forward.lse()},
          gradients(memory.gradients(problem.inputs().d_out)) {}
  };
  BackwardOptions options() const { return BackwardHow{.path = path()}.options(); }
};

TEST_P(BackwardMemory, NoneInSteadyState) {
  Call decode({4, 2, 16, 16, 1, 530}, type(), path());
  Call paged({4, 2, 16, 16, 40, 300}, type(), path(), paged_place(7));
  const Sequence batch[] = {decode.sequence, paged.sequence};
  const SequenceGradients gradients[] = {decode.gradients, paged.gradients};
  const DynamicAttentionBackward functor;
  CountingExecutor four;
  four.claimed_concurrency = 4;
  BackwardOptions call = options();
  call.executor = four;
  functor(batch, gradients, Sinks{}, call);  // the first call of the size
  EXPECT_EQ(allocations_of([&] {
              functor(batch, gradients, Sinks{}, call);
              functor(decode.sequence, decode.gradients, Sinks{}, call);
              functor(paged.sequence, paged.gradients, Sinks{}, call);
            }),
            0);
  EXPECT_EQ(four.most_tasks, 4);
  functor.release_scratch();
  EXPECT_EQ(allocations_of([&] { functor(decode.sequence, decode.gradients, Sinks{}, call); }), 1);
}

TEST_P(BackwardMemory, NoneAtAllWithTheCallersScratchOfAnyAlignment) {
  Call a({4, 2, 16, 20, 40, 300}, type(), path());
  Call b({4, 2, 16, 20, 1, 70}, type(), path(), paged_place(7));
  const Sequence batch[] = {a.sequence, b.sequence};
  const SequenceGradients gradients[] = {a.gradients, b.gradients};
  BackwardOptions call = options();
  const DynamicAttentionBackward functor;
  functor(batch, gradients, Sinks{}, call);
  const Gradients expected_a = a.memory.result(), expected_b = b.memory.result();
  std::size_t bytes = 0;
  EXPECT_EQ(allocations_of([&] { bytes = functor.scratch_bytes(batch, gradients, Sinks{}, call); }), 0);
  for (const std::size_t offset : {0u, 1u, 13u, 32u, 63u}) {
    std::vector<std::byte> memory(offset + bytes + 64, std::byte{0xff});  // NaN, if it were read
    call.scratch = std::span(memory).subspan(offset, bytes);
    const DynamicAttentionBackward fresh;
    EXPECT_EQ(allocations_of([&] { fresh(batch, gradients, Sinks{}, call); }), 0) << "offset " << offset;
    EXPECT_TRUE(same_gradients(expected_a, a.memory.result()) && same_gradients(expected_b, b.memory.result()));
    for (std::size_t i = 0; i < offset; ++i) ASSERT_EQ(memory[i], std::byte{0xff});
    for (std::size_t i = offset + bytes; i < memory.size(); ++i) ASSERT_EQ(memory[i], std::byte{0xff});
    call.scratch = call.scratch.first(bytes - 1);
    EXPECT_THROW(fresh(batch, gradients, Sinks{}, call), ArgumentError);
  }
}

// A number for each column and KV head is all that grows with the length.
TEST_P(BackwardMemory, ScratchIsOfTheSizeOfATile) {
  const auto bytes = [&](Index n_q, Index n_kv) {
    // Nothing is read: addresses far from each other.
    const auto at = [](std::uintptr_t number) { return reinterpret_cast<float*>(number << 42); };
    const auto kv = KvCacheView::contiguous(at(1), at(2), {.length = n_kv, .kv_heads = 2, .head_dim = 64});
    const auto rows = static_cast<std::size_t>(n_q * 4);
    const Sequence sequence{
        ConstTensorView(at(3), n_q, 4, 64), kv, TensorView(at(4), n_q, 4, 64), {}, std::span<float>(at(5), rows)};
    const SequenceGradients gradients{ConstTensorView(at(6), n_q, 4, 64), TensorView(at(7), n_q, 4, 64),
                                      TensorView(at(8), n_kv, 2, 64), TensorView(at(9), n_kv, 2, 64)};
    return DynamicAttentionBackward{}.scratch_bytes({&sequence, 1}, {&gradients, 1}, Causal{}, options());
  };
  EXPECT_LT(bytes(4096, 4096), std::size_t{1} << 20);
  EXPECT_LE(bytes(65536, 65536) - bytes(4096, 4096), 2u * (65536u - 4096u) / 256u * 2u * 8u);
  EXPECT_EQ(bytes(16, 4096), bytes(4096, 4096));
}

TEST_P(BackwardMemory, TheCallersFloatingPointEnvironmentIsNothing) {
  const Shape shape{4, 2, 24, 18, 30, 290};  // D is no power of 4: the scale is rounded
  for (const Distribution distribution : {Distribution::normal, Distribution::denormal}) {
    Problem numbers = make_problem(shape, 1311, distribution);
    const StoredProblem p(numbers, StoredProblem::draw_d_out(shape, 1311), type());
    const BackwardHow how{.path = path()};
    const float logits[] = {0.5f, 3.0f, -2.0f, 0.0f};
    const float slopes[] = {0.5f, 0.25f, 0.125f, 1.0f};
    const auto variant = compose(Causal{}, gqa::SoftCap{3.0f}, gqa::Alibi{slopes}, LearnedSinks{logits, false});
    Output forward = run_forward(p.inputs(), how, variant);
    const Gradients expected = run_backward(p.inputs(), forward, how, variant);
    std::fenv_t saved;
    std::fegetenv(&saved);
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
      std::fesetround(mode);
      const Gradients actual = run_backward(p.inputs(), forward, how, variant);
      EXPECT_EQ(std::fegetround(), mode);
      std::fesetenv(&saved);
      EXPECT_TRUE(same_gradients(expected, actual)) << mode << ", " << distribution_name(distribution);
    }
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040u);  // denormals are zero, and flushed
    const unsigned before = _mm_getcsr() & 0xffc0u;
    const Gradients actual = run_backward(p.inputs(), forward, how, variant);
    EXPECT_EQ(_mm_getcsr() & 0xffc0u, before);
    std::fesetenv(&saved);
    EXPECT_TRUE(same_gradients(expected, actual)) << "flushed, " << distribution_name(distribution);
#endif
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, BackwardMemory, BackwardMemory::cases(), BackwardMemory::name);

}  // namespace
}  // namespace gqa::test
