// SPDX-License-Identifier: Apache-2.0
// Every wrong argument is found before any work: the message names the argument, the value given and what was expected, and the
// outputs are untouched.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "support/messages.hpp"
#include "support/spoilt_call.hpp"

namespace gqa::test {
namespace {

struct WrongArgument {
  const char* name;  ///< of the test
  std::function<void(SpoiltCall&)> spoil;
  std::string argument;     ///< as the message names it
  std::string value;        ///< as the message shows it; empty: whatever it shows
  std::string expectation;  ///< part of what it says was expected
};
void PrintTo(const WrongArgument& wrong, std::ostream* out) { *out << wrong.name; }

class Errors : public testing::TestWithParam<WrongArgument> {};

/// A path of another architecture.
inline constexpr Path kForeignPath = GQA_DETAIL_NEON ? Path::avx2 : Path::neon;

TEST_P(Errors, IsNamedAndLeavesOutputsUntouched) {
  const WrongArgument& wrong = GetParam();
  SpoiltCall f;
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
  SpoiltCall first;
  SpoiltCall f;
  SpoiltCall last;
  wrong.spoil(f);
  const Sequence batch[] = {first.sequence, f.sequence, last.sequence};
  const bool of_the_sequence = wrong.argument.rfind("options", 0) != 0;
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(batch, f.options); }),
                   (of_the_sequence ? "batch[1]." : "") + wrong.argument, wrong.value,
                   of_the_sequence ? "" : wrong.expectation));
  EXPECT_TRUE(first.out.untouched() && f.out.untouched() && last.out.untouched());
}

std::vector<WrongArgument> wrong_queries_and_outputs() {
  return {
      {"QueryTokensNegative", [](SpoiltCall& f) { f.sequence.q.tokens = f.sequence.out.tokens = -1; }, "q.tokens", "-1",
       "0"},
      {"QueryHeadsZero", [](SpoiltCall& f) { f.sequence.q.heads = 0; }, "q.heads", "0", "1"},
      {"QueryHeadsNegative", [](SpoiltCall& f) { f.sequence.q.heads = -4; }, "q.heads", "-4", "1"},
      {"QueryHeadsHuge", [](SpoiltCall& f) { f.sequence.q.heads = kHuge; }, "q.heads", number(kHuge), "1"},
      {"QueryDimZero", [](SpoiltCall& f) { f.sequence.q.dim = 0; }, "q.dim", "0", "1"},
      {"QueryDimHuge", [](SpoiltCall& f) { f.sequence.q.dim = kHuge; }, "q.dim", number(kHuge), "1"},
      {"QueryDataNull", [](SpoiltCall& f) { f.sequence.q.data = nullptr; }, "q.data", "null", "f32"},
      {"QueryDataMisaligned",
       [](SpoiltCall& f) { f.sequence.q.data = static_cast<const std::byte*>(f.sequence.q.data) + 2; }, "q.data",
       "misaligned", "multiple of 4"},
      {"QueryTypeUnknown", [](SpoiltCall& f) { f.sequence.q.type = static_cast<ElementType>(9); }, "q.type", "9",
       "f32"},
      {"QueryStrideOverflows", [](SpoiltCall& f) { f.sequence.q.strides.token = kHuge; }, "q.strides.token",
       number(kHuge), "fit"},
      {"QueryStrideOverflowsBackwards",
       [](SpoiltCall& f) { f.sequence.q.strides.head = std::numeric_limits<Index>::min(); }, "q.strides.head",
       number(std::numeric_limits<Index>::min()), "fit"},
      {"OutTokensDiffer", [](SpoiltCall& f) { f.sequence.out.tokens = 2; }, "out.tokens", "2", "q.tokens = 3"},
      {"OutHeadsDiffer", [](SpoiltCall& f) { f.sequence.out.heads = 2; }, "out.heads", "2", "q.heads = 4"},
      {"OutDimDiffers", [](SpoiltCall& f) { f.sequence.out.dim = 16; }, "out.dim", "16", "kv.value_dim = 24"},
      {"OutDataNull", [](SpoiltCall& f) { f.sequence.out.data = nullptr; }, "out.data", "null", "f32"},
      {"OutDataMisaligned",
       [](SpoiltCall& f) { f.sequence.out.data = static_cast<std::byte*>(f.sequence.out.data) + 1; }, "out.data",
       "misaligned", "multiple of 4"},
      {"OutTypeUnknown", [](SpoiltCall& f) { f.sequence.out.type = static_cast<ElementType>(3); }, "out.type", "3",
       "f32"},
      {"OutStrideOverflows", [](SpoiltCall& f) { f.sequence.out.strides.token = kHuge / 2; }, "out.strides.token",
       number(kHuge / 2), "fit"},
      {"OutRowsOverlap",
       [](SpoiltCall& f) {
         f.sequence.out.strides = {96, 23, 1};
       },
       "out.strides", "{96, 23, 1}", "own"},
      {"OutTokensOverlap",
       [](SpoiltCall& f) {
         f.sequence.out.strides = {95, 24, 1};
       },
       "out.strides", "{95, 24, 1}", "own"},
      {"OutStrideZero",
       [](SpoiltCall& f) {
         f.sequence.out.strides = {0, 24, 1};
       },
       "out.strides", "{0, 24, 1}", "own"},
      {"OutStridesInterlock",
       [](SpoiltCall& f) {
         f.sequence.out.strides = {1, 24, 2};
       },
       "out.strides", "{1, 24, 2}", "own"},
      {"LseTooShort", [](SpoiltCall& f) { f.sequence.lse = f.sequence.lse.first(11); }, "lse.size()", "11",
       "q.tokens * q.heads = 12"},
      {"LseTooLong",
       [](SpoiltCall& f) {
         static std::vector<float> longer(13);
         f.sequence.lse = longer;
       },
       "lse.size()", "13", "12"},
      {"PositionsTooFew",
       [](SpoiltCall& f) {
         f.positions = {17, 18};
         f.sequence.positions = f.positions;
       },
       "positions.size()", "2", "q.tokens = 3"},
      {"PositionsTooMany",
       [](SpoiltCall& f) {
         f.positions = {16, 17, 18, 19};
         f.sequence.positions = f.positions;
       },
       "positions.size()", "4", "q.tokens = 3"},
  };
}

std::vector<WrongArgument> wrong_caches() {
  return {
      {"KvHeadsDoNotDivide", [](SpoiltCall& f) { f.sequence.kv.kv_heads = 3; }, "kv.kv_heads", "3",
       "divisor of q.heads = 4"},
      {"KvHeadsZero", [](SpoiltCall& f) { f.sequence.kv.kv_heads = 0; }, "kv.kv_heads", "0", "1"},
      {"KvHeadsNegative", [](SpoiltCall& f) { f.sequence.kv.kv_heads = -1; }, "kv.kv_heads", "-1", "1"},
      {"HeadDimsDiffer", [](SpoiltCall& f) { f.sequence.kv.head_dim = 12; }, "kv.head_dim", "12", "q.dim = 16"},
      {"ValueDimZero", [](SpoiltCall& f) { f.sequence.kv.value_dim = 0; }, "kv.value_dim", "0", "1"},
      {"ValueDimHuge", [](SpoiltCall& f) { f.sequence.kv.value_dim = kHuge; }, "kv.value_dim", number(kHuge), "1"},
      {"LengthNegative", [](SpoiltCall& f) { f.sequence.kv.length = -5; }, "kv.length", "-5", "0"},
      {"LengthHuge", [](SpoiltCall& f) { f.sequence.kv.length = kHuge; }, "kv.length", number(kHuge), "0"},
      {"KeysNull", [](SpoiltCall& f) { f.sequence.kv.k = nullptr; }, "kv.k", "null", "f32"},
      {"ValuesNull", [](SpoiltCall& f) { f.sequence.kv.v = nullptr; }, "kv.v", "null", "f32"},
      {"KeysMisaligned", [](SpoiltCall& f) { f.sequence.kv.k = static_cast<const std::byte*>(f.sequence.kv.k) + 1; },
       "kv.k", "misaligned", "multiple of 4"},
      {"ValuesMisaligned",
       [](SpoiltCall& f) {
         f.sequence.kv.v_type = ElementType::bf16;
         f.sequence.kv.v = static_cast<const std::byte*>(f.sequence.kv.v) + 1;
       },
       "kv.v", "misaligned", "multiple of 2"},
      {"KeyTypeUnknown", [](SpoiltCall& f) { f.sequence.kv.k_type = static_cast<ElementType>(200); }, "kv.k_type",
       "200", "f32"},
      {"ValueTypeUnknown", [](SpoiltCall& f) { f.sequence.kv.v_type = static_cast<ElementType>(3); }, "kv.v_type", "3",
       "f32"},
      {"StorageUnknown", [](SpoiltCall& f) { f.sequence.kv.storage = static_cast<Storage>(7); }, "kv.storage", "7",
       "paged"},
      {"KeyStrideOverflows", [](SpoiltCall& f) { f.sequence.kv.k_strides.token = kHuge / 8; }, "kv.k_strides.token",
       number(kHuge / 8), "fit"},
      {"KeyStrideOverflowsInBytes", [](SpoiltCall& f) { f.sequence.kv.k_strides.token = kHuge; }, "kv.k_strides.token",
       number(kHuge), "fit"},
      {"ValueStrideOverflowsInBytes",
       [](SpoiltCall& f) { f.sequence.kv.v_strides.head = std::numeric_limits<Index>::min() / 2; }, "kv.v_strides.head",
       number(std::numeric_limits<Index>::min() / 2), "fit"},
      {"LengthTimesStrideOverflows",
       [](SpoiltCall& f) {
         f.sequence.kv.length = Index{1} << 40;
         f.sequence.kv.k_strides.token = Index{1} << 30;
       },
       "kv.k_strides.token", number(Index{1} << 30), "fit"},
      {"RingWithoutSlots",
       [](SpoiltCall& f) {
         f.use_ring();
         f.sequence.kv.capacity = 0;
       },
       "kv.capacity", "0", "1 or more"},
      {"RingThatHasLostWhatAQuerySees", [](SpoiltCall& f) { f.use_ring(); }, "kv.capacity", "10",
       "room for position 0, which a query sees: at least length - position = 20"},
      {"PageSizeZero",
       [](SpoiltCall& f) {
         f.use_paged();
         f.sequence.kv.page_size = 0;
       },
       "kv.page_size", "0", "1 or more"},
      {"PageSizeNegative",
       [](SpoiltCall& f) {
         f.use_paged();
         f.sequence.kv.page_size = -8;
       },
       "kv.page_size", "-8", "1 or more"},
      {"PoolWithoutPages",
       [](SpoiltCall& f) {
         f.use_paged();
         f.sequence.kv.pool_pages = 0;
       },
       "kv.pool_pages", "0", "1"},
      {"PageTableNull",
       [](SpoiltCall& f) {
         f.use_paged();
         f.sequence.kv.page_table = nullptr;
       },
       "kv.page_table", "null", "page indices"},
      {"PageTableTooShort",
       [](SpoiltCall& f) {
         f.use_paged();
         f.sequence.kv.page_table_size = 2;
       },
       "kv.page_table_size", "2", "ceil(length / page_size) = 3"},
      {"PageNegative", [](SpoiltCall& f) { f.set_page(1, -1); }, "kv.page_table[1]", "-1", "[0, 6)"},
      {"PageBeyondThePool", [](SpoiltCall& f) { f.set_page(2, 6); }, "kv.page_table[2]", "6", "[0, 6)"},
      {"PageFarBeyondThePool", [](SpoiltCall& f) { f.set_page(0, std::numeric_limits<std::int32_t>::max()); },
       "kv.page_table[0]", number(std::numeric_limits<std::int32_t>::max()), "[0, 6)"},
      {"PageStrideOverflows",
       [](SpoiltCall& f) {
         f.use_paged();
         f.sequence.kv.k_strides.page = kHuge;
       },
       "kv.k_strides.page", number(kHuge), "fit"},
  };
}

std::vector<WrongArgument> wrong_options() {
  return {
      {"ScaleNaN", [](SpoiltCall& f) { f.options.scale = NAN; }, "options.scale", "", "finite"},
      {"ScaleInfinite", [](SpoiltCall& f) { f.options.scale = INFINITY; }, "options.scale", "", "finite"},
      {"PathThatCannotRun", [](SpoiltCall& f) { f.options.path = kForeignPath; }, "options.path",
       path_name(kForeignPath), "can run"},
      {"PathUnknown", [](SpoiltCall& f) { f.options.path = static_cast<Path>(77); }, "options.path", "", "can run"},
      {"ScratchTooSmall",
       [](SpoiltCall& f) {
         f.scratch.resize(100);
         f.options.scratch = f.scratch;
       },
       "options.scratch.size()", "100", "scratch_bytes()"},
      {"ExecutorWithoutConcurrency",
       [](SpoiltCall& f) {
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
  SpoiltCall f;
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, f.options); }), kNothingThrown);
  EXPECT_FALSE(f.out.untouched());
  f.use_paged();
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, f.options); }), kNothingThrown);
  f.use_ring();
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, CausalWindow{8}, f.options); }), kNothingThrown);
}

TEST(Errors, ARingIsLargeEnoughOrNot) {
  // Queries at 17, 18 and 19, ring of 10: position 10 is the oldest left, and a window of 8 begins there.
  SpoiltCall f;
  f.use_ring();
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, CausalWindow{8}, f.options); }), kNothingThrown);
  SpoiltCall g;
  g.use_ring();
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(g.sequence, CausalWindow{9}, g.options); }), "kv.capacity", "10",
                   "at least length - position = 11"));
  EXPECT_TRUE(g.out.untouched());
}

TEST(Errors, WrongPagesThatNoQueryLooksAtAreNone) {
  SpoiltCall f;
  f.set_page(0, -7);
  EXPECT_EQ(message_of([&] { DynamicAttention{}(f.sequence, CausalWindow{8}, f.options); }), kNothingThrown);
  SpoiltCall g;
  g.set_page(0, -7);
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(g.sequence, CausalWindow{11}, g.options); }), "kv.page_table[0]",
                   "-7", "[0, 6)"));
}

TEST(Errors, AScratchThatIsOneByteShortIsNamed) {
  SpoiltCall f;
  const std::size_t bytes = DynamicAttention{}.scratch_bytes({&f.sequence, 1}, f.options);
  f.scratch.resize(bytes - 1);
  f.options.scratch = f.scratch;
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(f.sequence, f.options); }), "options.scratch.size()",
                   std::to_string(bytes - 1), "scratch_bytes() = " + std::to_string(bytes)));
  EXPECT_TRUE(f.out.untouched());
}

TEST(Errors, AVariantsOwnParametersAreChecked) {
  SpoiltCall f;
  EXPECT_TRUE(says(message_of([&] { DynamicAttention{}(f.sequence, CausalWindow{0}, f.options); }), "variant.window",
                   "0", "1 or more"));
  EXPECT_TRUE(f.out.untouched());
}

TEST(Errors, AUsersVariantThatAsksForTooMuchGetsWhatThereIs) {
  struct Greedy {
    PositionRange visible_range(Index, Index kv_length) const { return {-100, kv_length + 100}; }
  };
  SpoiltCall f;
  DynamicAttention{}(f.sequence, Greedy{}, f.options);
  const Result greedy = f.out.result();
  DynamicAttention{}(f.sequence, Full{}, f.options);
  EXPECT_TRUE(same_bits(f.out.result(), greedy));
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
  SpoiltCall f;
  f.sequence.q.data = nullptr;
  EXPECT_THROW(DynamicAttention{}(f.sequence, f.options), ArgumentError);
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(set_error_handler(nullptr), static_cast<ErrorHandler>(handler));
}

}  // namespace
}  // namespace gqa::test
