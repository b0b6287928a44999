// SPDX-License-Identifier: Apache-2.0
/// @file
/// This library behind a few C functions, so that a script can call it in turn with others in one process. Not part of the build:
/// compare_rivals.py and compare_accuracy.py compile it into a shared library, the latter with emulated tiles where it is asked to.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gqa/backward.hpp"
#include "gqa/gqa.hpp"
#if defined(GQA_DETAIL_EMULATED_AMX)
#include "../tests/support/amx_emulator.hpp"
#endif
#include "machine_limits.hpp"
#include "peak_of_call.hpp"

namespace {

/// What caches may hold beside elements: the codecs that GQA_DRIVER_CODECS lists.
template <class... Codec>
struct Stored {
  using Cache = gqa::CacheOf<float, gqa::bf16, gqa::f16, Codec...>;
  static inline const std::vector<gqa::KvEncoding> codecs{Codec{}...};
};
#if defined(GQA_DRIVER_CODECS)
using Chosen = Stored<GQA_DRIVER_CODECS>;
#else
using Chosen = Stored<>;
#endif
using Cache = Chosen::Cache;
const std::vector<gqa::KvEncoding>& codecs = Chosen::codecs;

struct Driver {
  explicit Driver(int threads) { take_threads(threads); }
  void take_threads(int threads) {
    limits.reset();
    team.emplace(threads);
    limits.emplace(*team);
  }
  std::optional<gqa::bench::ThreadTeam> team{};
  std::optional<gqa::bench::MachineLimits> limits{};
  gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic, Cache> attention;
  gqa::DynamicAttentionBackward backward;
  std::optional<gqa::Path> path;
  std::string error;
};

/// Numbers that the script passes are the codecs' ids.
gqa::ElementType element_of(int number) { return static_cast<gqa::ElementType>(number); }
gqa::KvEncoding encoding_of(int number) {
  for (const gqa::KvEncoding& codec : codecs)
    if (gqa::KvType(codec).id() == number) return codec;
  return element_of(number);
}

/// n_q × heads × dim.
gqa::ConstTensorView packed_rows(const void* data, int type, long tokens, int heads, int dim) {
  return {data, element_of(type), tokens, heads, dim};
}

/// The answer of a C function: 0, or 1 with a message in gqa_driver_error.
template <class Call>
int answer_of(Driver& driver, const Call& call) {
  try {
    call();
    return 0;
  } catch (const std::exception& error) {
    driver.error = error.what();
    return 1;
  }
}

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
  return static_cast<Driver*>(driver)->limits->sample(gqa::bench::Limit::memory_read);
}
/// One sample of the peak of calls with all operands of a type, FLOP per second.
double gqa_driver_peak(void* driver, int type) {
  const gqa::bench::Limit peak = gqa::bench::peak_of_call(gqa::active_path().path, element_of(type), element_of(type));
  return static_cast<Driver*>(driver)->limits->sample(peak);
}

/// The number of a type, "bf16" or "q8_0"; −1 if there is none.
int gqa_driver_type(const char* name) {
  for (const gqa::ElementType type : {gqa::ElementType::f32, gqa::ElementType::bf16, gqa::ElementType::f16})
    if (name == std::string(gqa::element_name(type))) return static_cast<int>(type);
  for (const gqa::KvType codec : codecs)
    if (name == std::string(gqa::detail::codec_name(codec).c_str())) return static_cast<int>(codec.id());
  return -1;
}
/// Bytes from one row to the next.
int gqa_driver_row_bytes(int type, int dim) {
  const gqa::KvType stored = encoding_of(type);
  return static_cast<int>(stored.stride_bytes(stored.row_stride(dim)));
}
/// to ← rows of f32 in a codec that has no scales outside of rows.
void gqa_driver_encode(int type, const float* rows, long count, int dim, std::byte* to) {
  const gqa::KvEncoding codec = encoding_of(type);
  for (long row = 0; row < count; ++row)
    codec.codec()->encoder(gqa::detail::row_ops().set, gqa::ElementType::f32)(
        reinterpret_cast<const std::byte*>(rows + row * dim), 1, dim, to + row * gqa_driver_row_bytes(type, dim),
        nullptr);
}

void gqa_driver_take_threads(void* driver, int threads) { static_cast<Driver*>(driver)->take_threads(threads); }

/// Whether calls can take the path of this name from here on; if so, they do. Null: the best.
int gqa_driver_take_path(void* driver, const char* name) {
  if (name == nullptr) {
    static_cast<Driver*>(driver)->path.reset();
    return 1;
  }
  for (const gqa::Path path :
       {gqa::Path::portable, gqa::Path::avx2, gqa::Path::avx512, gqa::Path::avx512bf16, gqa::Path::amx})
    if (name == std::string(gqa::path_name(path)) && gqa::path_available(path)) {
      static_cast<Driver*>(driver)->path = path;
      return 1;
    }
  return 0;
}

/// Causal attention of `batch` sequences, of each the last n_q of its n_kv tokens, in one call. Sequences lie one after another, in q and out as
/// in k and v or in the table.
/// @param q   of each n_q × Hq × D of `q_type`
/// @param k,v of `k_type` and `v_type`: of each Hkv × n_kv × D, or if they are token-major n_kv × Hkv × D; or, with a table, pages
/// @param k_scale,v_scale the scale of all of them, for types whose scales lie outside of rows; else null
/// @param n_q,n_kv numbers of tokens, `batch` of both
/// @param table null, or of each ⌈n_kv / page_size⌉ numbers of pages, each Hkv × page_size × D, of a pool that has as many as the table
/// @param out of each n_q × Hq × D, f32
/// @param lse of each n_q × Hq, or null
/// @return 0, or 1 with a message in gqa_driver_error
int gqa_driver_attend(void* driver, const void* q, int q_type, const void* k, int k_type, const float* k_scale,
                      const void* v, int v_type, const float* v_scale, int query_heads, int kv_heads, int head_dim,
                      const long* n_q, const long* n_kv, int batch, int token_major, const std::int32_t* table,
                      long page_size, float* out, float* lse) {
  Driver& self = *static_cast<Driver*>(driver);
  return answer_of(self, [&] {
    const auto pages_of = [&](int i) { return (n_kv[i] + page_size - 1) / page_size; };
    gqa::KvCacheView kv;
    kv.k_type = encoding_of(k_type);
    kv.v_type = encoding_of(v_type);
    kv.kv_heads = kv_heads;
    kv.head_dim = kv.value_dim = head_dim;
    kv.k = k;
    kv.v = v;
    if (k_scale != nullptr) kv.k_scales = {k_scale, {0, 0}};
    if (v_scale != nullptr) kv.v_scales = {v_scale, {0, 0}};
    if (table != nullptr) {
      kv.storage = gqa::Storage::paged;
      kv.page_size = page_size;
      for (int i = 0; i < batch; ++i) kv.pool_pages += pages_of(i);
    }
    gqa::Options options;
    options.executor = *self.team;
    options.path = self.path;
    const auto strides = [&](const gqa::KvType& type, long tokens) {
      const gqa::Index row = type.row_stride(head_dim);
      if (token_major != 0) return gqa::KvStrides::token_major(kv_heads, row);
      return gqa::KvStrides::head_major(kv_heads, table != nullptr ? page_size : tokens, row);
    };
    std::vector<gqa::Sequence> sequences;
    long query_rows = 0, tokens = 0, pages = 0;  // of the sequences before
    for (int i = 0; i < batch; ++i) {
      const auto bytes_before = [&](const gqa::KvType& type) {
        return type.stride_bytes(kv_heads * tokens * type.row_stride(head_dim));
      };
      kv.length = n_kv[i];
      kv.k_strides = strides(kv.k_type, n_kv[i]);
      kv.v_strides = strides(kv.v_type, n_kv[i]);
      if (table != nullptr) {
        kv.page_table = table + pages;
        kv.page_table_size = pages_of(i);
        pages += pages_of(i);
      } else {
        kv.k = static_cast<const std::byte*>(k) + bytes_before(kv.k_type);
        kv.v = static_cast<const std::byte*>(v) + bytes_before(kv.v_type);
      }
      const gqa::Index q_bytes = gqa::KvType(element_of(q_type)).stride_bytes(query_rows * head_dim);
      gqa::Sequence& sequence = sequences.emplace_back();
      sequence.q = packed_rows(static_cast<const std::byte*>(q) + q_bytes, q_type, n_q[i], query_heads, head_dim);
      sequence.kv = kv;
      sequence.out = gqa::TensorView(out + query_rows * head_dim, n_q[i], query_heads, head_dim);
      if (lse != nullptr) sequence.lse = {lse + query_rows, static_cast<std::size_t>(n_q[i] * query_heads)};
      query_rows += n_q[i] * query_heads;
      tokens += n_kv[i];
    }
    self.attention(sequences, gqa::Causal{}, options);
  });
}

/// Gradients of causal attention over n tokens, from what gqa_driver_attend left in out and lse.
/// @param q,d_out  n × Hq × D of `type`; k,v Hkv × n × D of it
/// @param d_q      n × Hq × D, f32; d_k,d_v Hkv × n × D
/// @return as gqa_driver_attend
int gqa_driver_differentiate(void* driver, const void* q, const void* k, const void* v, int type, float* out,
                             float* lse, const void* d_out, int query_heads, int kv_heads, int head_dim, long n,
                             float* d_q, float* d_k, float* d_v) {
  Driver& self = *static_cast<Driver*>(driver);
  return answer_of(self, [&] {
    const gqa::KvShape shape{n, kv_heads, head_dim};
    const auto steps = gqa::KvStrides::head_major(kv_heads, n, head_dim);
    const auto rows = gqa::TensorStrides::head_major(kv_heads, n, head_dim);
    const gqa::Sequence sequence{
        .q = packed_rows(q, type, n, query_heads, head_dim),
        .kv = gqa::KvCacheView::contiguous(k, element_of(type), v, element_of(type), shape, steps, steps),
        .out = gqa::TensorView(out, n, query_heads, head_dim),
        .lse = {lse, static_cast<std::size_t>(n * query_heads)}};
    gqa::SequenceGradients gradients;
    gradients.d_out = packed_rows(d_out, type, n, query_heads, head_dim);
    gradients.d_q = gqa::TensorView(d_q, n, query_heads, head_dim);
    gradients.d_k = gqa::TensorView(d_k, n, kv_heads, head_dim, rows);
    gradients.d_v = gqa::TensorView(d_v, n, kv_heads, head_dim, rows);
    gqa::BackwardOptions options;
    options.executor = *self.team;
    options.path = self.path;
    self.backward(sequence, gradients, options);
  });
}

}  // extern "C"
