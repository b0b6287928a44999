// SPDX-License-Identifier: Apache-2.0
// Drawn calls some of whose fields are replaced by hostile ones, and what must become of them: each computes or is refused with ArgumentError,
// and what is refused has changed nothing. The memory is what the call without hostile fields needs. Calls that the library cannot know to claim
// more are not made.
#pragma once

#include "hostile_call.hpp"
#include "hostile_fields.hpp"
#include "messages.hpp"
#include "random_call.hpp"

namespace gqa::test {

enum class Fate : std::uint8_t { computed, refused, not_made };

class HostileDrawn {
 public:
  explicit HostileDrawn(Draws& draws);

  Fate fate() const { return fate_; }
  Index changes() const { return changes_; }
  /// The name of the argument that was refused.
  const std::string& reason() const { return reason_; }
  const DrawnCall& drawn() const { return drawn_; }
  /// Makes the call. What is wrong, or nothing.
  std::string complaint();

 private:
  static constexpr DrawnSizes kSizes{3, detail::kSpan + 40, 40'000};

  void spoil(Draws& draws);
  void spoil_sequence(Draws& draws);
  void spoil_options(Draws& draws);
  void spoil_variant(Draws& draws);
  template <class T>
  void spoil_elements(Draws& draws, BroadcastView<T>& view);

  bool tables_in_memory() const;
  bool all_in_memory() const;
  template <class T>
  bool elements_in_memory(const DrawnElements<T>& elements) const;
  bool gates_in_memory() const;
  bool sequence_in_memory(std::size_t s) const;
  bool untouched() const {
    return std::all_of(outputs_.begin(), outputs_.end(), [](const Output& output) { return output.untouched(); });
  }

  DrawnCall drawn_;
  DrawnStorage kv_;
  std::vector<Tensor> q_;
  std::vector<Output> outputs_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::vector<Index>> positions_;
  std::vector<Sequence> batch_;
  CountingExecutor executor_{0, 0, 2};
  Options options_;
  std::vector<std::byte> scratch_;
  Index scratch_kind_ = 0;
  Index changes_ = 0;
  Fate fate_ = Fate::not_made;
  std::string reason_;
};

inline HostileDrawn::HostileDrawn(Draws& draws) : drawn_(draws, kSizes), kv_(drawn_.store(drawn_.place, drawn_.place)) {
  const std::size_t count = drawn_.problems.size();
  tables_.resize(count);
  positions_.resize(count);
  for (std::size_t s = 0; s < count; ++s) {
    const Problem& p = drawn_.problems[s];
    q_.emplace_back(p.q, drawn_.types.q, drawn_.q_layout);
    outputs_.emplace_back(drawn_.types.out, p.shape.n_q, p.shape.query_heads, p.shape.value_dim, drawn_.how.out_layout);
  }
  for (std::size_t s = 0; s < count; ++s) {
    KvCacheView view = kv_.view(s);
    if (view.storage == Storage::paged) {  // a table of just its entries
      const Index pages = (view.length + view.page_size - 1) / view.page_size;
      tables_[s].assign(view.page_table, view.page_table + pages);
      view.page_table = tables_[s].data();
      view.page_table_size = pages;
    }
    positions_[s] = drawn_.sequences()[s].positions;
    batch_.push_back({q_[s].const_view(), view, outputs_[s].view(), positions_[s], outputs_[s].lse()});
  }
  options_ = drawn_.how.options();
  options_.executor = executor_;
  scratch_kind_ = draws.draw("scratch: the functor's, the caller's, too little", 0, 5);
  changes_ = draws.draw("hostile changes", 0, 3);
  for (Index i = 0; i < changes_; ++i) spoil(draws);
}

inline void HostileDrawn::spoil(Draws& draws) {
  switch (draws.draw("spoilt: sequence, variant, options", 0, 2)) {
    case 0: return spoil_sequence(draws);
    case 1: return spoil_variant(draws);
    default: return spoil_options(draws);
  }
}

inline void HostileDrawn::spoil_sequence(Draws& draws) {
  const auto s = static_cast<std::size_t>(draws.below(static_cast<Index>(batch_.size())));
  Sequence& sequence = batch_[s];
  switch (draws.draw("spoilt: q, out, cache, positions, LSE", 0, 6)) {
    case 0: return spoil_tensor(draws, sequence.q);
    case 1: return spoil_tensor(draws, sequence.out);
    case 2:
    case 3: return spoil_cache(draws, sequence.kv, tables_[s]);
    case 4:
      positions_[s].resize(static_cast<std::size_t>(drawn_.sequences()[s].n_q + draws.draw("further positions", 0, 1)));
      for (Index& position : positions_[s]) position = hostile_number(draws, sequence.kv.length);
      sequence.positions = positions_[s];
      break;
    case 5: sequence.positions = {hostile_pointer(draws, static_cast<const Index*>(nullptr)), 3}; break;
    default: {
      const std::size_t fewer = std::min(sequence.lse.size(), static_cast<std::size_t>(draws.draw("fewer LSE", 0, 2)));
      if (draws.flag("another pointer"))
        sequence.lse = {hostile_pointer(draws, sequence.lse.data()), sequence.lse.size()};
      else sequence.lse = sequence.lse.first(sequence.lse.size() - fewer);
    }
  }
}

inline void HostileDrawn::spoil_options(Draws& draws) {
  constexpr float scales[] = {0.0f, -1.0f, NAN, INFINITY, -INFINITY, 1e-40f, 3e38f};
  switch (draws.draw("spoilt: concurrency, products, path, scale", 0, 3)) {
    case 0: executor_.claimed_concurrency = hostile_number(draws, 3); break;
    case 1: options_.products = static_cast<Products>(draws.draw("products", 0, 255)); break;
    case 2: options_.path = static_cast<Path>(draws.draw("path", 0, 255)); break;
    default: options_.scale = draws.pick("scale", scales);
  }
}

template <class T>
void HostileDrawn::spoil_elements(Draws& draws, BroadcastView<T>& view) {
  Index* const all[] = {&view.sequences,        &view.heads,        &view.queries,       &view.keys,
                        &view.strides.sequence, &view.strides.head, &view.strides.query, &view.strides.key};
  const Index which = draws.draw("spoilt: an extent, a stride, data", 0, 8);
  if (which == 8) {
    view.data = nullptr;
    return;
  }
  *all[which] = hostile_number(draws, *all[which]);
}

/// Any of the numbers that the variant's parts have; those of others do nothing.
inline void HostileDrawn::spoil_variant(Draws& draws) {
  constexpr float caps[] = {0.0f, -1.0f, NAN, INFINITY, 1e-40f, 3e38f};
  VariantNumbers& n = drawn_.numbers;
  const auto parts = drawn_.parts();
  const Part part = parts[static_cast<std::size_t>(draws.below(static_cast<Index>(parts.size())))];
  const auto number = [&](Index& x) { x = hostile_number(draws, x); };
  const auto any = [&](auto& list) {
    if (list.empty()) return;
    auto& one = list[static_cast<std::size_t>(draws.below(static_cast<Index>(list.size())))];
    one = static_cast<std::remove_reference_t<decltype(one)>>(hostile_number(draws, static_cast<Index>(one)));
  };
  const auto one_less = [&](auto& list) {
    if (!list.empty()) list.pop_back();
    list.shrink_to_fit();
  };
  const bool second = draws.flag("the second of a part's numbers");
  switch (part) {
    case Part::causal_window: return number(n.window);
    case Part::two_sided_window: return number(second ? n.after : n.before);
    case Part::prefix_lm: return number(n.prefix);
    case Part::first_tokens_and_window: return number(second ? n.first : n.window);
    case Part::chunked_local: return number(n.chunk);
    case Part::causal_with_blocks:
    case Part::valid_tokens: {
      std::vector<PositionRange>& ranges = part == Part::valid_tokens ? n.valid : n.blocks;
      if (ranges.empty() || draws.seldom("one less", 4)) return one_less(ranges);
      PositionRange& range = ranges[static_cast<std::size_t>(draws.below(static_cast<Index>(ranges.size())))];
      return number(second ? range.end : range.begin);
    }
    case Part::packed_documents: return draws.seldom("one less", 4) ? one_less(n.offsets) : any(n.offsets);
    case Part::boolean_mask: return spoil_elements(draws, n.flags.view);
    case Part::dilated_window: return number(second ? n.count : n.step);
    case Part::block_sparse:
      if (draws.flag("block sizes")) return number(second ? n.query_block : n.key_block);
      if (draws.seldom("one less", 4)) return one_less(second ? n.list_offsets : n.listed);
      return any(second ? n.list_offsets : n.listed);
    case Part::draft_tree:
      if (draws.flag("prefix")) return number(n.prefix);
      if (draws.seldom("one less", 4)) return second ? one_less(n.parents) : one_less(n.ancestors);
      return second ? any(n.parents) : any(n.ancestors);
    case Part::soft_cap: n.cap = draws.pick("cap", caps); return;
    case Part::alibi: return one_less(n.slopes);
    case Part::bias_f32: return spoil_elements(draws, n.bias_f32.view);
    case Part::bias_bf16: return spoil_elements(draws, n.bias_bf16.view);
    case Part::bias_f16: return spoil_elements(draws, n.bias_f16.view);
    case Part::distance_bias:
      if (draws.seldom("one less", 4)) return one_less(n.distance_bias);
      return number(second ? n.distances : n.least);
    case Part::head_scale: return one_less(n.scales);
    case Part::position_temperature: return number(n.floor_scale);
    case Part::learned_sinks: return one_less(n.sinks);
    case Part::value_scale: return one_less(n.factors);
    case Part::output_gate:
      if (n.gate_views.empty() || draws.seldom("one less", 4)) return one_less(n.gate_views);
      return spoil_tensor(draws,
                          n.gate_views[static_cast<std::size_t>(draws.below(static_cast<Index>(n.gate_views.size())))]);
    default: return;
  }
}

// --- what calls claim, and what there is -----------------------------------------------------------------------------------

/// Whether the entries of page tables that checks may read are there.
inline bool HostileDrawn::tables_in_memory() const {
  for (std::size_t s = 0; s < batch_.size(); ++s) {
    const KvCacheView& kv = batch_[s].kv;
    if (kv.storage != Storage::paged || kv.length <= 0 || kv.page_size <= 0) continue;
    const Index needed = (kv.length - 1) / kv.page_size + 1;
    if (kv.page_table == nullptr || !aligned(kv.page_table, 4) || kv.page_table_size < needed) continue;  // refused
    const std::vector<std::int32_t>& table = tables_[s];
    if (table.empty() || needed > table.data() + table.size() - kv.page_table) return false;
  }
  return true;
}

template <class T>
bool HostileDrawn::elements_in_memory(const DrawnElements<T>& elements) const {
  if (elements.memory.empty()) return true;  // of a part that the variant does not have
  const BroadcastView<T>& view = elements.view;
  Extent extent;
  extent.add(view.sequences == 1 ? 1 : static_cast<Index>(batch_.size()), view.strides.sequence);
  extent.add(view.heads, view.strides.head);
  extent.add(view.queries, view.strides.query);
  extent.add(view.keys, view.strides.key);
  const Wide first = reinterpret_cast<std::uintptr_t>(view.data);
  const Wide begin = reinterpret_cast<std::uintptr_t>(elements.memory.data());
  const Wide size = sizeof(T), end = begin + static_cast<Wide>(elements.memory.size()) * size;
  return extent.fits && first + extent.low * size >= begin && first + (extent.high + 1) * size <= end;
}

inline bool HostileDrawn::gates_in_memory() const {
  const VariantNumbers& n = drawn_.numbers;
  for (std::size_t s = 0; s < n.gate_views.size(); ++s) {
    const ConstTensorView& gate = n.gate_views[s];
    Extent extent;
    extent.add(gate.tokens, gate.strides.token);
    extent.add(gate.heads, gate.strides.head);
    extent.add(gate.dim, gate.strides.dim);
    if (gate.tokens > 0 &&
        !(extent.fits && Memory(n.gates[s].bytes()).holds(gate.data, gate.type, extent.low, extent.high)))
      return false;
  }
  return true;
}

inline bool HostileDrawn::sequence_in_memory(std::size_t s) const {
  const KvCacheView& kv = batch_[s].kv;
  const std::span<float> lse = batch_[s].lse;
  const auto tensor = [](const ConstTensorView& t, const std::vector<std::byte>& bytes) {
    Extent extent;
    extent.add(t.tokens, t.strides.token);
    extent.add(t.heads, t.strides.head);
    extent.add(t.dim, t.strides.dim);
    return t.tokens == 0 || (extent.fits && Memory(bytes).holds(t.data, t.type, extent.low, extent.high));
  };
  Output& output = const_cast<Output&>(outputs_[s]);
  const std::span<float> floats = output.lse();
  if (!tensor(batch_[s].q, q_[s].bytes()) || !tensor(batch_[s].out, output.tensor().bytes())) return false;
  if (!lse.empty() && lse.data() + lse.size() > floats.data() + floats.size()) return false;
  if (kv.length == 0) return true;
  const auto& planes = kv_.planes(drawn_.place.storage == Storage::paged ? 0 : s);
  const Memory k_memory(planes.k), v_memory(planes.v);
  const auto rows = [&](const KvStrides& strides, Index dim) {
    Extent extent;
    extent.add(kv.storage == Storage::contiguous ? kv.length - kv.oldest
               : kv.storage == Storage::ring     ? kv.capacity
                                                 : kv.page_size,
               strides.token);
    extent.add(kv.kv_heads, strides.head);
    extent.add(kv.storage == Storage::paged ? kv.pool_pages : 1, strides.page);
    extent.high += dim - 1;
    return extent;
  };
  const Extent k = rows(kv.k_strides, kv.head_dim), v = rows(kv.v_strides, kv.value_dim);
  return k.fits && v.fits && k_memory.holds(kv.k, kv.k_type, k.low, k.high) &&
         (v_memory.holds(kv.v, kv.v_type, v.low, v.high) || k_memory.holds(kv.v, kv.v_type, v.low, v.high));
}

inline bool HostileDrawn::all_in_memory() const {
  const VariantNumbers& n = drawn_.numbers;
  for (std::size_t s = 0; s < batch_.size(); ++s)
    if (!sequence_in_memory(s)) return false;
  return elements_in_memory(n.flags) && elements_in_memory(n.bias_f32) && elements_in_memory(n.bias_bf16) &&
         elements_in_memory(n.bias_f16) && gates_in_memory();
}

inline std::string HostileDrawn::complaint() {
  if (!tables_in_memory()) return "";
  const DrawnAttention attention;
  const ScopedVariant variant(drawn_.numbers, drawn_.combination);
  std::size_t bytes = 0;
  const std::string asked = message_of([&] { bytes = scratch_bytes(variant, attention, batch_, options_); });
  bool too_little = false;
  if (asked == kNothingThrown) {
    if (!all_in_memory()) return "";
    if (scratch_kind_ != 0) {
      scratch_.resize(bytes + 1);
      const bool any = std::any_of(batch_.begin(), batch_.end(), [](const Sequence& one) { return one.q.tokens > 0; });
      too_little = scratch_kind_ == 5 && any;  // a call without queries uses none
      options_.scratch = std::span(scratch_).subspan(1, too_little ? bytes - 1 : bytes);
    }
  }
  const std::string said = message_of([&] { call(variant, attention, batch_, options_); });
  fate_ = said == kNothingThrown ? Fate::computed : Fate::refused;
  if (fate_ == Fate::refused) reason_ = said.substr(0, said.find(" is "));
  if (fate_ == Fate::refused && !untouched()) return "an output was written by a call that was refused: " + said;
  if (too_little) return fate_ == Fate::refused ? "" : "too little scratch was taken";
  if (said != asked) return "scratch_bytes says: " + asked + "\nthe call says: " + said;
  if (changes_ == 0 && fate_ == Fate::refused) return "a call that is right was refused: " + said;
  return "";
}

}  // namespace gqa::test
