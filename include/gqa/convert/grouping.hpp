// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which KV heads become one: neighbours, or those whose keys and values are alike, in groups of equal size. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "gqa/convert/merging.hpp"

namespace gqa {

/// Which KV heads of a layer are merged.
enum class HeadGrouping : std::uint8_t {
  neighbours,  ///< 0 … n − 1, n … 2n − 1, …
  similar      ///< those that lose least: keys and values as alike as can be, each after its merge method's alignment
};

namespace detail::inline GQA_ABI {

/// Numbers for random choices, the same on every machine (SplitMix64: Steele, Lea and Flood 2014).
class SplitMix {
 public:
  explicit SplitMix(std::uint64_t seed) : state_(seed) {}
  std::uint64_t operator()() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  Index below(Index count) { return static_cast<Index>((*this)() % static_cast<std::uint64_t>(count)); }

 private:
  std::uint64_t state_;
};

/// How little is lost when heads a and b alone are merged by `method`, weighed by what their readers make of it: 0 or below, as a share
/// of all heads' energy.
inline Eigen::MatrixXd similarity(const HeadInner& heads, MergeMethod method) {
  const bool picks = method == MergeMethod::first || method == MergeMethod::random;
  const Index count = heads.heads();
  Eigen::MatrixXd alike = Eigen::MatrixXd::Zero(count, count);
  double whole = 0;
  for (Index a = 0; a < count; ++a) {
    whole += (heads.need[static_cast<std::size_t>(a)] * heads.block(a, a)).trace();
    for (Index b = 0; b < a; ++b) {
      const Index pair[] = {a, b};
      alike(a, b) = alike(b, a) =
          -loss_of(heads, pair, merge(heads, pair, picks ? MergeMethod::mean : method, 0)).missed;
    }
  }
  return whole > 0 ? Eigen::MatrixXd(alike / whole) : alike;
}

/// A head's group by its place: heads order[g·size] … order[g·size + size − 1] are group g.
inline double within_groups(const Eigen::MatrixXd& alike, const std::vector<Index>& order, Index size) {
  double sum = 0;
  for (std::size_t i = 0; i < order.size(); ++i)
    for (std::size_t j = i + 1; j < order.size() && static_cast<Index>(j) / size == static_cast<Index>(i) / size; ++j)
      sum += alike(order[i], order[j]);
  return sum;
}

/// Swaps two heads of different groups as long as that gains anything, the best swap of each head at a time.
inline void improve_groups(const Eigen::MatrixXd& alike, std::vector<Index>& order, Index size) {
  const auto count = static_cast<Index>(order.size());
  const auto at = [&](Index place) { return order[static_cast<std::size_t>(place)]; };
  const auto with_group = [&](Index head,
                              Index place) {  // what `head` has in common with the group at `place`, less the one there
    double sum = 0;
    for (Index other = place / size * size; other < place / size * size + size; ++other)
      if (other != place) sum += alike(head, at(other));
    return sum;
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (Index a = 0; a < count; ++a) {
      double best = 1e-12;
      Index partner = -1;
      for (Index b = 0; b < count; ++b) {
        if (a / size == b / size) continue;
        const double gain = with_group(at(b), a) + with_group(at(a), b) - with_group(at(a), a) - with_group(at(b), b);
        if (gain > best) {
          best = gain;
          partner = b;
        }
      }
      if (partner < 0) continue;
      std::swap(order[static_cast<std::size_t>(a)], order[static_cast<std::size_t>(partner)]);
      changed = true;
    }
  }
}

/// Groups one after the other, each grown from the head that has most in common with any that is left.
inline std::vector<Index> greedy_groups(const Eigen::MatrixXd& alike, Index size) {
  std::vector<Index> left(static_cast<std::size_t>(alike.rows())), order;
  std::iota(left.begin(), left.end(), Index{0});
  while (!left.empty()) {
    const std::size_t start = order.size();
    std::pair<std::size_t, double> best{0, -1e300};
    for (std::size_t i = 0; i < left.size(); ++i)
      for (const Index other : left)
        if (other != left[i] && alike(left[i], other) > best.second) best = {i, alike(left[i], other)};
    order.push_back(left[best.first]);
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(best.first));
    while (order.size() - start < static_cast<std::size_t>(size)) {
      best = {0, -1e300};
      for (std::size_t i = 0; i < left.size(); ++i) {
        double sum = 0;
        for (std::size_t member = start; member < order.size(); ++member) sum += alike(left[i], order[member]);
        if (sum > best.second) best = {i, sum};
      }
      order.push_back(left[best.first]);
      left.erase(left.begin() + static_cast<std::ptrdiff_t>(best.first));
    }
  }
  return order;
}

/// The order of heads whose runs of `size` have most in common: a local optimum under swaps, the best of several starts. Members of
/// a group ascend, and so do groups by their first member. Neighbours, if nothing is better.
inline std::vector<Index> similar_groups(const Eigen::MatrixXd& alike, Index size, std::uint64_t seed) {
  constexpr int random_starts = 16;
  std::vector<Index> neighbours(static_cast<std::size_t>(alike.rows()));
  std::iota(neighbours.begin(), neighbours.end(), Index{0});
  if (size <= 1 || size >= alike.rows()) return neighbours;
  std::vector<Index> best = neighbours;
  double most = within_groups(alike, neighbours, size) + 1e-12;
  SplitMix random(seed);
  for (int start = 0; start < random_starts + 2; ++start) {
    std::vector<Index> order = start == 0 ? neighbours : greedy_groups(alike, size);
    if (start > 1)
      for (std::size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1], order[static_cast<std::size_t>(random.below(static_cast<Index>(i)))]);
    improve_groups(alike, order, size);
    const double sum = within_groups(alike, order, size);
    if (sum > most) {
      most = sum;
      best = order;
    }
  }
  std::vector<std::vector<Index>> groups;
  for (std::size_t first = 0; first < best.size(); first += static_cast<std::size_t>(size)) {
    groups.emplace_back(best.begin() + static_cast<std::ptrdiff_t>(first),
                        best.begin() + static_cast<std::ptrdiff_t>(first) + size);
    std::sort(groups.back().begin(), groups.back().end());
  }
  std::sort(groups.begin(), groups.end());
  best.clear();
  for (const std::vector<Index>& group : groups) best.insert(best.end(), group.begin(), group.end());
  return best;
}

}  // namespace detail::inline GQA_ABI
}  // namespace gqa
