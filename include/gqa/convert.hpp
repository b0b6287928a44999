// SPDX-License-Identifier: Apache-2.0
/// @file
/// From multi-head checkpoints to grouped ones, layer by layer: convert_layer, and all that it is made of. Needs Eigen.
///
/// Those who only merge, repeat or reorder heads include gqa/convert/heads.hpp, which compiles no attention.
#pragma once

#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "gqa/convert/calibration.hpp"
#include "gqa/convert/heads.hpp"
#include "gqa/convert/weight_view.hpp"

namespace gqa {

/// What convert_layer did to a layer. Errors are relative: √(Σ ‖output − as before‖² / Σ ‖as before‖²) over the calibration data.
struct LayerReport {
  double keys_kept = 1;                ///< share of the keys' energy, see MergedHeads
  double values_kept = 1;              ///< share of the values'
  std::optional<double> pooled_error;  ///< of outputs if neighbours were mean-pooled instead, the plain method
  std::optional<double> merged_error;  ///< of outputs after merging
  std::optional<double> fitted_error;  ///< of outputs after the output projection was fitted as well, if it was
};

/// What convert_layer returns.
struct ConvertedLayer {
  AttentionWeights weights;
  std::vector<Index> order;  ///< see MergedHeads
  LayerReport report;
};

/// Calibration data of one layer, sequences of inputs × tokens, a column a token. All empty: weights alone decide.
struct LayerCalibration {
  /// What the layer is given: its inputs in the model as converted up to here, or as it was.
  std::span<const Eigen::MatrixXf> inputs = {};
  /// outputs × tokens: what the layer should give. Empty: what it gave for `inputs` before.
  std::span<const Eigen::MatrixXf> targets = {};
};

namespace detail::inline GQA_ABI {

inline ConvertedLayer convert_layer(const AttentionWeights& weights, const MergeOptions& options,
                                    const AttentionForm& form, const LayerCalibration& calibration, bool fit) {
  if (form.rope.pairs != options.rope.pairs || form.rope.dims != options.rope.dims)
    fail("form.rope", "another layout", "options.rope");
  const bool same = options.kv_heads == weights.shape.kv_heads;  // then the layer stays as it is, fitted to nothing
  if (calibration.inputs.empty() || same) {
    MergedHeads merged = detail::merge_kv_heads(weights, options, {});
    return {std::move(merged.weights), std::move(merged.order), {merged.keys_kept, merged.values_kept, {}, {}, {}}};
  }
  check_form(weights, form);
  const InputMoments moments = detail::measure_inputs(weights, form, calibration.inputs);
  MergedHeads merged = detail::merge_kv_heads(weights, options, moments);
  ConvertedLayer made{
      std::move(merged.weights), std::move(merged.order), {merged.keys_kept, merged.values_kept, {}, {}, {}}};
  std::vector<Eigen::MatrixXf> before;
  if (calibration.targets.empty()) before = detail::layer_outputs(weights, form, calibration.inputs);
  const std::span<const Eigen::MatrixXf> targets = calibration.targets.empty() ? before : calibration.targets;
  MergeOptions plain = options;
  plain.keys = plain.values = MergeMethod::mean;
  plain.grouping = HeadGrouping::neighbours;
  const auto error = [&](const AttentionWeights& changed) {
    return detail::relative_error(detail::layer_outputs(changed, form, calibration.inputs), targets);
  };
  made.report.pooled_error = error(detail::merge_kv_heads(weights, plain, {}).weights);
  made.report.merged_error = error(made.weights);
  if (!fit) return made;
  detail::fit_output_projection(made.weights, form, calibration.inputs, targets, 1e-3);
  made.report.fitted_error = error(made.weights);
  return made;
}

}  // namespace detail::inline GQA_ABI

/// One layer with fewer KV heads: measures the calibration data, merges, fits the output projection, and reports.
/// @param options     KV heads to have, methods, grouping, rotary embedding
/// @param form        how the layer attends; its rotary embedding is `options`'. Unused without calibration data
/// @param calibration inputs of the layer; empty: weights alone decide, nothing is fitted, and the report has no errors
/// With as many KV heads as before the result is the layer itself, bit for bit.
/// @param fit         whether the output projection is fitted to what the layer gave before
/// @throws ArgumentError naming what does not fit. Thread safe if form.executor is.
GQA_ALWAYS_INLINE ConvertedLayer convert_layer(const AttentionWeights& weights, const MergeOptions& options,
                                               const AttentionForm& form = {}, const LayerCalibration& calibration = {},
                                               bool fit = true) {
  return detail::convert_layer(weights, options, form, calibration, fit);
}

}  // namespace gqa
