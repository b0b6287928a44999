// SPDX-License-Identifier: Apache-2.0
/// @file
/// What is done to outputs once they are there: factors, and gates. Parts for compose().
#pragma once

#include <span>

#include "gqa/detail/text.hpp"
#include "gqa/tensor_view.hpp"
#include "gqa/variant.hpp"

namespace gqa {

/// out → factor · out, a factor for each KV head: that of values which are stored divided by it (an 8-bit cache's scale of a head, say).
struct ValueScale {
  std::span<const float> factors;  ///< Hkv
  Index group = 1;                 ///< G, the query heads of a KV head

  /// @throws ArgumentError unless there is a factor for each KV head and `group` is the call's
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    if (group < 1 || group != sequence.query_heads / sequence.kv_heads)
      detail::fail("variant.group", group,
                   "the query heads of a KV head, " + detail::to_text(sequence.query_heads / sequence.kv_heads));
    if (static_cast<Index>(factors.size()) != sequence.kv_heads)
      detail::fail("variant.factors.size()", static_cast<Index>(factors.size()),
                   "the KV heads, " + detail::to_text(sequence.kv_heads));
  }
  GQA_ALWAYS_INLINE float output_factor(const RowContext& row) const noexcept {
    return factors[static_cast<std::size_t>(row.query_head / group)];
  }
};

/// out → out · sigmoid(gate), element by element (Qwen3-Next's and Qwen3.5's gated attention; Qiu et al. 2025, "Gated Attention for Large
/// Language Models"): the logits come from the same token as the query. In f32, before outputs are rounded to their type.
struct OutputGate {
  /// Of each sequence of the batch, n_q × Hq × Dv, any element type, dim stride 1. They must not overlap outputs, which is not looked for; the
  /// views live as long as the call.
  std::span<const ConstTensorView> gates;

  /// @throws ArgumentError unless there is a gate for each sequence, of the extents of its outputs
  GQA_ALWAYS_INLINE void check(const SequenceContext& sequence) const {
    if (static_cast<Index>(gates.size()) <= sequence.sequence)
      detail::fail("variant.gates.size()", static_cast<Index>(gates.size()),
                   "the sequences of the batch, " + detail::to_text(sequence.sequence + 1) + " at least");
    const ConstTensorView& gate = gates[static_cast<std::size_t>(sequence.sequence)];
    const auto name = [&](const char* member) {
      return detail::Text("variant.gates[") + detail::to_text(sequence.sequence) + "]." + member;
    };
    if (gate.tokens != sequence.queries)
      detail::fail(name("tokens"), gate.tokens, "q.tokens = " + detail::to_text(sequence.queries));
    if (gate.heads != sequence.query_heads)
      detail::fail(name("heads"), gate.heads, "the query heads, " + detail::to_text(sequence.query_heads));
    if (gate.dim != sequence.value_dim)
      detail::fail(name("dim"), gate.dim, "kv.value_dim = " + detail::to_text(sequence.value_dim));
    if (gate.strides.dim != 1) detail::fail(name("strides.dim"), gate.strides.dim, "1");
    if (gate.data == nullptr && gate.tokens > 0) detail::fail(name("data"), "null", "a pointer to the logits");
    if (!(gate.type == ElementType::f32 || gate.type == ElementType::bf16 || gate.type == ElementType::f16))
      detail::fail(name("type"), static_cast<Index>(gate.type), "f32, bf16 or f16");
    const auto check_stride = [&](const char* member, Index steps, Index stride) {
      constexpr Index most = Index{1} << 48;
      const detail::Checked offset = detail::Checked(steps) * stride;
      if (!offset.at_most(most) || offset.value() < -most)
        detail::fail(name(member), stride, "a stride whose offsets fit in 48 bits");
    };
    check_stride("strides.token", gate.tokens - 1, gate.strides.token);
    check_stride("strides.head", gate.heads - 1, gate.strides.head);
  }
  GQA_ALWAYS_INLINE GateRow output_gate(const RowContext& row) const noexcept {
    const ConstTensorView& gate = gates[static_cast<std::size_t>(row.sequence)];
    const Index offset = row.query * gate.strides.token + row.query_head * gate.strides.head;
    return {static_cast<const std::byte*>(gate.data) + offset * element_bytes(gate.type), gate.type};
  }
};

}  // namespace gqa
