// SPDX-License-Identifier: Apache-2.0
// A call whose fields a test replaces by hostile ones, and a judge of what must become of it, which works in 128 bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "executors.hpp"
#include "one_call.hpp"

namespace gqa::test {

__extension__ using Wide = __int128;
inline constexpr Index kMostOffset = Index{1} << 48;

/// Memory that a view lies in.
struct Memory {
  const std::byte* begin = nullptr;
  std::size_t bytes = 0;
  explicit Memory(const std::vector<std::byte>& owner) : begin(owner.data()), bytes(owner.size()) {}
  /// Whether elements from `low` to `high`, counted from `data`, lie in it.
  bool holds(const void* data, ElementType type, Wide low, Wide high) const {
    const auto at = static_cast<Wide>(reinterpret_cast<std::uintptr_t>(data));
    const auto from = static_cast<Wide>(reinterpret_cast<std::uintptr_t>(begin));
    const Wide size = element_bytes(type);
    return at + low * size >= from && at + (high + 1) * size <= from + static_cast<Wide>(bytes);
  }
};

struct Extent {
  Wide low = 0;
  Wide high = 0;
  bool fits = true;
  void add(Wide count, Index stride) {
    const Wide distance = (count > 1 ? count - 1 : 0) * static_cast<Wide>(stride);
    fits = fits && stride >= -kMostOffset && stride <= kMostOffset && distance >= -Wide{kMostOffset} &&
           distance <= Wide{kMostOffset};
    (distance < 0 ? low : high) += distance;
  }
};

enum class Verdict : std::uint8_t { wrong, right, unknown };

inline bool known(ElementType type) { return type <= ElementType::f16; }
inline bool aligned(const void* data, Index bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(bytes) == 0;
}

/// A call of one sequence that a test spoils, and what becomes of it.
struct HostileCall : OneCall {
  std::vector<std::int32_t> table;
  std::vector<Index> positions;
  std::vector<std::byte> scratch;
  CountingExecutor executor;
  Options options;
  Index window = 0;  ///< of the variant; 0: Causal

  HostileCall(const Shape& shape, const Types& types, const Place& place, TensorLayout layout, std::uint64_t seed)
      : OneCall(shape, types, place, seed, layout) {
    if (place.storage == Storage::paged) {
      table.assign(sequence.kv.page_table,
                   sequence.kv.page_table + (shape.n_kv + place.page_size - 1) / place.page_size);
      sequence.kv.page_table = table.data();
      sequence.kv.page_table_size = static_cast<Index>(table.size());
    }
    options.executor = executor;
  }

  template <class Run>
  auto with_variant(const Run& run) const {
    return window != 0 ? run(CausalWindow{window}) : run(Causal{});
  }
  PositionRange seen(Index token) const {
    const Index length = sequence.kv.length;
    const Index position = sequence.positions.empty() ? length - sequence.q.tokens + token
                                                      : sequence.positions[static_cast<std::size_t>(token)];
    Wide begin = window != 0 ? static_cast<Wide>(position) - window + 1 : 0, end = static_cast<Wide>(position) + 1;
    begin = std::max<Wide>(begin, 0), end = std::min<Wide>(end, length);
    if (begin >= end) return {};
    return {static_cast<Index>(begin), static_cast<Index>(end)};
  }

  Verdict judge() const;
  bool tensor_is_right(const ConstTensorView& t, Extent& extent) const {
    extent.add(t.tokens, t.strides.token);
    extent.add(t.heads, t.strides.head);
    extent.add(t.dim, t.strides.dim);
    return known(t.type) && extent.fits &&
           (t.tokens == 0 || (t.data != nullptr && aligned(t.data, element_bytes(t.type))));
  }
  bool out_is_distinct() const;
  bool options_are_right() const {
    return (!options.scale.has_value() || std::isfinite(*options.scale)) && options.products <= Products::bf16_terms &&
           (options.scratch.data() != nullptr || options.scratch.empty()) && executor.claimed_concurrency >= 1 &&
           window >= 0 && (!options.path.has_value() || (*options.path <= Path::amx && path_available(*options.path)));
  }
};

/// Every element of the output at a place of its own: by counting, where there are few.
inline bool HostileCall::out_is_distinct() const {
  const TensorView& o = sequence.out;
  std::vector<Wide> places;
  for (Index t = 0; t < o.tokens; ++t)
    for (Index h = 0; h < o.heads; ++h)
      for (Index d = 0; d < o.dim; ++d)
        places.push_back(Wide{t} * o.strides.token + Wide{h} * o.strides.head + Wide{d} * o.strides.dim);
  std::sort(places.begin(), places.end());
  return std::adjacent_find(places.begin(), places.end()) == places.end();
}

inline Verdict HostileCall::judge() const {
  const auto& [q_view, kv_view, out_view, at, lse] = sequence;
  const auto width = [](Index n, Index most) { return n >= 1 && n <= most; };
  if (!options_are_right()) return Verdict::wrong;
  if (q_view.tokens < 0 || q_view.tokens > Index{1} << 40 || !width(q_view.heads, 1 << 20) || !width(q_view.dim, 65536))
    return Verdict::wrong;
  if (!width(kv_view.kv_heads, 1 << 20) || kv_view.head_dim != q_view.dim || !width(kv_view.value_dim, 65536))
    return Verdict::wrong;
  if (q_view.heads % kv_view.kv_heads != 0) return Verdict::wrong;
  if (out_view.tokens != q_view.tokens || out_view.heads != q_view.heads || out_view.dim != kv_view.value_dim)
    return Verdict::wrong;
  Extent q_extent, out_extent;
  if (!tensor_is_right(q_view, q_extent) || !tensor_is_right(out_view, out_extent)) return Verdict::wrong;
  if (q_view.tokens > 1 && q_view.strides.token == 0) return Verdict::wrong;
  const auto tokens = static_cast<std::size_t>(q_view.tokens);
  const auto bad_span = [](const auto& span, std::size_t size, Index alignment) {
    return !span.empty() && (span.size() != size || span.data() == nullptr || !aligned(span.data(), alignment));
  };
  if (bad_span(at, tokens, 8) || bad_span(lse, tokens * static_cast<std::size_t>(q_view.heads), 4))
    return Verdict::wrong;

  // The cache.
  const Index length = kv_view.length;
  const Index least = length > 0 ? 1 : 0;
  if (!known(kv_view.k_type) || !known(kv_view.v_type) || length < 0 || length > kMostOffset) return Verdict::wrong;
  Index slots = length, pages = 1;
  if (kv_view.storage > Storage::paged) return Verdict::wrong;
  if (kv_view.storage == Storage::contiguous) {
    if (kv_view.oldest < 0 || kv_view.oldest > length) return Verdict::wrong;
    slots -= kv_view.oldest;
  }
  if (kv_view.storage == Storage::ring) {
    slots = kv_view.capacity;
    if (slots < least || slots > kMostOffset) return Verdict::wrong;
  }
  bool table_known = true;
  if (kv_view.storage == Storage::paged) {
    slots = kv_view.page_size, pages = kv_view.pool_pages;
    if (slots < least || slots > kMostOffset || pages < least || pages > Index{1} << 31) return Verdict::wrong;
    if (length > 0) {
      const Index needed = (length - 1) / slots + 1;
      if (kv_view.page_table == nullptr || !aligned(kv_view.page_table, 4) || kv_view.page_table_size < needed)
        return Verdict::wrong;
      table_known = kv_view.page_table >= table.data() && needed <= table.data() + table.size() - kv_view.page_table;
    }
  }
  Extent k_extent, v_extent;
  for (const bool key : {true, false}) {
    const KvStrides& strides = key ? kv_view.k_strides : kv_view.v_strides;
    const void* data = key ? kv_view.k : kv_view.v;
    Extent& extent = key ? k_extent : v_extent;
    extent.add(slots, strides.token);
    extent.add(kv_view.kv_heads, strides.head);
    extent.add(pages, strides.page);
    if (!extent.fits) return Verdict::wrong;
    if (length == 0) continue;
    if (data == nullptr || !aligned(data, element_bytes(key ? kv_view.k_type : kv_view.v_type))) return Verdict::wrong;
    if ((strides.token == 0 && slots > 1 && length > 1) || (strides.page == 0 && pages > 1)) return Verdict::wrong;
    extent.high += (key ? kv_view.head_dim : kv_view.value_dim) - 1;
  }
  if (!table_known || q_view.tokens > 100'000) return Verdict::unknown;
  if (q_view.tokens * out_view.heads * out_view.dim > 1'000'000) return Verdict::unknown;
  if (q_view.tokens > 0 && !out_is_distinct()) return Verdict::wrong;
  for (Index token = 0; token < q_view.tokens; ++token) {
    const PositionRange range = seen(token);
    if (range.begin == range.end) continue;
    if (kv_view.storage != Storage::paged && range.begin < kv_view.first_position()) return Verdict::wrong;
    if (kv_view.storage == Storage::paged)
      for (Index page = range.begin / slots; page <= (range.end - 1) / slots; ++page)
        if (kv_view.page_table[page] < 0 || kv_view.page_table[page] >= pages) return Verdict::wrong;
  }

  // What it claims to be there.
  const Memory q_memory(q.bytes()), out_memory(const_cast<Output&>(out).tensor().bytes());
  if (q_view.tokens > 0 && !(q_memory.holds(q_view.data, q_view.type, q_extent.low, q_extent.high) &&
                             out_memory.holds(out_view.data, out_view.type, out_extent.low, out_extent.high)))
    return Verdict::unknown;
  const std::span<float> floats = const_cast<Output&>(out).lse();
  if (!lse.empty() && lse.data() + lse.size() > floats.data() + floats.size()) return Verdict::unknown;
  const auto& planes = kv.planes();
  const Memory k_memory(planes.k), v_memory(planes.v.empty() ? planes.k : planes.v);
  if (length > 0 && !(k_memory.holds(kv_view.k, kv_view.k_type, k_extent.low, k_extent.high) &&
                      v_memory.holds(kv_view.v, kv_view.v_type, v_extent.low, v_extent.high)))
    return Verdict::unknown;
  return Verdict::right;
}

}  // namespace gqa::test
