// SPDX-License-Identifier: Apache-2.0
/// @file
/// Normalisation of query and key rows before they meet (QK-norm; Henry et al. 2020, as RMSNorm in Qwen3, Gemma 3 and OLMo 2).
#pragma once

#include <span>

#include "gqa/detail/check_views.hpp"
#include "gqa/detail/float_environment.hpp"
#include "gqa/detail/path/region.hpp"
#include "gqa/key_hook.hpp"
#include "gqa/tensor_view.hpp"

GQA_BEGIN_PLAIN_REGION()

namespace gqa::detail::inline GQA_ABI {

/// Squares of floats are exact in double: fused or not, and whatever the flags, the sum is the same.
template <class T>
inline void norm_row(T* row, Index dim, const float* weights, double offset, double epsilon) {
  double squares = 0.0;
  for (Index d = 0; d < dim; ++d) {
    const double x = static_cast<double>(static_cast<float>(row[d]));
    squares += x * x;
  }
  const double factor = 1.0 / __builtin_sqrt(squares / static_cast<double>(dim) + epsilon);
  for (Index d = 0; d < dim; ++d) {
    const float normed = static_cast<float>(static_cast<double>(static_cast<float>(row[d])) * factor);
    const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[d]) + offset;
    row[d] = static_cast<T>(static_cast<float>(static_cast<double>(normed) * weight));
  }
}
template <class T>
inline void norm_rows(const TensorView& rows, const float* weights, double offset, double epsilon) {
  for (Index token = 0; token < rows.tokens; ++token)
    for (Index head = 0; head < rows.heads; ++head)
      norm_row(typed<T>(rows.data) + token * rows.strides.token + head * rows.strides.head, rows.dim, weights, offset,
               epsilon);
}

}  // namespace gqa::detail::inline GQA_ABI

GQA_END_PLAIN_REGION()

namespace gqa {

/// Options of rms_norm.
struct RmsNormOptions {
  std::span<const float> weights = {};  ///< of each dim; none: 1
  float weight_offset = 0.0f;           ///< added to each weight: 1 in Gemma
  double epsilon = static_cast<double>(1e-6L);
};

namespace detail::inline GQA_ABI {

inline void check_norm(const RmsNormOptions& options, const char* dim_name, Index dim) {
  if (!options.weights.empty() && static_cast<Index>(options.weights.size()) != dim)
    fail("options.weights.size()", static_cast<Index>(options.weights.size()),
         Text(dim_name) + " = " + to_text(dim) + ", or none");
  if (!(options.epsilon >= 0.0) || options.epsilon > static_cast<double>(1e300L))
    fail("options.epsilon", to_text(options.epsilon), "a number, 0 or more");
}
inline const float* weights_of(const RmsNormOptions& options) noexcept {
  return options.weights.empty() ? nullptr : options.weights.data();
}

}  // namespace detail::inline GQA_ABI

/// Each row ← row / √(mean of its squares + epsilon) · (weights + offset), in place: a head of a token at a time. Queries and keys go through
/// it before they are turned by their positions (gqa/rope.hpp), keys once, before they are appended to a cache or as they are (RmsNormKeys).
/// Rounded to f32 after the quotient and after the product.
/// @param rows  tokens × heads × dim, of any element type; dim stride 1
/// @throws ArgumentError if the weights are not as many as dims, or epsilon is not a number from 0 on
GQA_ALWAYS_INLINE void rms_norm(const TensorView& rows, const RmsNormOptions& options = {}) {
  detail::check_tensor({}, detail::kRowsNames, rows);
  if (rows.strides.dim != 1) detail::fail("rows.strides.dim", rows.strides.dim, "1");
  detail::check_norm(options, "rows.dim", rows.dim);
  const float* const weights = detail::weights_of(options);
  const auto offset = static_cast<double>(options.weight_offset);
  const detail::FloatEnvironment environment;
  switch (rows.type) {
    case ElementType::f32: detail::norm_rows<float>(rows, weights, offset, options.epsilon); break;
    case ElementType::bf16: detail::norm_rows<bf16>(rows, weights, offset, options.epsilon); break;
    case ElementType::f16: detail::norm_rows<f16>(rows, weights, offset, options.epsilon); break;
    default: break;
  }
}

/// A hook for append (gqa::KeyHook): keys are normalised as rms_norm does it, in f32. Where there are rotary embeddings too, they come after:
/// `cache.append(k, v, compose_hooks(RmsNormKeys{{.weights = w}}, rope.keys()))`.
struct RmsNormKeys {
  RmsNormOptions options = {};

  GQA_ALWAYS_INLINE void change(const KeyRow& row) const noexcept {
    detail::norm_row(row.elements, row.dim, detail::weights_of(options), static_cast<double>(options.weight_offset),
                     options.epsilon);
  }
  /// @throws ArgumentError if the weights are not as many as dims, or epsilon is not a number from 0 on
  GQA_ALWAYS_INLINE void check(const KeyRows& rows) const { detail::check_norm(options, "k.dim", rows.dim); }
};

}  // namespace gqa
