// SPDX-License-Identifier: Apache-2.0
// The fewest instructions that a decode step is thought to take, for count_neon.py to compare with: one KV head, 4 query heads, D = 128, the
// cache in 64-token blocks. Nothing is checked, planned, masked or prefetched, sums are added in whatever order is cheapest, and where the
// scores' maximum goes the older sums are scaled. Not the library's bits.
#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int kGroup = 4;
constexpr int kDim = 128;
constexpr int kBlock = 64;

#if GQA_COUNTED_BITS == 32
using Stored = float;
inline float32x4_t load(const float* p) { return vld1q_f32(p); }
#elif defined(GQA_COUNTED_F16)
using Stored = std::uint16_t;
inline float32x4_t load(const std::uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
#else
using Stored = std::uint16_t;
inline float32x4_t load(const std::uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
#endif

// 2^x for x <= 0, to about 2^-22.
inline float32x4_t exp2_of(float32x4_t x) {
  const float32x4_t magic = vdupq_n_f32(0x1.8p23f + 127.0f);
  x = vmaxq_f32(x, vdupq_n_f32(-126.0f));
  const float32x4_t t = vaddq_f32(x, magic);
  const float32x4_t r = vsubq_f32(x, vsubq_f32(t, magic));
  float32x4_t p = vdupq_n_f32(0x1.5f3e5ep-10f);
  for (const float c : {0x1.3b2d4cp-7f, 0x1.c6aee8p-5f, 0x1.ebfbdcp-3f, 0x1.62e430p-1f, 1.0f})
    p = vfmaq_f32(vdupq_n_f32(c), p, r);
  return vmulq_f32(p, vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(t), 23)));
}

struct State {
  float32x4_t o[kGroup][kDim / 4];
  float m[kGroup];
  float32x4_t l[kGroup];
};

// Four rows and four tokens at a time; what a lane has added up is added at the end.
inline void scores(const float* q, const Stored* k, float (*s)[kBlock]) {
  for (int t = 0; t < kBlock; t += 4, k += 4 * kDim) {
    float32x4_t sum[kGroup][4] = {};
#pragma GCC unroll 2
    for (int d = 0; d < kDim; d += 4) {
      const float32x4_t key[4] = {load(k + d), load(k + kDim + d), load(k + 2 * kDim + d), load(k + 3 * kDim + d)};
#pragma GCC unroll 4
      for (int g = 0; g < kGroup; ++g) {
        const float32x4_t query = vld1q_f32(q + g * kDim + d);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[g][i] = vfmaq_f32(sum[g][i], query, key[i]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < kGroup; ++g)
      vst1q_f32(s[g] + t, vpaddq_f32(vpaddq_f32(sum[g][0], sum[g][1]), vpaddq_f32(sum[g][2], sum[g][3])));
  }
}

inline void weights(float* s, State& state, int g) {
  float32x4_t most = vld1q_f32(s);
#pragma GCC unroll 16
  for (int t = 4; t < kBlock; t += 4) most = vmaxq_f32(most, vld1q_f32(s + t));
  const float m = std::fmax(state.m[g], vmaxvq_f32(most));
  if (m != state.m[g]) {
    const float32x4_t alpha = exp2_of(vdupq_n_f32(state.m[g] - m));
    for (float32x4_t& o : state.o[g]) o = vmulq_f32(o, alpha);
    state.l[g] = vmulq_f32(state.l[g], alpha);
    state.m[g] = m;
  }
  float32x4_t l = state.l[g];
#pragma GCC unroll 4
  for (int t = 0; t < kBlock; t += 4) {
    const float32x4_t w = exp2_of(vsubq_f32(vld1q_f32(s + t), vdupq_n_f32(m)));
    vst1q_f32(s + t, w);
    l = vaddq_f32(l, w);
  }
  state.l[g] = l;
}

// Four rows and 16 dims at a time, over a block.
inline void outputs(const float (*w)[kBlock], const Stored* v, State& state) {
  for (int c = 0; c < kDim / 4; c += 4) {
    float32x4_t o[kGroup][4];
    for (int g = 0; g < kGroup; ++g)
      for (int i = 0; i < 4; ++i) o[g][i] = state.o[g][c + i];
    const Stored* row = v + c * 4;
    for (int t = 0; t < kBlock; t += 4) {
      const float32x4_t weight[kGroup] = {vld1q_f32(w[0] + t), vld1q_f32(w[1] + t), vld1q_f32(w[2] + t),
                                          vld1q_f32(w[3] + t)};
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n, row += kDim) {
        const float32x4_t value[4] = {load(row), load(row + 4), load(row + 8), load(row + 12)};
#pragma GCC unroll 4
        for (int g = 0; g < kGroup; ++g)
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) o[g][i] = vfmaq_n_f32(o[g][i], value[i], weight[g][n]);
      }
    }
    for (int g = 0; g < kGroup; ++g)
      for (int i = 0; i < 4; ++i) state.o[g][c + i] = o[g][i];
  }
}

__attribute__((noinline)) void decode(const float* q, const Stored* k, const Stored* v, int tokens, float* out) {
  State state = {};
  for (float& m : state.m) m = -1e30f;
  float s[kGroup][kBlock];
  for (int t = 0; t < tokens; t += kBlock) {
    scores(q, k + t * kDim, s);
    for (int g = 0; g < kGroup; ++g) weights(s[g], state, g);
    outputs(s, v + t * kDim, state);
  }
  for (int g = 0; g < kGroup; ++g)
    for (int c = 0; c < kDim / 4; ++c)
      vst1q_f32(out + g * kDim + 4 * c, vdivq_f32(state.o[g][c], vdupq_n_f32(vaddvq_f32(state.l[g]))));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  const int tokens = std::atoi(argv[1]) / kBlock * kBlock;
  const int calls = std::atoi(argv[2]);
  const std::vector<float> q(kGroup * kDim, 0.01f);
  std::vector<float> out(q.size());
  const std::vector<Stored> rows(static_cast<std::size_t>(tokens * kDim));
  for (int i = 0; i < calls; ++i) decode(q.data(), rows.data(), rows.data(), tokens, out.data());
  std::printf("%g\n", static_cast<double>(out[0]));
  return 0;
}
