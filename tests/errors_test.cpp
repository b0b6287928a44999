// SPDX-License-Identifier: Apache-2.0
// Every wrong argument is found before any work: the message names the argument, the value given and what was expected, and the
// outputs are untouched.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>

#include "support/executors.hpp"
#include "support/problem.hpp"
#include "support/variants.hpp"

namespace gqa::test {
namespace {

constexpr Index kHuge = std::numeric_limits<Index>::max();

/// A call that is right until a test spoils it.
struct Fixture {
  Problem problem = make_problem({4, 2, 16, 24, 3, 20}, 221);
  Tensor q{problem.q, ElementType::f32};
  StoredCaches kv = store_cache(problem.kv, ElementType::f32);
  StoredCaches paged = store_cache(problem.kv, ElementType::f32, paged_place(8));
  StoredCaches ring = store_cache(problem.kv, ElementType::f32, ring_place(10));
  Output out{ElementType::f32, 3, 4, 24};
  Sequence sequence{q.const_view(), kv.view(), out.view(), {}, out.lse()};
  Options options;
  std::vector<std::int32_t> table;
  std::vector<std::byte> scratch;
  CountingExecutor executor;
  std::vector<Index> positions;

  void use_paged() { sequence.kv = paged.view(); }
  void use_ring() { sequence.kv = ring.view(); }
  /// Page `page` of the table becomes `physical`.
  void set_page(std::size_t page, std::int32_t physical) {
    use_paged();
    table.assign(sequence.kv.page_table, sequence.kv.page_table + sequence.kv.page_table_size);
    table[page] = physical;
    sequence.kv.page_table = table.data();
  }
};

struct WrongArgument {
  const char* name;  ///< of the test
  std::function<void(Fixture&)> spoil;
  std::string argument;     ///< as the message names it
  std::string value;        ///< as the message shows it; empty: whatever it shows
  std::string expectation;  ///< part of what it says was expected
};
void PrintTo(const WrongArgument& wrong, std::ostream* out) { *out << wrong.name; }

template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

testing::AssertionResult says(const std::string& message, const std::string& argument, const std::string& value,
                              const std::string& expectation) {
  const std::string beginning = "gqa: " + argument + " is " + value;
  const std::size_t expected = message.find("; expected ");
  const bool value_is_all = value.empty() || expected == beginning.size();
  if (message.rfind(beginning, 0) == 0 && expected != std::string::npos && value_is_all &&
      message.find(expectation, expected) != std::string::npos)
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << "the message is\n  " << message << "\nand should be\n  " << beginning
                                     << "; expected … " << expectation << " …";
}

class Errors : public testing::TestWithParam<WrongArgument> {};

TEST_P(Errors, IsNamedAndLeavesOutputsUntouched) {
  const WrongArgument& wrong = GetParam();
  Fixture f;
  wrong.spoil(f);
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(f.sequence, f.options); }), wrong.argument, wrong.value,
                   wrong.expectation));
  EXPECT_TRUE(f.out.untouched());
  if (wrong.argument.rfind("options.scratch", 0) == 0) return;
  EXPECT_TRUE(says(message_of([&] {
                     static_cast<void>(DynamicAttention{}.scratch_bytes({&f.sequence, 1}, f.options));
                   }),
                   wrong.argument, wrong.value, wrong.expectation))
      << "scratch_bytes finds the same";
}

TEST_P(Errors, IsNamedWithItsPlaceInABatch) {
  const WrongArgument& wrong = GetParam();
  Fixture first;
  Fixture f;
  Fixture last;
  wrong.spoil(f);
  const Sequence batch[] = {first.sequence, f.sequence, last.sequence};
  const bool of_the_sequence = wrong.argument.rfind("options", 0) != 0;
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(batch, f.options); }),
                   (of_the_sequence ? "batch[1]." : "") + wrong.argument, wrong.value,
                   of_the_sequence ? "" : wrong.expectation));
  EXPECT_TRUE(first.out.untouched() && f.out.untouched() && last.out.untouched());
}

std::string number(Index value) { return std::to_string(value); }

std::vector<WrongArgument> wrong_queries_and_outputs() {
  return {
      {"QueryTokensNegative", [](Fixture& f) { f.sequence.q.tokens = f.sequence.out.tokens = -1; }, "q.tokens", "-1",
       "0"},
      {"QueryHeadsZero", [](Fixture& f) { f.sequence.q.heads = 0; }, "q.heads", "0", "1"},
      {"QueryHeadsNegative", [](Fixture& f) { f.sequence.q.heads = -4; }, "q.heads", "-4", "1"},
      {"QueryHeadsHuge", [](Fixture& f) { f.sequence.q.heads = kHuge; }, "q.heads", number(kHuge), "1"},
      {"QueryDimZero", [](Fixture& f) { f.sequence.q.dim = 0; }, "q.dim", "0", "1"},
      {"QueryDimHuge", [](Fixture& f) { f.sequence.q.dim = kHuge; }, "q.dim", number(kHuge), "1"},
      {"QueryDataNull", [](Fixture& f) { f.sequence.q.data = nullptr; }, "q.data", "null", "f32"},
      {"QueryDataMisaligned",
       [](Fixture& f) { f.sequence.q.data = static_cast<const std::byte*>(f.sequence.q.data) + 2; }, "q.data",
       "misaligned", "multiple of 4"},
      {"QueryTypeUnknown", [](Fixture& f) { f.sequence.q.type = static_cast<ElementType>(9); }, "q.type", "9", "f32"},
      {"QueryStrideOverflows", [](Fixture& f) { f.sequence.q.strides.token = kHuge; }, "q.strides.token", number(kHuge),
       "fit"},
      {"QueryStrideOverflowsBackwards",
       [](Fixture& f) { f.sequence.q.strides.head = std::numeric_limits<Index>::min(); }, "q.strides.head",
       number(std::numeric_limits<Index>::min()), "fit"},
      {"OutTokensDiffer", [](Fixture& f) { f.sequence.out.tokens = 2; }, "out.tokens", "2", "q.tokens = 3"},
      {"OutHeadsDiffer", [](Fixture& f) { f.sequence.out.heads = 2; }, "out.heads", "2", "q.heads = 4"},
      {"OutDimDiffers", [](Fixture& f) { f.sequence.out.dim = 16; }, "out.dim", "16", "kv.value_dim = 24"},
      {"OutDataNull", [](Fixture& f) { f.sequence.out.data = nullptr; }, "out.data", "null", "f32"},
      {"OutDataMisaligned", [](Fixture& f) { f.sequence.out.data = static_cast<std::byte*>(f.sequence.out.data) + 1; },
       "out.data", "misaligned", "multiple of 4"},
      {"OutTypeUnknown", [](Fixture& f) { f.sequence.out.type = static_cast<ElementType>(3); }, "out.type", "3", "f32"},
      {"OutStrideOverflows", [](Fixture& f) { f.sequence.out.strides.token = kHuge / 2; }, "out.strides.token",
       number(kHuge / 2), "fit"},
      {"OutRowsOverlap",
       [](Fixture& f) {
         f.sequence.out.strides = {96, 23, 1};
       },
       "out.strides", "{96, 23, 1}", "own"},
      {"OutTokensOverlap",
       [](Fixture& f) {
         f.sequence.out.strides = {95, 24, 1};
       },
       "out.strides", "{95, 24, 1}", "own"},
      {"OutStrideZero",
       [](Fixture& f) {
         f.sequence.out.strides = {0, 24, 1};
       },
       "out.strides", "{0, 24, 1}", "own"},
      {"OutStridesInterlock",
       [](Fixture& f) {
         f.sequence.out.strides = {1, 24, 2};
       },
       "out.strides", "{1, 24, 2}", "own"},
      {"LseTooShort", [](Fixture& f) { f.sequence.lse = f.sequence.lse.first(11); }, "lse.size()", "11",
       "q.tokens * q.heads = 12"},
      {"LseTooLong",
       [](Fixture& f) {
         static std::vector<float> longer(13);
         f.sequence.lse = longer;
       },
       "lse.size()", "13", "12"},
      {"PositionsTooFew",
       [](Fixture& f) {
         f.positions = {17, 18};
         f.sequence.positions = f.positions;
       },
       "positions.size()", "2", "q.tokens = 3"},
      {"PositionsTooMany",
       [](Fixture& f) {
         f.positions = {16, 17, 18, 19};
         f.sequence.positions = f.positions;
       },
       "positions.size()", "4", "q.tokens = 3"},
  };
}

std::vector<WrongArgument> wrong_caches() {
  return {
      {"KvHeadsDoNotDivide", [](Fixture& f) { f.sequence.kv.kv_heads = 3; }, "kv.kv_heads", "3",
       "divisor of q.heads = 4"},
      {"KvHeadsZero", [](Fixture& f) { f.sequence.kv.kv_heads = 0; }, "kv.kv_heads", "0", "1"},
      {"KvHeadsNegative", [](Fixture& f) { f.sequence.kv.kv_heads = -1; }, "kv.kv_heads", "-1", "1"},
      {"HeadDimsDiffer", [](Fixture& f) { f.sequence.kv.head_dim = 12; }, "kv.head_dim", "12", "q.dim = 16"},
      {"ValueDimZero", [](Fixture& f) { f.sequence.kv.value_dim = 0; }, "kv.value_dim", "0", "1"},
      {"ValueDimHuge", [](Fixture& f) { f.sequence.kv.value_dim = kHuge; }, "kv.value_dim", number(kHuge), "1"},
      {"LengthNegative", [](Fixture& f) { f.sequence.kv.length = -5; }, "kv.length", "-5", "0"},
      {"LengthHuge", [](Fixture& f) { f.sequence.kv.length = kHuge; }, "kv.length", number(kHuge), "0"},
      {"KeysNull", [](Fixture& f) { f.sequence.kv.k = nullptr; }, "kv.k", "null", "f32"},
      {"ValuesNull", [](Fixture& f) { f.sequence.kv.v = nullptr; }, "kv.v", "null", "f32"},
      {"KeysMisaligned", [](Fixture& f) { f.sequence.kv.k = static_cast<const std::byte*>(f.sequence.kv.k) + 1; },
       "kv.k", "misaligned", "multiple of 4"},
      {"ValuesMisaligned",
       [](Fixture& f) {
         f.sequence.kv.v_type = ElementType::bf16;
         f.sequence.kv.v = static_cast<const std::byte*>(f.sequence.kv.v) + 1;
       },
       "kv.v", "misaligned", "multiple of 2"},
      {"KeyTypeUnknown", [](Fixture& f) { f.sequence.kv.k_type = static_cast<ElementType>(200); }, "kv.k_type", "200",
       "f32"},
      {"ValueTypeUnknown", [](Fixture& f) { f.sequence.kv.v_type = static_cast<ElementType>(3); }, "kv.v_type", "3",
       "f32"},
      {"StorageUnknown", [](Fixture& f) { f.sequence.kv.storage = static_cast<Storage>(7); }, "kv.storage", "7",
       "paged"},
      {"KeyStrideOverflows", [](Fixture& f) { f.sequence.kv.k_strides.token = kHuge / 8; }, "kv.k_strides.token",
       number(kHuge / 8), "fit"},
      {"KeyStrideOverflowsInBytes", [](Fixture& f) { f.sequence.kv.k_strides.token = kHuge; }, "kv.k_strides.token",
       number(kHuge), "fit"},
      {"ValueStrideOverflowsInBytes",
       [](Fixture& f) { f.sequence.kv.v_strides.head = std::numeric_limits<Index>::min() / 2; }, "kv.v_strides.head",
       number(std::numeric_limits<Index>::min() / 2), "fit"},
      {"LengthTimesStrideOverflows",
       [](Fixture& f) {
         f.sequence.kv.length = Index{1} << 40;
         f.sequence.kv.k_strides.token = Index{1} << 30;
       },
       "kv.k_strides.token", number(Index{1} << 30), "fit"},
      {"RingWithoutSlots",
       [](Fixture& f) {
         f.use_ring();
         f.sequence.kv.capacity = 0;
       },
       "kv.capacity", "0", "1 or more"},
      {"RingThatHasLostWhatAQuerySees", [](Fixture& f) { f.use_ring(); }, "kv.capacity", "10",
       "room for position 0, which a query sees: at least length - position = 20"},
      {"PageSizeZero",
       [](Fixture& f) {
         f.use_paged();
         f.sequence.kv.page_size = 0;
       },
       "kv.page_size", "0", "1 or more"},
      {"PageSizeNegative",
       [](Fixture& f) {
         f.use_paged();
         f.sequence.kv.page_size = -8;
       },
       "kv.page_size", "-8", "1 or more"},
      {"PoolWithoutPages",
       [](Fixture& f) {
         f.use_paged();
         f.sequence.kv.pool_pages = 0;
       },
       "kv.pool_pages", "0", "1"},
      {"PageTableNull",
       [](Fixture& f) {
         f.use_paged();
         f.sequence.kv.page_table = nullptr;
       },
       "kv.page_table", "null", "page indices"},
      {"PageTableTooShort",
       [](Fixture& f) {
         f.use_paged();
         f.sequence.kv.page_table_size = 2;
       },
       "kv.page_table_size", "2", "ceil(length / page_size) = 3"},
      {"PageNegative", [](Fixture& f) { f.set_page(1, -1); }, "kv.page_table[1]", "-1", "[0, 6)"},
      {"PageBeyondThePool", [](Fixture& f) { f.set_page(2, 6); }, "kv.page_table[2]", "6", "[0, 6)"},
      {"PageFarBeyondThePool", [](Fixture& f) { f.set_page(0, std::numeric_limits<std::int32_t>::max()); },
       "kv.page_table[0]", number(std::numeric_limits<std::int32_t>::max()), "[0, 6)"},
      {"PageStrideOverflows",
       [](Fixture& f) {
         f.use_paged();
         f.sequence.kv.k_strides.page = kHuge;
       },
       "kv.k_strides.page", number(kHuge), "fit"},
  };
}

std::vector<WrongArgument> wrong_options() {
  return {
      {"ScaleNaN", [](Fixture& f) { f.options.scale = NAN; }, "options.scale", "", "finite"},
      {"ScaleInfinite", [](Fixture& f) { f.options.scale = INFINITY; }, "options.scale", "", "finite"},
      {"PathThatCannotRun", [](Fixture& f) { f.options.path = Path::neon; }, "options.path", "neon", "can run"},
      {"PathUnknown", [](Fixture& f) { f.options.path = static_cast<Path>(77); }, "options.path", "", "can run"},
      {"ScratchTooSmall",
       [](Fixture& f) {
         f.scratch.resize(100);
         f.options.scratch = f.scratch;
       },
       "options.scratch.size()", "100", "scratch_bytes()"},
      {"ExecutorWithoutConcurrency",
       [](Fixture& f) {
         f.executor.claimed_concurrency = 0;
         f.options.executor = f.executor;
       },
       "options.executor.concurrency()", "0", "1 or more"},
  };
}

std::string name_of(const testing::TestParamInfo<WrongArgument>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(QueriesAndOutputs, Errors, testing::ValuesIn(wrong_queries_and_outputs()), name_of);
INSTANTIATE_TEST_SUITE_P(Caches, Errors, testing::ValuesIn(wrong_caches()), name_of);
INSTANTIATE_TEST_SUITE_P(Options, Errors, testing::ValuesIn(wrong_options()), name_of);

// What the tests above spoil is right before they do.
TEST(Errors, TheCallsAreRightOtherwise) {
  Fixture f;
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, f.options); }), "nothing was thrown");
  EXPECT_FALSE(f.out.untouched());
  f.use_paged();
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, f.options); }), "nothing was thrown");
  f.use_ring();
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, CausalWindow{8}, f.options); }), "nothing was thrown");
}

TEST(Errors, ARingIsLargeEnoughOrNot) {
  // Queries at 17, 18 and 19, ring of 10: position 10 is the oldest left, and a window of 8 begins there.
  Fixture f;
  f.use_ring();
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, CausalWindow{8}, f.options); }), "nothing was thrown");
  Fixture g;
  g.use_ring();
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(g.sequence, CausalWindow{9}, g.options); }), "kv.capacity", "10",
                   "at least length - position = 11"));
  EXPECT_TRUE(g.out.untouched());
}

TEST(Errors, WrongPagesThatNoQueryLooksAtAreNone) {
  Fixture f;
  f.set_page(0, -7);
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, CausalWindow{8}, f.options); }), "nothing was thrown");
  Fixture g;
  g.set_page(0, -7);
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(g.sequence, CausalWindow{11}, g.options); }), "kv.page_table[0]",
                   "-7", "[0, 6)"));
}

TEST(Errors, AScratchThatIsOneByteShortIsNamed) {
  Fixture f;
  const std::size_t bytes = DynamicAttention{}.scratch_bytes({&f.sequence, 1}, f.options);
  f.scratch.resize(bytes - 1);
  f.options.scratch = f.scratch;
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(f.sequence, f.options); }), "options.scratch.size()",
                   std::to_string(bytes - 1), "scratch_bytes() = " + std::to_string(bytes)));
  EXPECT_TRUE(f.out.untouched());
}

TEST(Errors, AVariantsOwnParametersAreChecked) {
  Fixture f;
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(f.sequence, CausalWindow{0}, f.options); }), "variant.window",
                   "0", "1 or more"));
  EXPECT_TRUE(f.out.untouched());
}

TEST(Errors, AUsersVariantThatAsksForTooMuchGetsWhatThereIs) {
  struct Greedy {
    PositionRange visible_range(Index, Index kv_length) const { return {-100, kv_length + 100}; }
  };
  Fixture f;
  DynamicAttention{}(f.sequence, Greedy{}, f.options);
  const Result greedy = f.out.result();
  DynamicAttention{}(f.sequence, Full{}, f.options);
  EXPECT_TRUE(same_bits(f.out.result(), greedy));
}

TEST(StaticExtents, AreHeldAgainstTheCall) {
  Fixture f;
  const auto message = [&](const auto& functor) { return message_of([&] { functor(f.sequence, f.options); }); };
  EXPECT_EQ(message(GroupedQueryAttention<4, 2, 16, 24>{}), "nothing was thrown");
  Fixture g;
  const auto spoilt = [&](const auto& functor) { return message_of([&] { functor(g.sequence, g.options); }); };
  EXPECT_TRUE(says(spoilt(GroupedQueryAttention<8, 2, 16, 24>{}), "q.heads", "4", "8, the functor's query heads"));
  EXPECT_TRUE(says(spoilt(GroupedQueryAttention<4, 1, 16, 24>{}), "kv.kv_heads", "2", "1, the functor's KV heads"));
  EXPECT_TRUE(says(spoilt(GroupedQueryAttention<4, 2, 64, 24>{}), "q.dim", "16", "64, the functor's head dim"));
  EXPECT_TRUE(says(spoilt(GroupedQueryAttention<4, 2, 16>{}), "kv.value_dim", "24", "16, the functor's value dim"));
  EXPECT_TRUE(says(spoilt(DynamicAttention({.kv_heads = 4})), "kv.kv_heads", "2", "4, the functor's KV heads"));
  EXPECT_TRUE(g.out.untouched());
}

TEST(StaticCacheTypes, AreHeldAgainstTheCall) {
  Fixture f;
  const auto message = [&](const auto& functor) { return message_of([&] { functor(f.sequence, f.options); }); };
  EXPECT_TRUE(says(message(GroupedQueryAttention<4, 2, 16, 24, CacheOf<bf16>>{}), "kv.k_type", "f32",
                   "bf16, as the functor's CacheOf says"));
  f.sequence.kv.v_type = ElementType::bf16;
  EXPECT_TRUE(says(message(GroupedQueryAttention<4, 2, 16, 24, CacheOf<f16, float>>{}), "kv.v_type", "bf16",
                   "f32 or f16, as the functor's CacheOf says"));
  EXPECT_TRUE(f.out.untouched());
  EXPECT_EQ(message(GroupedQueryAttention<4, 2, 16, 24, CacheOf<bf16, float>>{}), "nothing was thrown");
}

TEST(StaticExtents, AreHeldAgainstTheConstructor) {
  EXPECT_TRUE(
      says(message_of([] { GroupedQueryAttention<8, 2, 64> a({.query_heads = 4}); }), "shape.query_heads", "4", "8"));
  EXPECT_TRUE(
      says(message_of([] { GroupedQueryAttention<8, 2, 64> a({.value_dim = 32}); }), "shape.value_dim", "32", "64"));
  EXPECT_TRUE(says(message_of([] { DynamicAttention a({.query_heads = 8, .kv_heads = 3}); }), "shape.kv_heads", "3",
                   "divisor of query_heads = 8"));
  EXPECT_TRUE(says(message_of([] { GroupedQueryAttention<8, dynamic, 64> a({.kv_heads = 5}); }), "shape.kv_heads", "5",
                   "divisor"));
  EXPECT_TRUE(says(message_of([] { DynamicAttention a({.head_dim = 0}); }), "shape.head_dim", "0", "positive"));
  EXPECT_TRUE(says(message_of([] { DynamicAttention a({.head_dim = -7}); }), "shape.head_dim", "-7", "positive"));
  EXPECT_EQ(message_of([] { GroupedQueryAttention<8, 2, 64> a({.query_heads = 8, .kv_heads = 2, .head_dim = 64}); }),
            "nothing was thrown");
}

TEST(Batches, SequencesOfOneCallHaveOneShape) {
  Fixture f;
  Fixture other;
  other.sequence.q = other.sequence.q.slice_heads(0, 2);
  other.sequence.out = other.sequence.out.slice_heads(0, 2);
  other.sequence.kv = other.sequence.kv.slice_heads(0, 1);
  other.sequence.lse = other.sequence.lse.first(6);
  const Sequence batch[] = {f.sequence, other.sequence};
  EXPECT_TRUE(
      says(message_of([&] { DynamicAttention{}(batch, f.options); }), "batch[1].q.heads", "2", "batch[0].q.heads = 4"));
  EXPECT_TRUE(f.out.untouched() && other.out.untouched());
}

TEST(Spans, ThatAreTooShortAreNamedAtOnce) {
  const std::vector<float> memory(95);
  std::vector<float> writable(95);
  const std::span<const float> keys(memory);
  const auto queries = [&](Index tokens) {
    return message_of([&] { static_cast<void>(ConstTensorView(keys, tokens, 4, 8)); });
  };
  EXPECT_EQ(queries(2), "nothing was thrown");
  EXPECT_TRUE(says(queries(3), "elements.size()", "95", "tokens * heads * dim = 96, for a tensor of 3 * 4 * 8"));
  EXPECT_TRUE(says(queries(-1), "elements.tokens", "-1", "0"));
  EXPECT_TRUE(says(queries(kHuge), "elements.tokens", number(kHuge), "63 bits"));
  EXPECT_TRUE(says(message_of([&] { static_cast<void>(TensorView(std::span<float>(writable), 3, 4, 8)); }),
                   "out.size()", "95", "96"));
  const auto cache = [&](KvShape shape) {
    return message_of([&] { static_cast<void>(KvCacheView::contiguous(keys, keys, shape)); });
  };
  EXPECT_EQ(cache({5, 2, 9}), "nothing was thrown");
  EXPECT_TRUE(says(cache({6, 2, 8}), "keys.size()", "95", "length * kv_heads * head_dim = 96"));
  EXPECT_TRUE(says(cache({5, 2, 8, 10}), "values.size()", "95", "length * kv_heads * value_dim = 100"));
  EXPECT_TRUE(says(cache({-1, 2, 8}), "kv.length", "-1", "0"));
  EXPECT_TRUE(says(cache({kHuge, 2, 8}), "kv.length", number(kHuge), "63 bits"));
  EXPECT_TRUE(says(cache({5, 0, 8}), "kv.kv_heads", "0", "1"));
  EXPECT_TRUE(says(cache({5, 2, 0}), "kv.head_dim", "0", "1"));
}

TEST(ErrorTypes, AreWhatProgramsAlreadyCatch) {
  static_assert(std::is_base_of_v<std::invalid_argument, ArgumentError>);
  static_assert(std::is_base_of_v<std::runtime_error, StorageExhausted>);
  static_assert(!std::is_base_of_v<ArgumentError, StorageExhausted>);
}

TEST(ErrorHandler, IsRememberedAndNotCalledInUnitsWithExceptions) {
  static int calls = 0;
  const auto handler = [](const char*) { ++calls; };
  ASSERT_EQ(set_error_handler(handler), nullptr);
  Fixture f;
  f.sequence.q.data = nullptr;
  EXPECT_THROW(DynamicAttention{}(f.sequence, f.options), ArgumentError);
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(set_error_handler(nullptr), static_cast<ErrorHandler>(handler));
}

}  // namespace
}  // namespace gqa::test
