// SPDX-License-Identifier: Apache-2.0
// The same bits whatever the calling thread has done to its floating-point environment, which is left as it was.
#include <gtest/gtest.h>

#include <cfenv>

#include "support/executors.hpp"
#include "support/problem.hpp"
#include "support/variants.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gqa::test {
namespace {

class FloatEnvironment : public PerPathAndType {
 protected:
  /// Results under `change` and without it are the same, and the environment is as `change` left it.
  template <class Change, class Read>
  void hold(const Change& change, const Read& read) const {
    for (const Distribution distribution : {Distribution::normal, Distribution::denormal}) {
      // D is no power of 4: its square root is rounded, and so is the scale.
      const Problem p = make_problem({4, 2, 24, 16, 9, detail::kSpan + 70}, 161, distribution);
      const Types types = cache_of(type());
      const Tensor q(p.q, types.q);
      const StoredCaches kv = store_cache(p.kv, types.k, types.v, {});
      const Result expected = attend(q.const_view(), kv.view(), {path()});
      const Result expected_alibi = attend(q.const_view(), kv.view(), {path()}, Alibi{});
      std::fenv_t saved;
      std::fegetenv(&saved);
      change();
      const auto before = read();
      const Result actual = attend(q.const_view(), kv.view(), {path()});
      const Result alibi = attend(q.const_view(), kv.view(), {path()}, Alibi{});
      const auto after = read();
      std::fesetenv(&saved);
      EXPECT_EQ(before, after) << "the caller's environment must be put back";
      EXPECT_TRUE(same_bits(expected, actual)) << on(path()) << ", " << types << ", " << distribution_name(distribution);
      EXPECT_TRUE(same_bits(expected_alibi, alibi)) << on(path()) << ", " << types << ", ALiBi";
    }
  }
};

TEST_P(FloatEnvironment, RoundingModeOfTheCallerIsNothing) {
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    SCOPED_TRACE(mode);
    hold([&] { std::fesetround(mode); }, [] { return std::fegetround(); });
  }
}

#if defined(__x86_64__)
TEST_P(FloatEnvironment, FlushingOfDenormalsByTheCallerIsNothing) {
  // Flush to zero (bit 15) and denormals are zero (bit 6): what a program linked with -ffast-math starts with.
  hold([] { _mm_setcsr(_mm_getcsr() | 0x8040u); }, [] { return _mm_getcsr() & 0xffc0u; });
}
#endif

INSTANTIATE_TEST_SUITE_P(EveryPath, FloatEnvironment, FloatEnvironment::cases(), FloatEnvironment::name);

}  // namespace
}  // namespace gqa::test
