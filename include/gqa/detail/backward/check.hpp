// SPDX-License-Identifier: Apache-2.0
/// @file
/// The arguments of a backward call, beyond those of the forward call.
#pragma once

#include "gqa/detail/backward/call.hpp"
#include "gqa/detail/check.hpp"

namespace gqa::detail {

inline constexpr TensorNames kQueryGradientNames{"d_q.type",          "d_q.data",         "d_q.strides",
                                                 "d_q.strides.token", "d_q.strides.head", "d_q.strides.dim"};
inline constexpr TensorNames kKeyGradientNames{"d_k.type",          "d_k.data",         "d_k.strides",
                                               "d_k.strides.token", "d_k.strides.head", "d_k.strides.dim"};
inline constexpr TensorNames kValueGradientNames{"d_v.type",          "d_v.data",         "d_v.strides",
                                                 "d_v.strides.token", "d_v.strides.head", "d_v.strides.dim"};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

inline void check_gradient_extent(const ArgumentName& name, const char* member, Index given, Index wanted,
                                  const char* what) {
  if (given != wanted) fail(name(member), given, Text(what) + " = " + to_text(wanted));
}

/// tokens × heads × dim that a gradient must have, and what they are called.
struct GradientShape {
  Index tokens, heads, dim;
  const char *of_tokens, *of_heads, *of_dim;
};
template <class View>
void check_gradient_shape(const ArgumentName& name, const char* tensor, const View& view, const GradientShape& shape) {
  const auto member = [&](const char* of) { return Text(tensor) + of; };
  check_gradient_extent(name, member(".tokens").c_str(), view.tokens, shape.tokens, shape.of_tokens);
  check_gradient_extent(name, member(".heads").c_str(), view.heads, shape.heads, shape.of_heads);
  check_gradient_extent(name, member(".dim").c_str(), view.dim, shape.dim, shape.of_dim);
}

/// A gradient that is written, if it is wanted.
inline void check_gradient(const ArgumentName& name, const char* tensor, const TensorNames& names,
                           const TensorView& view, const GradientShape& shape) {
  if (view.data == nullptr) return;
  check_gradient_shape(name, tensor, view, shape);
  check_tensor(name, names, view);
  if (view.type != ElementType::f32)
    fail(name(names.type), element_name(view.type), "f32: gradients are written as such");
  if (view.strides.dim != 1 && view.dim != 1)
    fail(name(names.last), view.strides.dim, "1: the elements of a gradient's row lie side by side");
  if (view.tokens > 0 && !elements_are_distinct(view))
    fail(name(names.strides),
         "{" + to_text(view.strides.token) + ", " + to_text(view.strides.head) + ", " + to_text(view.strides.dim) + "}",
         "strides that give every (token, head, dim) an element of its own");
}

/// Fails if a gradient surely lies where something else of its sequence does, as check_overlap.hpp has it.
inline void check_gradient_overlap(const ArgumentName& name, const Sequence& sequence, const SequenceGradients& given,
                                   const BackwardOptions& options) {
  const KvCacheView& kv = sequence.kv;
  const Index slots = kv.storage == Storage::paged  ? 0
                      : kv.storage == Storage::ring ? (kv.length < kv.capacity ? kv.length : kv.capacity)
                                                    : kv.length - kv.oldest;
  const ConstTensorView sinks(given.d_sink.data(), static_cast<Index>(given.d_sink.size()), 1, 1);
  const ConstTensorView lse(sequence.lse.data(), static_cast<Index>(sequence.lse.size()), 1, 1);
  struct Named {
    const char* name;
    Elements elements;
    bool there;
  };
  const Named written[] = {{"d_q", given.d_q, given.d_q.data != nullptr},
                           {"d_k", given.d_k, given.d_k.data != nullptr},
                           {"d_v", given.d_v, given.d_v.data != nullptr},
                           {"d_sink", sinks, !given.d_sink.empty()}};
  const Named read[] = {{"q", sequence.q, true},
                        {"out", sequence.out, true},
                        {"d_out", given.d_out, true},
                        {"lse", lse, true},
                        {"kv.k", keys_of(kv, slots), slots > 0},
                        {"kv.v", values_of(kv, slots), slots > 0}};
  const auto range = [](auto elements) -> ByteRange {
    const auto begin = reinterpret_cast<std::uintptr_t>(elements.data());
    return {begin, begin + elements.size_bytes()};
  };
  const ByteRange room = range(options.scratch);
  const char* const own = "memory of its own, which no input and no other output lies in";
  for (const Named& to : written) {
    if (!to.there || to.elements.tokens <= 0) continue;
    const auto refuse = [&](const Text& other) { fail(name(to.name), "in the memory of " + other, own); };
    for (const Named& from : read)
      if (from.there && from.elements.tokens > 0 && overlap(to.elements, from.elements)) refuse(from.name);
    for (const Named& other : written)
      if (&other != &to && other.there && other.elements.tokens > 0 && overlap(to.elements, other.elements))
        refuse(name(other.name));
    if (!options.scratch.empty() && has_element_in(to.elements, room)) refuse("options.scratch");
  }
  for (std::size_t i = 0; i < options.lookups.size(); ++i) {
    const ByteRange data = range(options.lookups[i].data);
    const auto refuse = [&](const Text& other) {
      fail("options.lookups[" + to_text(i) + "].data", "in the memory of " + other, own);
    };
    for (const Named& other : written)
      if (other.there && other.elements.tokens > 0 && has_element_in(other.elements, data)) refuse(name(other.name));
    for (const Named& other : read)
      if (other.there && other.elements.tokens > 0 && has_element_in(other.elements, data)) refuse(other.name);
    if (meet(data, room) != 0) refuse("options.scratch");
  }
}

/// One sequence's gradients, its forward arguments being right. `name` is for what lies in them: "d_q.heads", or "gradients[3].d_q.heads".
inline void check_gradients(const ArgumentName& name, const BackwardCall& backward, const Sequence& sequence,
                            const SequenceGradients& given, const BackwardOptions& options) {
  const ArgumentName argument{name.sequence, name.in_batch};
  const HeadShape& shape = backward.call.shape;
  const KvCacheView& kv = sequence.kv;
  const Index tokens = sequence.q.tokens;
  const auto rows = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(shape.query_heads);
  if (kv.k_rotation != 0)
    fail(argument("kv.k_rotation"), kv.k_rotation, "0: gradients by rotated keys are not worked out");
  if (kv.v_rotation != 0)
    fail(argument("kv.v_rotation"), kv.v_rotation, "0: gradients by rotated values are not worked out");
  if (sequence.lse.size() != rows)
    fail(argument("lse.size()"), to_text(sequence.lse.size()),
         "q.tokens * q.heads = " + to_text(rows) + ": the forward call's log-sum-exp");
  check_gradient_shape(name, "d_out", given.d_out,
                       {tokens, shape.query_heads, shape.value_dim, "q.tokens", "q.heads", "kv.value_dim"});
  check_tensor(name, kGradientOutNames, given.d_out);
  check_gradient(name, "d_q", kQueryGradientNames, given.d_q,
                 {tokens, shape.query_heads, shape.head_dim, "q.tokens", "q.heads", "q.dim"});
  const Index cached = stored_positions(kv);
  const char* const of_cached = "kv.length - kv.first_position()";
  check_gradient(name, "d_k", kKeyGradientNames, given.d_k,
                 {cached, shape.kv_heads, shape.head_dim, of_cached, "kv.kv_heads", "kv.head_dim"});
  check_gradient(name, "d_v", kValueGradientNames, given.d_v,
                 {cached, shape.kv_heads, shape.value_dim, of_cached, "kv.kv_heads", "kv.value_dim"});
  if (!given.d_sink.empty()) {
    if (backward.call.variant.sink == nullptr)
      fail(name("d_sink.size()"), to_text(given.d_sink.size()), "0: the variant has no sink");
    if (given.d_sink.size() != rows)
      fail(name("d_sink.size()"), to_text(given.d_sink.size()), "q.tokens * q.heads = " + to_text(rows) + ", or none");
    check_span(name, "d_sink.data()", given.d_sink, " floats");
  }
  check_gradient_overlap(name, sequence, given, options);
}

/// What a lookup's gradient has elements for: every sequence, query head, query token and key of a call.
struct LookupExtents {
  Index sequences, heads, queries = 1, keys = 1;
  explicit LookupExtents(const BackwardCall& backward) noexcept
      : sequences(static_cast<Index>(backward.call.batch.size())), heads(backward.call.shape.query_heads) {
    for (const Sequence& sequence : backward.call.batch) {
      if (sequence.q.tokens > queries) queries = sequence.q.tokens;
      if (sequence.kv.length > keys) keys = sequence.kv.length;
    }
  }
};

/// The elements of a lookup's gradient that a sequence's pairs have must lie in its data.
inline void check_lookup(const BackwardCall& backward, const LookupGradient& given, Index number) {
  const auto name = [&](const char* member) { return "options.lookups[" + to_text(number) + "]." + member; };
  if (given.lookup < 0 || given.lookup >= backward.variant.lookups)
    fail(name("lookup"), given.lookup,
         backward.variant.lookups == 0
             ? Text("none: the variant's score looks nothing up")
             : "0 to " + to_text(backward.variant.lookups - 1) + ", a lookup of the variant's score");
  check_span({}, "options.lookups.data", given.data, " floats");
  const LookupExtents extents(backward);
  Reach reach;
  const auto add = [&](const char* member, Index extent, Index stride) {
    reach.add({}, name(member).c_str(), extent, stride);
  };
  add("strides.sequence", extents.sequences, given.strides.sequence);
  add("strides.head", extents.heads, given.strides.head);
  add("strides.query", extents.queries, given.strides.query);
  add("strides.key", extents.keys, given.strides.key);
  const auto size = static_cast<Index>(given.data.size());
  if (given.offset < -reach.before || given.offset >= size)
    fail(name("offset"), given.offset,
         "at least " + to_text(-reach.before) +
             ", the elements before the first, and below data.size() = " + to_text(size));
  if (reach.behind >= size - given.offset)
    fail(name("data.size()"), size,
         "at least " + to_text(given.offset + reach.behind + 1) + ", for all sequences, heads, queries and keys");
}

/// Whether two units may add to one element of a lookup's gradient: unless its strides, but for that of queries, are nested.
inline bool shares_elements(const BackwardCall& backward, const LookupGradient& given) {
  const LookupExtents extents(backward);
  Axis axes[] = {{given.strides.sequence, extents.sequences},
                 {given.strides.head, extents.heads},
                 {given.strides.key, extents.keys},
                 {given.strides.query, given.strides.query == 0 ? 1 : extents.queries}};
  return !places_are_distinct(axes);
}

/// Whether different pairs, and with them two units, may add to one element of two gradients: unless these lie apart, or are the same, as
/// those of two lookups of one number.
inline bool share_elements(const LookupGradient& a, const LookupGradient& b) noexcept {
  const auto begin = [](const LookupGradient& of) { return reinterpret_cast<std::uintptr_t>(of.data.data()); };
  if (begin(a) + a.data.size_bytes() <= begin(b) || begin(b) + b.data.size_bytes() <= begin(a)) return false;
  return a.data.data() + a.offset != b.data.data() + b.offset || a.strides.sequence != b.strides.sequence ||
         a.strides.head != b.strides.head || a.strides.query != b.strides.query || a.strides.key != b.strides.key;
}

/// Whether a sequence's products are of bf16, where the path has them.
inline bool wants_bf16(const Sequence& sequence, const SequenceGradients& gradients, Products products) noexcept {
  const bool stored = sequence.q.type == ElementType::bf16 && gradients.d_out.type == ElementType::bf16;
  return products == Products::bf16 || (stored && is_bf16(sequence.kv));
}

/// Fails on the first wrong argument. Fills in what of the call is known before it is planned.
inline void check_backward(std::span<const Sequence> batch, std::span<const SequenceGradients> gradients,
                           const BackwardRef& functor, const VariantRef& variant, const BackwardOptions& options,
                           BackwardCall& backward) {
  if (gradients.size() != batch.size())
    fail("gradients.size()", to_text(gradients.size()), "batch.size() = " + to_text(batch.size()));
  check_call(batch, functor.functor, variant, options, backward.call);
  check_span({}, "gradients.data()", gradients, " gradients");
  backward.gradients = gradients;
  backward.lookups = options.lookups;
  const bool several = batch.size() > 1;
  for (std::size_t i = 0; i < batch.size(); ++i)
    check_gradients({static_cast<Index>(i), several, -1, "gradients"}, backward, batch[i], gradients[i], options);
  for (std::size_t i = 0; i < options.lookups.size(); ++i) {
    check_lookup(backward, options.lookups[i], static_cast<Index>(i));
    backward.in_order = backward.in_order || shares_elements(backward, options.lookups[i]);
    for (std::size_t before = 0; before < i; ++before)
      backward.in_order = backward.in_order || share_elements(options.lookups[before], options.lookups[i]);
  }
}

}  // namespace gqa::detail::inline GQA_ABI
