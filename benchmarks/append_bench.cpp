// SPDX-License-Identifier: Apache-2.0
/// @file
/// Appending keys and values to the owning caches: one token to each of many sequences, as in a decode step, or a chunk of a
/// prompt. Held against the speed at which memory can be written: percent_of_memory is of what is stored, percent_with_rows of that and of the
/// rows that are read.
///
///   append_<cache>/<heads>/<from>_<type>/<tokens>/t1             <tokens> at a time, converted from <from> to <type>
///   append_rope_<pairs>/<heads>/<from>_<type>/<tokens>/t1        to a contiguous cache, keys turned by their positions on the way
///
/// <type> is an element type, or a codec, of which chunks alone are measured.

#include "bench_main.hpp"
#include "gqa/rope.hpp"

namespace gqa::bench {
namespace {

constexpr Index kv_heads = 8, head_dim = 128, capacity = 2048, sequences = 32;

/// Owning caches of one kind, that tokens are appended to in turn; one that is full starts again.
template <class Cache, class... Hook>
class Appender {
 public:
  Appender(std::vector<Cache> caches, ElementType from, Index tokens, const Hook&... hook)
      : caches_(std::move(caches)),
        hook_(hook...),
        rows_(normal_elements(from, static_cast<std::size_t>(tokens * kv_heads * head_dim))) {
    view_.data = rows_.data();
    view_.type = from;
    view_.tokens = tokens;
    view_.heads = kv_heads;
    view_.dim = head_dim;
    view_.strides = {kv_heads * head_dim, head_dim, 1};
  }
  void operator()() {
    Cache& cache = caches_[at_];
    at_ = (at_ + 1) % caches_.size();
    if constexpr (!std::is_same_v<Cache, RingKvCache>)
      if (cache.length() + view_.tokens > capacity) cache.clear();
    std::apply([&](const Hook&... hook) { cache.append(view_, view_, hook...); }, hook_);
  }

 private:
  std::vector<Cache> caches_;
  std::tuple<Hook...> hook_;
  std::vector<std::byte> rows_;
  ConstTensorView view_;
  std::size_t at_ = 0;
};

template <class Cache>
std::vector<Cache> open_caches(KvEncoding type) {
  std::vector<Cache> caches;
  for (Index i = 0; i < sequences; ++i)
    caches.emplace_back(
        KvCacheConfig{.kv_heads = kv_heads, .head_dim = head_dim, .k_type = type, .capacity = capacity});
  return caches;
}

/// @param open makes the caches when the entry runs
/// @param hook a gqa::KeyHook, or none
template <class Open, class... Hook>
void add_append(const std::string& kind, ElementType from, KvEncoding to, Index tokens, Open open,
                const Hook&... hook) {
  const KvType type = to;
  const std::string name = "append_" + kind + "/gqa_32_8/" + element_name(from) + "_" +
                           detail::codec_name(type).c_str() + "/" + std::to_string(tokens) + "/t1";
  add(name, [=](benchmark::State& state) {
    auto caches = open(to);
    Appender append(std::move(caches), from, tokens, hook...);
    for (Index i = 0; i < sequences * capacity / tokens; ++i) append();  // every page has been written
    Work work;
    work.bytes = 2.0 * static_cast<double>(tokens * kv_heads * (type.row_bytes(head_dim) + type.scale_bytes()));
    work.memory = Limit::memory_write;
    measure_call(state, 1, work, [&] { append(); });
    const double rows = 2.0 * static_cast<double>(tokens * kv_heads * head_dim * element_bytes(from));
    state.counters["percent_with_rows"] = state.counters["percent_of_memory"] * (work.bytes + rows) / work.bytes;
    state.counters["ns_per_token"] =
        1e9 * work.bytes / static_cast<double>(state.counters["bytes_per_s"]) / static_cast<double>(tokens);
  });
}

template <int Id = detail::kLastElementType + 1>
void add_codecs(const Rope& rope) {
  if constexpr (Id < detail::CodecList::size) {
    const typename CodecWithId<Id>::type codec;
    for (const ElementType from : {ElementType::f32, ElementType::bf16}) {
      add_append("contiguous", from, codec, 512, open_caches<ContiguousKvCache>);
      add_append("rope_half_split", from, codec, 512, open_caches<ContiguousKvCache>, rope.keys());
    }
    add_codecs<Id + 1>(rope);
  }
}

}  // namespace

void register_benchmarks() {
  static std::unique_ptr<PagedKvPool> pool;
  const auto open_sequences = [](KvEncoding type) {
    pool = std::make_unique<PagedKvPool>(KvPoolConfig{.kv_heads = kv_heads,
                                                      .head_dim = head_dim,
                                                      .k_type = type,
                                                      .page_size = bench_page_size,
                                                      .pages = sequences * capacity / bench_page_size});
    std::vector<PagedSequence> opened;
    for (Index i = 0; i < sequences; ++i) opened.push_back(pool->sequence());
    return opened;
  };
  static const Rope half_split({.dims = head_dim}, capacity);
  static const Rope interleaved({.dims = head_dim, .pairs = RopePairs::interleaved}, capacity);
  constexpr ElementType bf16 = ElementType::bf16, f16 = ElementType::f16, f32 = ElementType::f32;
  for (const auto& [from, to] : {std::pair{bf16, bf16}, std::pair{f32, bf16}, std::pair{f32, f16}, std::pair{f32, f32}})
    for (const Index tokens : {1, 512}) {
      add_append("contiguous", from, to, tokens, open_caches<ContiguousKvCache>);
      add_append("rope_half_split", from, to, tokens, open_caches<ContiguousKvCache>, half_split.keys());
      add_append("rope_interleaved", from, to, tokens, open_caches<ContiguousKvCache>, interleaved.keys());
      if (to == f16 || to == f32) continue;
      add_append("ring", from, to, tokens, open_caches<RingKvCache>);
      add_append("paged", from, to, tokens, open_sequences);
    }
  add_codecs(half_split);
}

}  // namespace gqa::bench
