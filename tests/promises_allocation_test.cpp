// SPDX-License-Identifier: Apache-2.0
// Nothing is allocated in steady state, or at all if the caller gives scratch; scratch is O(tile), never O(sequence²).
#include <gtest/gtest.h>

#include <cstdint>

#include "support/allocations.hpp"
#include "support/executors.hpp"
#include "support/one_call.hpp"

namespace gqa::test {
namespace {

/// Made before counting begins.
struct Call : OneCall {
  Call(const Shape& shape, const Types& types, const Place& place = {}) : OneCall(shape, types, place, 151) {}
};

class Allocation : public PerPathAndType {};

TEST(Counter, Counts) {
  EXPECT_EQ(allocations_of([] { std::vector<int>(100).swap(*std::make_unique<std::vector<int>>()); }), 2);
}

TEST_P(Allocation, NoneInSteadyState) {
  const DynamicAttention functor;
  Call decode({4, 2, 16, 16, 1, 3 * detail::kSpan}, all_of(type()));
  Call paged({4, 2, 16, 16, 1, detail::kSpan + 5}, all_of(type()), paged_place(7));
  Call prefill({4, 2, 16, 16, 80, 80}, all_of(type()));
  const Sequence batch[] = {decode.sequence, paged.sequence, prefill.sequence};
  ShuffledExecutor allocating{1, 4};  // allocates itself, and is used to warm up only
  Options options = How{path()}.options();
  options.executor = allocating;
  functor(batch, options);  // the first call of the size
  CountingExecutor four;
  four.claimed_concurrency = 4;
  options.executor = four;
  EXPECT_EQ(allocations_of([&] {
              for (int i = 0; i < 3; ++i) {
                functor(batch, options);
                functor(batch, CausalWindow{100}, options);
                functor(decode.sequence, options);
                functor(prefill.q.const_view(), prefill.kv.view(), prefill.out.view(), Full{}, options);
                functor(paged.sequence, options);
              }
            }),
            0)
      << on(path()) << ", " << element_name(type());
}

TEST_P(Allocation, NoneAtAllWithTheCallersScratch) {
  const GroupedQueryAttention<4, 2, 16> functor;
  Call decode({4, 2, 16, 16, 1, 3 * detail::kSpan}, all_of(type()));
  Call prefill({4, 2, 16, 16, 80, 80}, all_of(type()));
  const Sequence batch[] = {decode.sequence, prefill.sequence};
  Options options = How{path()}.options();
  const std::size_t bytes = functor.scratch_bytes(batch, options);
  ASSERT_GT(bytes, 0u);
  functor(batch, options);
  const Result expected = decode.out.result();

  // Any alignment, exactly the bytes, garbage in them before and nothing written behind.
  for (const std::size_t offset : {0u, 1u, 13u, 32u, 63u}) {
    std::vector<std::byte> memory(offset + bytes + 64, std::byte{0xff});
    options.scratch = std::span(memory).subspan(offset, bytes);
    const GroupedQueryAttention<4, 2, 16> fresh;
    EXPECT_EQ(allocations_of([&] { fresh(batch, options); }), 0) << on(path()) << ", offset " << offset;
    EXPECT_TRUE(same_bits(expected, decode.out.result()));
    for (std::size_t i = 0; i < offset; ++i) ASSERT_EQ(memory[i], std::byte{0xff});
    for (std::size_t i = offset + bytes; i < memory.size(); ++i) ASSERT_EQ(memory[i], std::byte{0xff});
  }
}

TEST_P(Allocation, TheQueryOfScratchAllocatesNothing) {
  const DynamicAttention functor;
  Call decode({4, 2, 16, 16, 1, 3 * detail::kSpan}, all_of(type()));
  const Options options = How{path()}.options();
  EXPECT_EQ(allocations_of([&] { static_cast<void>(functor.scratch_bytes({&decode.sequence, 1}, options)); }), 0);
}

/// Memory for arguments of calls that read and write nothing: regions of 2^42 bytes, none in another.
float* region(Index number) { return reinterpret_cast<float*>(static_cast<std::uintptr_t>(number) << 42); }

/// Scratch of one sequence, or of a batch of equal ones.
std::size_t scratch_of(const Shape& shape, Index sequences, const Options& options) {
  const auto kv = KvCacheView::contiguous(
      region(1), region(2),
      {.length = shape.n_kv, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim, .value_dim = shape.value_dim});
  std::vector<Sequence> batch;
  for (Index i = 0; i < sequences; ++i)
    batch.push_back({ConstTensorView(region(3), shape.n_q, shape.query_heads, shape.head_dim), kv,
                     TensorView(region(4 + i), shape.n_q, shape.query_heads, shape.value_dim)});
  return DynamicAttention{}.scratch_bytes(batch, options);
}
std::size_t scratch_of(const Shape& shape, Index sequences, Index workers, Path path) {
  CountingExecutor executor;
  executor.claimed_concurrency = workers;
  Options options = How{path}.options();
  options.executor = executor;
  return scratch_of(shape, sequences, options);
}

TEST_P(Allocation, ScratchIsOfTheSizeOfTheWorkersTiles) {
  constexpr std::size_t mib = std::size_t{1} << 20;
  const Shape verify{32, 8, 128, 128, 32, 200000};
  EXPECT_LT(scratch_of(verify, 1, 1, path()), mib) << "a single worker merges every span at once";
  EXPECT_LT(scratch_of(verify, 1, 8, path()), 8 * 2 * mib);
  EXPECT_EQ(scratch_of(verify, 1, 8, path()), scratch_of({32, 8, 128, 128, 32, 1000000}, 1, 8, path()))
      << "whatever the length";
  const Shape latent{128, 1, 576, 512, 1, 32768};
  EXPECT_LT(scratch_of(latent, 64, 1, path()), 3 * mib);
  EXPECT_LT(scratch_of(latent, 64, 4, path()), 4 * 6 * mib);
}

TEST_P(Allocation, ScratchIsGivenBackOnRequest) {
  const DynamicAttention functor;
  Call decode({4, 2, 16, 16, 1, 3 * detail::kSpan}, all_of(type()));
  const Options options = How{path()}.options();
  functor(decode.sequence, options);
  EXPECT_EQ(allocations_of([&] { functor(decode.sequence, options); }), 0);
  functor.release_scratch();
  EXPECT_EQ(allocations_of([&] { functor(decode.sequence, options); }), 1);
}

// Scratch follows the tile: not the sequence squared, and not its length. Beyond one super-span there is one state more, see
// super_spans_threads_test.
TEST_P(Allocation, ScratchIsOfTheSizeOfATile) {
  const auto bytes = [&](Index n_q, Index n_kv) {
    return scratch_of({4, 2, 16, 16, n_q, n_kv}, 1, How{path()}.options());
  };
  for (const auto& [shorter, longer] :
       {std::pair<Index, Index>{1000, detail::kSuperSpan}, {detail::kSuperSpan + 1, 1 << 20}}) {
    EXPECT_EQ(bytes(1000, shorter), bytes(shorter, longer)) << "a prefill's scratch does not grow with its length";
    EXPECT_EQ(bytes(1, shorter), bytes(1, longer)) << "nor does a decode's";
  }
}

INSTANTIATE_TEST_SUITE_P(EveryPath, Allocation, Allocation::cases(), Allocation::name);

}  // namespace
}  // namespace gqa::test
