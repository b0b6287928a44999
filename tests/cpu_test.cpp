// SPDX-License-Identifier: Apache-2.0
// Which path runs: detection, the environment variable, and what the option allows. Choices are tested for processors that this
// machine is not.
#include "gqa/cpu.hpp"

#include <gtest/gtest.h>

#include <cstdlib>

namespace gqa {
namespace {

using detail::CpuFeatures;
using detail::Streaming;

constexpr CpuFeatures kNothing{};
constexpr CpuFeatures kAvx2{.avx2 = true};
constexpr CpuFeatures kAvx512{.avx2 = true, .avx512 = true};
constexpr CpuFeatures kBf16{.avx2 = true, .avx512 = true, .avx512bf16 = true};
constexpr CpuFeatures kFollows{.avx2 = true, .follows_loads = true};
constexpr CpuFeatures kAmx{.avx2 = true, .avx512 = true, .avx512bf16 = true, .amx = true};

/// `call` refuses an environment variable's word, and names the variable, the word and what it expects.
template <class Call>
void expect_refused(const Call& call, const char* variable, const char* wish, const char* expected) {
  try {
    call();
    ADD_FAILURE() << variable << "=" << wish << " was taken";
  } catch (const ArgumentError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find(variable), std::string::npos) << message;
    EXPECT_NE(message.find(wish), std::string::npos) << message;
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
}

#if GQA_DETAIL_NEON

constexpr CpuFeatures kNeonBf16{.neon_bf16 = true};

TEST(ChoosePath, TakesTheBestWithoutAWish) {
  for (const char* wish : {static_cast<const char*>(nullptr), ""}) {
    EXPECT_EQ(detail::choose_path(kNothing, wish).path, Path::neon) << "every AArch64 has it";
    EXPECT_EQ(detail::choose_path(kNeonBf16, wish).path, Path::neon_bf16);
  }
}

TEST(ChoosePath, AWishLowersThePathAndNeverRaisesIt) {
  EXPECT_EQ(detail::choose_path(kNeonBf16, "neon_bf16").path, Path::neon_bf16);
  EXPECT_EQ(detail::choose_path(kNeonBf16, "neon").path, Path::neon);
  EXPECT_EQ(detail::choose_path(kNeonBf16, "portable").path, Path::portable);
  EXPECT_EQ(detail::choose_path(kNothing, "neon_bf16").path, Path::neon);
  EXPECT_EQ(detail::choose_path(kNothing, "amx").path, Path::neon);
}

#else

TEST(ChoosePath, TakesTheBestWithoutAWish) {
  for (const char* wish : {static_cast<const char*>(nullptr), ""}) {
    EXPECT_EQ(detail::choose_path(kNothing, wish).path, Path::portable);
    EXPECT_EQ(detail::choose_path(kAvx2, wish).path, Path::avx2);
    EXPECT_EQ(detail::choose_path(kAvx512, wish).path, Path::avx512);
    EXPECT_EQ(detail::choose_path(kBf16, wish).path, Path::avx512bf16);
    EXPECT_EQ(detail::choose_path(kAmx, wish).path, Path::amx);
  }
}

TEST(ChoosePath, AWishLowersThePath) {
  EXPECT_EQ(detail::choose_path(kAmx, "portable").path, Path::portable);
  EXPECT_EQ(detail::choose_path(kAmx, "avx2").path, Path::avx2);
  EXPECT_EQ(detail::choose_path(kAmx, "avx512").path, Path::avx512);
  EXPECT_EQ(detail::choose_path(kAmx, "avx512bf16").path, Path::avx512bf16);
  EXPECT_EQ(detail::choose_path(kAvx2, "portable").path, Path::portable);
  EXPECT_EQ(detail::choose_path(kAmx, "amx").path, Path::amx);
}

TEST(ChoosePath, AWishNeverRaisesIt) {
  EXPECT_EQ(detail::choose_path(kNothing, "amx").path, Path::portable);
  EXPECT_EQ(detail::choose_path(kAvx2, "avx512").path, Path::avx2);
  EXPECT_EQ(detail::choose_path(kAvx512, "amx").path, Path::avx512);
}

TEST(ChoosePath, AWishThatCannotRunGivesTheBestBelowIt) {
  EXPECT_EQ(detail::choose_path(kAmx, "neon").path, Path::portable);
  // AMX without the path between: the best that is not above the wish.
  constexpr CpuFeatures odd{.avx2 = true, .avx512 = true, .avx512bf16 = false, .amx = true};
  EXPECT_EQ(detail::choose_path(odd, "avx512bf16").path, Path::avx512);
}

#endif

TEST(ChoosePath, SaysWhy) {
  for (const CpuFeatures& has : {kNothing, kAvx2, kAvx512, kBf16, kAmx})
    for (const char* wish :
         {static_cast<const char*>(nullptr), "portable", "neon", "neon_bf16", "avx2", "avx512", "avx512bf16", "amx"}) {
      const ActivePath chosen = detail::choose_path(has, wish);
      ASSERT_NE(chosen.reason, nullptr);
      EXPECT_GT(std::string(chosen.reason).size(), 10u);
      if (wish != nullptr) {
        EXPECT_NE(std::string(chosen.reason).find("GQA_PATH"), std::string::npos) << chosen.reason;
      }
    }
}

TEST(ChoosePath, AWordThatIsNoPathIsAnError) {
  for (const char* wish : {"AVX2", "avx", "amx ", "best", "0"})
    expect_refused([&] { static_cast<void>(detail::choose_path(kAmx, wish)); }, "GQA_PATH", wish, "avx512bf16");
}

TEST(ChooseStreaming, FollowsTheProcessor) {
  for (const char* wish : {static_cast<const char*>(nullptr), ""}) {
    EXPECT_EQ(detail::choose_streaming(kBf16, wish), Streaming::prefetched);
    EXPECT_EQ(detail::choose_streaming(kFollows, wish), Streaming::followed);
  }
}

TEST(ChooseStreaming, AWishIsTaken) {
  for (const CpuFeatures& has : {kNothing, kBf16, kFollows}) {
    EXPECT_EQ(detail::choose_streaming(has, "prefetched"), Streaming::prefetched);
    EXPECT_EQ(detail::choose_streaming(has, "followed"), Streaming::followed);
  }
}

TEST(ChooseStreaming, AnyOtherWordIsAnError) {
  for (const char* wish : {"prefetch", "Followed", "1"})
    expect_refused([&] { static_cast<void>(detail::choose_streaming(kBf16, wish)); }, "GQA_STREAMING", wish,
                   "prefetched or followed");
}

#if defined(__x86_64__)
TEST(ChooseStreaming, KnowsProcessorsThatFollowLoads) {
  constexpr std::uint32_t amd = 0x68747541, hygon = 0x6f677948, intel = 0x756e6547;
  EXPECT_TRUE(detail::follows_loads(amd, 0x00800f12)) << "Zen, family 17h";
  EXPECT_TRUE(detail::follows_loads(amd, 0x00a00f11)) << "Zen 3, family 19h";
  EXPECT_TRUE(detail::follows_loads(amd, 0x00a10f11)) << "Zen 4, family 19h";
  EXPECT_TRUE(detail::follows_loads(hygon, 0x00900f01)) << "family 18h";
  EXPECT_FALSE(detail::follows_loads(amd, 0x00b00f21)) << "Zen 5, family 1Ah";
  EXPECT_FALSE(detail::follows_loads(intel, 0x000806f8)) << "Sapphire Rapids, family 6";
}
#endif

#if GQA_DETAIL_NEON
TEST(Features, AreReadFromLinuxsBits) {
  EXPECT_FALSE(detail::features_of_hwcaps(~(std::uint64_t{1} << 20), 0).neon_dot);
  EXPECT_TRUE(detail::features_of_hwcaps(std::uint64_t{1} << 20, 0).neon_dot) << "HWCAP_ASIMDDP";
  EXPECT_TRUE(detail::features_of_hwcaps(std::uint64_t{1} << 22, 0).sve) << "HWCAP_SVE";
  EXPECT_TRUE(detail::features_of_hwcaps(0, std::uint64_t{1} << 13).neon_i8mm) << "HWCAP2_I8MM";
  EXPECT_TRUE(detail::features_of_hwcaps(0, std::uint64_t{1} << 14).neon_bf16) << "HWCAP2_BF16";
  EXPECT_FALSE(detail::features_of_hwcaps(~std::uint64_t{0}, ~(std::uint64_t{1} << 14)).neon_bf16);
  EXPECT_TRUE(detail::features_of_hwcaps(0, 0).neon) << "every AArch64 has it";
}
#endif

TEST(Paths, HaveTheirNames) {
  EXPECT_STREQ(path_name(Path::portable), "portable");
  EXPECT_STREQ(path_name(Path::neon), "neon");
  EXPECT_STREQ(path_name(Path::neon_bf16), "neon_bf16");
  EXPECT_STREQ(path_name(Path::avx2), "avx2");
  EXPECT_STREQ(path_name(Path::avx512), "avx512");
  EXPECT_STREQ(path_name(Path::avx512bf16), "avx512bf16");
  EXPECT_STREQ(path_name(Path::amx), "amx");
}

TEST(Paths, ThisMachineAgreesWithTheCompilersOwnDetection) {
  EXPECT_TRUE(path_available(Path::portable));
  EXPECT_EQ(path_available(Path::neon), bool{GQA_DETAIL_NEON});
#if GQA_DETAIL_NEON
  EXPECT_EQ(path_available(Path::neon_bf16), detail::features().neon_bf16);
#else
  EXPECT_FALSE(path_available(Path::neon_bf16));
#endif
#if defined(__x86_64__)
  __builtin_cpu_init();
  EXPECT_EQ(path_available(Path::avx2), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(path_available(Path::avx512), __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                              __builtin_cpu_supports("avx512dq") &&
                                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") &&
                                              __builtin_cpu_supports("fma"));
  EXPECT_EQ(path_available(Path::avx512bf16), path_available(Path::avx512) && __builtin_cpu_supports("avx512bf16"));
#endif
  // A path implies those below it.
  EXPECT_LE(path_available(Path::amx), path_available(Path::avx512bf16));
  EXPECT_LE(path_available(Path::avx512bf16), path_available(Path::avx512));
  EXPECT_LE(path_available(Path::avx512), path_available(Path::avx2));
}

TEST(ActivePath, IsTheChoiceForThisProcessAndDoesNotChange) {
  const ActivePath first = active_path();
  EXPECT_TRUE(path_available(first.path));
  EXPECT_EQ(first.path, detail::choose_path(detail::features(), std::getenv("GQA_PATH")).path);
  const char* before = std::getenv("GQA_PATH");
  const std::string kept = before == nullptr ? "" : before;
  ::setenv("GQA_PATH", first.path == Path::portable ? "avx2" : "portable", 1);
  EXPECT_EQ(active_path().path, first.path) << "decided once per process";
  ::setenv("GQA_PATH", kept.c_str(), 1);
  EXPECT_EQ(active_path().reason, first.reason);
}

TEST(StreamingInUse, IsTheChoiceForThisProcess) {
  EXPECT_EQ(detail::streaming_in_use(), detail::choose_streaming(detail::features(), std::getenv("GQA_STREAMING")));
}

}  // namespace
}  // namespace gqa
