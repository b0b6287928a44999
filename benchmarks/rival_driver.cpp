// SPDX-License-Identifier: Apache-2.0
/// @file
/// This library behind a few C functions, so that a script can call it in turn with others in one process. Not part of the build:
/// compare_rivals.py and compare_accuracy.py compile it into a shared library, the latter with emulated tiles where it is asked to.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "gqa/gqa.hpp"
#if defined(GQA_DETAIL_EMULATED_AMX)
#include "../tests/support/amx_emulator.hpp"
#endif
#include "machine_limits.hpp"
#include "peak_of_call.hpp"

namespace {

struct Driver {
  explicit Driver(int threads) : team(threads), limits(team) {}
  gqa::bench::ThreadTeam team;
  gqa::bench::MachineLimits limits;
  gqa::DynamicAttention attention;
  std::optional<gqa::Path> path;
  std::string error;
};

/// Numbers that the script passes: 0 f32, 1 bf16, 2 f16.
gqa::ElementType type_of(int number) { return static_cast<gqa::ElementType>(number); }

}  // namespace

extern "C" {

void* gqa_driver_open(int threads) { return new Driver(threads); }
void gqa_driver_close(void* driver) { delete static_cast<Driver*>(driver); }
const char* gqa_driver_error(void* driver) { return static_cast<Driver*>(driver)->error.c_str(); }
const char* gqa_driver_path() { return gqa::path_name(gqa::active_path().path); }
const char* gqa_driver_machine() {
  static const std::string name = gqa::bench::machine_name();
  return name.c_str();
}

/// Samples of limits count processor time from here on.
void gqa_driver_count_processor_time() { gqa::bench::sample_processor_time() = true; }

/// Bytes that must be walked before what was read once is out of every cache.
std::uint64_t gqa_driver_out_of_cache_bytes() { return gqa::bench::out_of_cache_bytes(); }

/// One sample, bytes per second.
double gqa_driver_read_bandwidth(void* driver) {
  return static_cast<Driver*>(driver)->limits.sample(gqa::bench::Limit::memory_read);
}
/// One sample of the peak of calls with all operands of a type, FLOP per second.
double gqa_driver_peak(void* driver, int type) {
  const gqa::bench::Limit peak = gqa::bench::peak_of_call(gqa::active_path().path, type_of(type), type_of(type));
  return static_cast<Driver*>(driver)->limits.sample(peak);
}

/// Whether calls can take the path of this name from here on; if so, they do.
int gqa_driver_take_path(void* driver, const char* name) {
  for (const gqa::Path path :
       {gqa::Path::portable, gqa::Path::avx2, gqa::Path::avx512, gqa::Path::avx512bf16, gqa::Path::amx})
    if (name == std::string(gqa::path_name(path)) && gqa::path_available(path)) {
      static_cast<Driver*>(driver)->path = path;
      return 1;
    }
  return 0;
}

/// Causal attention of the last n_q of n_kv tokens.
/// @param q   n_q × Hq × D of `q_type`
/// @param k,v Hkv × n_kv × D of `kv_type`
/// @param out n_q × Hq × D, f32
/// @param lse n_q × Hq, or null
/// @return 0, or 1 with a message in gqa_driver_error
int gqa_driver_attend(void* driver, const void* q, int q_type, const void* k, const void* v, int kv_type,
                      int query_heads, int kv_heads, int head_dim, long n_q, long n_kv, float* out, float* lse) {
  Driver& self = *static_cast<Driver*>(driver);
  try {
    gqa::ConstTensorView queries;
    queries.data = q;
    queries.type = type_of(q_type);
    queries.tokens = n_q;
    queries.heads = query_heads;
    queries.dim = head_dim;
    queries.strides = {gqa::Index{query_heads} * head_dim, head_dim, 1};
    gqa::KvCacheView kv;
    kv.k = k;
    kv.v = v;
    kv.k_type = kv.v_type = type_of(kv_type);
    kv.length = n_kv;
    kv.kv_heads = kv_heads;
    kv.head_dim = kv.value_dim = head_dim;
    kv.k_strides = kv.v_strides = gqa::KvStrides::head_major(kv_heads, n_kv, head_dim);
    gqa::Options options;
    options.executor = self.team;
    options.path = self.path;
    gqa::Sequence sequence{.q = queries, .kv = kv, .out = gqa::TensorView(out, n_q, query_heads, head_dim)};
    if (lse != nullptr) sequence.lse = {lse, static_cast<std::size_t>(n_q * query_heads)};
    self.attention(std::span<const gqa::Sequence>(&sequence, 1), gqa::Causal{}, options);
    return 0;
  } catch (const std::exception& error) {
    self.error = error.what();
    return 1;
  }
}

}  // extern "C"
