// SPDX-License-Identifier: Apache-2.0
/// @file
/// Other numbers of KV heads for the weights of an attention layer: fewer by merging, more by repeating, others by reordering.
/// Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "gqa/convert/grouping.hpp"
#include "gqa/convert/merging.hpp"
#include "gqa/convert/moments.hpp"
#include "gqa/convert/weights.hpp"

namespace gqa {

/// How merge_kv_heads works. With moments of calibration data MergeMethod::low_rank keeps more than the default; without, less.
struct MergeOptions {
  Index kv_heads = 0;                              ///< KV heads to have afterwards; a divisor of the layer's
  MergeMethod keys = MergeMethod::aligned_mean;    ///< how keys are merged
  MergeMethod values = MergeMethod::aligned_mean;  ///< how values are merged
  HeadGrouping grouping = HeadGrouping::similar;   ///< which heads
  RopeLayout rope = {};                            ///< the model's rotary embedding
  std::uint64_t seed = 0;  ///< of MergeMethod::random, and of the starts of the search for groups
};

/// What merge_kv_heads returns.
struct MergedHeads {
  AttentionWeights weights;
  /// The old KV heads in their new order: with n old heads to a new one, new head g is made of order[g·n] … order[g·n + n − 1].
  std::vector<Index> order;
  /// Share of the old heads' energy E‖k‖² that can be recovered from the new ones: 1 − Σ E‖k_i − C_i·k‖² / Σ E‖k_i‖², C_i being what
  /// the query heads were changed by. Below 0 where a new head is worse than none.
  double keys_kept = 1;
  double values_kept = 1;  ///< the same of the values
};

namespace detail::inline GQA_ABI {

/// Rows of the projections in a new order of KV heads; query heads and columns of o go with their KV head.
inline AttentionWeights reorder(const AttentionWeights& w, std::span<const Index> order) {
  const Index group = w.shape.query_heads / w.shape.kv_heads, d = w.shape.head_dim, dv = w.shape.value_dim;
  AttentionWeights made = w;
  const auto move = [](auto& to, const auto& from, Index to_head, Index from_head, Index width) {
    if (from.rows() > 0) to.middleRows(to_head * width, width) = from.middleRows(from_head * width, width);
  };
  for (std::size_t at = 0; at < order.size(); ++at) {
    const auto to = static_cast<Index>(at);
    const Index from = order[at];
    move(made.k, w.k, to, from, d);
    move(made.k_bias, w.k_bias, to, from, d);
    move(made.v, w.v, to, from, dv);
    move(made.v_bias, w.v_bias, to, from, dv);
    move(made.q, w.q, to, from, group * d);
    move(made.q_bias, w.q_bias, to, from, group * d);
    made.o.middleCols(to * group * dv, group * dv) = w.o.middleCols(from * group * dv, group * dv);
  }
  return made;
}

inline AttentionWeights permute_kv_heads(const AttentionWeights& weights, std::span<const Index> order) {
  check_weights(weights);
  const Index heads = weights.shape.kv_heads;
  if (static_cast<Index>(order.size()) != heads)
    fail("order.size()", static_cast<Index>(order.size()), "kv_heads = " + std::to_string(heads));
  std::vector<bool> seen(order.size(), false);
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] < 0 || order[i] >= heads || seen[static_cast<std::size_t>(order[i])])
      fail("order[" + std::to_string(i) + "]", order[i],
           "each of 0 to kv_heads - 1 = " + std::to_string(heads - 1) + " once");
    seen[static_cast<std::size_t>(order[i])] = true;
  }
  return reorder(weights, order);
}

inline AttentionWeights repeat_kv_heads(const AttentionWeights& weights, Index kv_heads) {
  check_weights(weights);
  const HeadShape& shape = weights.shape;
  if (kv_heads < 1 || kv_heads % shape.kv_heads != 0 || shape.query_heads % kv_heads != 0)
    fail("kv_heads", kv_heads,
         "a multiple of the layer's " + std::to_string(shape.kv_heads) + " KV heads that divides its " +
             std::to_string(shape.query_heads) + " query heads");
  const Index times = kv_heads / shape.kv_heads;
  AttentionWeights made = weights;
  made.shape.kv_heads = kv_heads;
  const auto repeat = [&](auto& to, const auto& from, Index width) {
    if (from.rows() == 0) return;
    to.resize(kv_heads * width, from.cols());
    for (Index head = 0; head < kv_heads; ++head)
      to.middleRows(head * width, width) = from.middleRows(head / times * width, width);
  };
  repeat(made.k, weights.k, shape.head_dim);
  repeat(made.v, weights.v, shape.value_dim);
  repeat(made.k_bias, weights.k_bias, shape.head_dim);
  repeat(made.v_bias, weights.v_bias, shape.value_dim);
  return made;
}

/// The common head of a group. Pooling starts from the first head and adds mean differences, so that equal heads stay as they are.
inline Eigen::MatrixXd common_head(const Eigen::MatrixXd& rows, const GroupMaps& maps, Index first, Index width) {
  const auto count = static_cast<Index>(maps.of.size());
  const auto member = [&](Index a) { return rows.middleRows((first + a) * width, width); };
  if (maps.single >= 0) return member(maps.single);
  if (maps.plain) {
    Eigen::MatrixXd difference = Eigen::MatrixXd::Zero(width, rows.cols());
    for (Index a = 1; a < count; ++a) difference += member(a) - member(0);
    return member(0) + difference / static_cast<double>(count);
  }
  Eigen::MatrixXd sum = maps.of[0].into * member(0);
  for (Index a = 1; a < count; ++a) sum += maps.of[static_cast<std::size_t>(a)].into * member(a);
  return sum;
}

/// All heads of a run are the same numbers.
inline bool are_equal(const Eigen::MatrixXd& rows, Index first, Index count, Index width) {
  for (Index a = 1; a < count; ++a)
    if (rows.middleRows((first + a) * width, width) != rows.middleRows(first * width, width)) return false;
  return true;
}

/// Keys, or values, of all groups: their common heads, and the maps of every old head.
struct MergedSide {
  Eigen::MatrixXd rows;         ///< heads·D × (inputs + 1)
  std::vector<GroupMaps> maps;  ///< one a group
  double kept = 1;
};

/// Merges runs of `size` heads.
inline MergedSide merge_side(const HeadInner& heads, const Eigen::MatrixXd& rows, Index size, MergeMethod method,
                             std::uint64_t seed) {
  const Index groups = heads.heads() / size, width = heads.width;
  MergedSide made{Eigen::MatrixXd(groups * width, rows.cols()), {}, 1};
  SplitMix random(seed);
  double lost = 0, whole = 0;
  for (Index group = 0; group < groups; ++group) {
    std::vector<Index> members(static_cast<std::size_t>(size));
    std::iota(members.begin(), members.end(), group * size);
    const Index picked = random.below(size);
    const bool same = are_equal(rows, group * size, size, width);
    made.maps.push_back(same ? pool(heads, members.size(), 0) : merge(heads, members, method, picked));
    made.rows.middleRows(group * width, width) = common_head(rows, made.maps.back(), group * size, width);
    if (same) continue;  // nothing is lost, not even a rounding error of what follows
    lost += loss_of(heads, members, made.maps.back()).lost;
  }
  for (Index head = 0; head < heads.heads(); ++head) whole += heads.block(head, head).trace();
  if (whole > 0) made.kept = 1 - lost / whole;
  return made;
}

/// Gives [W b] back to a matrix and its bias. A bias that there was none of stays away: its column has stayed zero.
inline void take_apart(const Eigen::MatrixXd& joined, Eigen::MatrixXd& matrix, Eigen::VectorXd& bias) {
  matrix = joined.leftCols(joined.cols() - 1);
  if (bias.size() > 0) bias = joined.rightCols(1);
}

inline void check_method(const char* name, MergeMethod method) {
  if (method > MergeMethod::low_rank)
    fail(name, static_cast<Index>(method), "MergeMethod::mean, first, random, aligned_mean or low_rank");
}

inline void check_merge(const AttentionWeights& weights, const MergeOptions& options, const InputMoments& moments) {
  check_weights(weights);
  const Index heads = weights.shape.kv_heads;
  if (options.kv_heads < 1 || heads % options.kv_heads != 0)
    fail("options.kv_heads", options.kv_heads, "a divisor of the layer's " + std::to_string(heads) + " KV heads");
  check_method("options.keys", options.keys);
  check_method("options.values", options.values);
  if (options.grouping > HeadGrouping::similar)
    fail("options.grouping", static_cast<Index>(options.grouping), "HeadGrouping::neighbours or similar");
  check_rope(options.rope, weights.shape.head_dim);
  check_moment("moments.inputs", moments.inputs, weights.q.cols());
  check_moment("moments.attended", moments.attended, weights.q.cols());
}

inline MergedHeads merge_kv_heads(const AttentionWeights& weights, const MergeOptions& options,
                                  const InputMoments& moments) {
  check_merge(weights, options, moments);
  const HeadShape& shape = weights.shape;
  MergedHeads made{weights, std::vector<Index>(static_cast<std::size_t>(shape.kv_heads)), 1, 1};
  std::iota(made.order.begin(), made.order.end(), Index{0});
  const Index size = shape.kv_heads / options.kv_heads;
  if (size == 1) return made;

  const std::vector<Index> dims = pair_order(options.rope, shape.head_dim);
  const Index pairs = check_rope(options.rope, shape.head_dim) / 2;
  const Eigen::MatrixXd& attended = moments.attended.size() > 0 ? moments.attended : moments.inputs;
  if (options.grouping == HeadGrouping::similar && size < shape.kv_heads) {
    const Eigen::MatrixXd q = reordered_dims(with_bias(weights.q, weights.q_bias), dims, false);
    const Eigen::MatrixXd k = reordered_dims(with_bias(weights.k, weights.k_bias), dims, false);
    const Eigen::MatrixXd alike =
        similarity(key_inner(q, k, shape, pairs, moments.inputs), options.keys) +
        similarity(value_inner(with_bias(weights.v, weights.v_bias), weights.o, shape, attended), options.values);
    made.order = similar_groups(alike, size, options.seed);
    made.weights = reorder(weights, made.order);
  }

  AttentionWeights& w = made.weights;
  Eigen::MatrixXd q = reordered_dims(with_bias(w.q, w.q_bias), dims, false);
  const Eigen::MatrixXd k = reordered_dims(with_bias(w.k, w.k_bias), dims, false);
  const Eigen::MatrixXd v = with_bias(w.v, w.v_bias);
  const MergedSide keys =
      merge_side(key_inner(q, k, shape, pairs, moments.inputs), k, size, options.keys, options.seed);
  const MergedSide values = merge_side(value_inner(v, w.o, shape, attended), v, size, options.values, options.seed);
  made.keys_kept = keys.kept;
  made.values_kept = values.kept;

  const Index group = shape.query_heads / shape.kv_heads;
  for (Index head = 0; head < shape.query_heads; ++head) {
    const auto run = static_cast<std::size_t>(head / group / size),
               member = static_cast<std::size_t>(head / group % size);
    if (!keys.maps[run].plain) {
      auto rows = q.middleRows(head * shape.head_dim, shape.head_dim);
      rows = (keys.maps[run].of[member].back.transpose() * rows).eval();
    }
    if (!values.maps[run].plain) {
      auto columns = w.o.middleCols(head * shape.value_dim, shape.value_dim);
      columns = (columns * values.maps[run].of[member].back).eval();
    }
  }
  w.shape.kv_heads = options.kv_heads;
  take_apart(reordered_dims(q, dims, true), w.q, w.q_bias);
  take_apart(reordered_dims(keys.rows, dims, true), w.k, w.k_bias);
  take_apart(values.rows, w.v, w.v_bias);
  return made;
}

}  // namespace detail::inline GQA_ABI

/// The layer with fewer KV heads (MHA to GQA or MQA, GQA to fewer), without any training.
///
/// Query heads are reordered with their KV heads, and so are the columns of o, so that query head h reads KV head h / (Hq / Hkv) of
/// the result. With as many KV heads as before the result is the layer itself, bit for bit; heads that are equal within a group come
/// back bit for bit, whatever the method.
/// @param moments which directions of the inputs matter; by default all alike, so that weights alone are compared
/// @throws ArgumentError naming a weight, shape, option or moment that is wrong
/// Models with a norm between the projections and RoPE (QK-norm) only allow methods for keys that turn nothing: mean, first, random.
/// Thread safe.
GQA_ALWAYS_INLINE MergedHeads merge_kv_heads(const AttentionWeights& weights, const MergeOptions& options,
                                             const InputMoments& moments = {}) {
  return detail::merge_kv_heads(weights, options, moments);
}

/// The layer with each KV head repeated `kv_heads` / Hkv times, which changes no output: GQA or MQA to MHA.
/// @throws ArgumentError unless `kv_heads` is a multiple of Hkv and divides Hq
GQA_ALWAYS_INLINE AttentionWeights repeat_kv_heads(const AttentionWeights& weights, Index kv_heads) {
  return detail::repeat_kv_heads(weights, kv_heads);
}

/// The layer with its KV heads in another order, old head order[i] at place i, and query heads and columns of o with them. Outputs
/// change by rounding alone, because sums over the columns of o have another order.
/// @throws ArgumentError unless `order` has each KV head once
GQA_ALWAYS_INLINE AttentionWeights permute_kv_heads(const AttentionWeights& weights, std::span<const Index> order) {
  return detail::permute_kv_heads(weights, order);
}

}  // namespace gqa
