// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the KV heads of a group become one: pooling, alignment by rotations before pooling, joint low-rank factorisation. Needs Eigen.
#pragma once

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <complex>
#include <span>
#include <vector>

#include "gqa/convert/moments.hpp"

namespace gqa {

/// How several heads' keys, or values, become one head's.
enum class MergeMethod : std::uint8_t {
  /// Their mean: where uptraining starts from in Ainslie et al. 2023, "GQA", section 2.1.
  mean,
  /// The first of them (the same section compares it).
  first,
  /// One of them at random.
  random,
  /// The mean after each has been turned towards the others by an orthogonal map, which the query heads (for keys) or the output
  /// projection (for values) take up: Procrustes alignment, "Align Attention Heads Before Merging Them", arXiv 2412.20677; here
  /// generalised to groups, each head towards the mean of the others until nothing changes. Rotary pairs turn pair by pair.
  aligned_mean,
  /// The best common subspace: values V and maps C_i that minimise Σ_i ‖W_o,i·(V_i − C_i·V)·x‖² (by an eigenvalue problem), the
  /// maps taken up by the output projection; keys alike with the query heads, rotary pairs pair by pair as complex numbers.
  low_rank
};

namespace detail::inline GQA_ABI {

/// How one old head goes into the common one, and comes out: common = Σ into_i·old_i, old_i ≈ back_i·common.
struct HeadMap {
  Eigen::MatrixXd into, back;  ///< D × D
};

/// A group's maps. `single` ≥ 0: the common head is that member as it is; `plain`: no member is turned.
struct GroupMaps {
  Index single = -1;
  bool plain = true;
  std::vector<HeadMap> of;  ///< one a member
};

/// The orthogonal Q that brings Q·old nearest to a target, of target·oldᵀ (Schönemann 1966): its polar factor.
inline Eigen::MatrixXd polar(const Eigen::MatrixXd& target_by_old) {
  const Eigen::JacobiSVD<Eigen::MatrixXd, Eigen::NoQRPreconditioner> svd(target_by_old,
                                                                         Eigen::ComputeFullU | Eigen::ComputeFullV);
  return svd.matrixU() * svd.matrixV().transpose();
}

/// Inner product of two heads' rotary pair `pair` as complex rows: Σ a·conj(b).
inline std::complex<double> pair_inner(const HeadInner& heads, Index a, Index b, Index pair) {
  const auto block = heads.block(a, b);
  const Index d = 2 * pair;
  return {block(d, d) + block(d + 1, d + 1), block(d + 1, d) - block(d, d + 1)};
}

/// Writes the 2 × 2 matrix of a multiplication by `z` into the place of `pair`.
inline void put_pair(Eigen::MatrixXd& map, Index pair, std::complex<double> z) {
  const Index d = 2 * pair;
  map(d, d) = map(d + 1, d + 1) = z.real();
  map(d + 1, d) = z.imag();
  map(d, d + 1) = -z.imag();
}

/// The eigenvector of the greatest eigenvalue of a Hermitian matrix, and that eigenvalue. By the real symmetric matrix
/// [Re −Im; Im Re], which has each eigenvalue twice, so that the real solver serves here too.
struct LeadingVector {
  Eigen::VectorXcd vector;
  double value;
};
inline LeadingVector leading_vector(const Eigen::MatrixXcd& hermitian) {
  const Index count = hermitian.rows();
  Eigen::MatrixXd real(2 * count, 2 * count);
  real << hermitian.real(), -hermitian.imag(), hermitian.imag(), hermitian.real();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(real);
  LeadingVector leading{Eigen::VectorXcd(count), solver.eigenvalues()[2 * count - 1]};
  for (Index i = 0; i < count; ++i)
    leading.vector[i] = {solver.eigenvectors()(i, 2 * count - 1), solver.eigenvectors()(count + i, 2 * count - 1)};
  return leading;
}

/// Hermitian inner products of the members' pairs, member by member.
inline Eigen::MatrixXcd pair_inners(const HeadInner& heads, std::span<const Index> members, Index pair) {
  const auto count = static_cast<Index>(members.size());
  Eigen::MatrixXcd inner(count, count);
  for (Index a = 0; a < count; ++a)
    for (Index b = 0; b < count; ++b)
      inner(a, b) = pair_inner(heads, members[static_cast<std::size_t>(a)], members[static_cast<std::size_t>(b)], pair);
  return inner;
}

/// Eigenvalues of a group smaller than this share of the largest count as none.
inline constexpr double kNoEnergy = 1e-13;

/// Unit numbers u_a that turn the members' pairs towards each other: Σ_ab u_a·inner_ab·conj(u_b) is (locally) greatest.
inline Eigen::VectorXcd align_pairs(const Eigen::MatrixXcd& inner) {
  const Index count = inner.rows();
  Eigen::VectorXcd turn = Eigen::VectorXcd::Ones(count);
  const double energy = inner.diagonal().real().sum();
  if (!(energy > 0)) return turn;
  const LeadingVector leading = leading_vector(inner);  // a start that is best when lengths are free
  const auto set = [&](Index a, std::complex<double> towards) {
    if (std::abs(towards) > kNoEnergy * energy) turn[a] = towards / std::abs(towards);
  };
  for (Index a = 0; a < count; ++a) {
    const std::complex<double> start = std::conj(leading.vector[a]);
    if (std::abs(start) > 1e-9) turn[a] = start / std::abs(start);
  }
  for (int round = 0; round < 100; ++round) {
    const Eigen::VectorXcd before = turn;
    for (Index a = 0; a < count; ++a) {
      std::complex<double> towards = 0;
      for (Index b = 0; b < count; ++b)
        if (b != a) towards += turn[b] * inner(b, a);
      set(a, towards);
    }
    if ((turn - before).cwiseAbs().maxCoeff() < 1e-12) break;
  }
  return turn * std::conj(turn[0]);  // the first member stays as it is
}

/// Orthogonal maps that turn the members' unpaired dims towards each other, by generalised Procrustes analysis (Gower 1975).
/// Sets the lower right corner of each turn.
inline void align_unpaired(const HeadInner& heads, std::span<const Index> members, std::vector<Eigen::MatrixXd>& turn) {
  const Index first = 2 * heads.pairs, rest = heads.width - first;
  if (rest == 0) return;
  const auto inner = [&](std::size_t a, std::size_t b) {
    return heads.block(members[a], members[b]).block(first, first, rest, rest);
  };
  std::vector<Eigen::MatrixXd> part(members.size(), Eigen::MatrixXd::Identity(rest, rest));
  double best = -1;
  for (int round = 0; round < 100; ++round) {
    for (std::size_t a = round == 0 ? 1 : 0; a < members.size(); ++a) {
      Eigen::MatrixXd towards = Eigen::MatrixXd::Zero(rest, rest);
      for (std::size_t b = 0; b < (round == 0 ? a : members.size());
           ++b)  // at first, towards those that are turned already
        if (b != a) towards += part[b] * inner(b, a);
      if (towards.cwiseAbs().maxCoeff() > 0) part[a] = polar(towards);
    }
    double together = 0;
    for (std::size_t a = 0; a < members.size(); ++a)
      for (std::size_t b = 0; b < members.size(); ++b)
        together += (part[a] * inner(a, b) * part[b].transpose()).trace();
    if (together <= best * (1 + 1e-13)) break;
    best = together;
  }
  const Eigen::MatrixXd back = part[0].transpose();
  for (std::size_t a = 0; a < members.size(); ++a) turn[a].bottomRightCorner(rest, rest) = back * part[a];
}

inline GroupMaps align(const HeadInner& heads, std::span<const Index> members) {
  const auto count = static_cast<double>(members.size());
  std::vector<Eigen::MatrixXd> turn(members.size(), Eigen::MatrixXd::Zero(heads.width, heads.width));
  for (Index pair = 0; pair < heads.pairs; ++pair) {
    const Eigen::VectorXcd numbers = align_pairs(pair_inners(heads, members, pair));
    for (std::size_t a = 0; a < members.size(); ++a) put_pair(turn[a], pair, numbers[static_cast<Index>(a)]);
  }
  align_unpaired(heads, members, turn);
  GroupMaps maps{-1, false, {}};
  for (const Eigen::MatrixXd& q : turn) maps.of.push_back({q / count, q.transpose()});
  return maps;
}

/// A root of a positive semidefinite matrix: root·rootᵀ.
inline Eigen::MatrixXd root_of(const Eigen::MatrixXd& need) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(need);
  return solver.eigenvectors() * solver.eigenvalues().cwiseMax(0.0).cwiseSqrt().asDiagonal();
}

/// One complex number a member and pair: the direction that keeps most of Σ_a need_a·‖pair of a‖².
inline void factorise_pair(const HeadInner& heads, std::span<const Index> members, Index pair, GroupMaps& maps) {
  const auto count = static_cast<Index>(members.size());
  const Eigen::MatrixXcd inner = pair_inners(heads, members, pair);
  Eigen::VectorXd weight(count);
  for (Index a = 0; a < count; ++a) {
    const Eigen::MatrixXd& need = heads.need[static_cast<std::size_t>(members[static_cast<std::size_t>(a)])];
    weight[a] = std::sqrt(std::max(need(2 * pair, 2 * pair) + need(2 * pair + 1, 2 * pair + 1), 0.0));
  }
  const double energy = inner.diagonal().real().sum() / static_cast<double>(count);
  const LeadingVector leading = leading_vector(weight.asDiagonal() * inner * weight.asDiagonal());
  const double most = leading.value;
  if (!(most > 0)) {  // nothing there, or nobody asks for it
    for (Index a = 0; a < count; ++a) {
      put_pair(maps.of[static_cast<std::size_t>(a)].into, pair, 1.0 / static_cast<double>(count));
      put_pair(maps.of[static_cast<std::size_t>(a)].back, pair, 1.0);
    }
    return;
  }
  // common = Σ_a conj(e_a)·w_a·pair_a has energy `most`; scaled to the members' mean energy, which changes no score.
  Eigen::VectorXcd into = leading.vector.conjugate().cwiseProduct(weight);
  Index lead = 0;
  into.cwiseAbs().maxCoeff(&lead);
  into *= std::conj(into[lead]) / std::abs(into[lead]) * std::sqrt(energy / most);
  const Eigen::VectorXcd back = inner * into.conjugate() / energy;
  for (Index a = 0; a < count; ++a) {
    put_pair(maps.of[static_cast<std::size_t>(a)].into, pair, into[a]);
    put_pair(maps.of[static_cast<std::size_t>(a)].back, pair, back[a]);
  }
}

/// The subspace of the members' unpaired dims, as wide as one head, that keeps most of Σ_a tr(need_a·rows_a·rows_aᵀ).
inline void factorise_unpaired(const HeadInner& heads, std::span<const Index> members, GroupMaps& maps) {
  const Index first = 2 * heads.pairs, rest = heads.width - first, count = static_cast<Index>(members.size());
  if (rest == 0) return;
  const auto inner = [&](Index a, Index b) {
    return heads.block(members[static_cast<std::size_t>(a)], members[static_cast<std::size_t>(b)])
        .block(first, first, rest, rest);
  };
  std::vector<Eigen::MatrixXd> root;
  for (const Index head : members)
    root.push_back(root_of(heads.need[static_cast<std::size_t>(head)].block(first, first, rest, rest)));
  Eigen::MatrixXd weighted(count * rest, count * rest);
  double energy = 0;
  for (Index a = 0; a < count; ++a) {
    energy += inner(a, a).trace() / static_cast<double>(count * rest);
    for (Index b = 0; b < count; ++b)
      weighted.block(a * rest, b * rest, rest, rest) =
          root[static_cast<std::size_t>(a)].transpose() * inner(a, b) * root[static_cast<std::size_t>(b)];
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(weighted);
  const double most = solver.eigenvalues()[count * rest - 1];
  Eigen::VectorXd scale(rest);  // every row of the common head has the same energy, which changes no product
  for (Index row = 0; row < rest; ++row) {
    const double value = solver.eigenvalues()[count * rest - 1 - row];
    scale[row] = value > kNoEnergy * most ? std::sqrt(energy / value) : 0.0;
  }
  const Eigen::MatrixXd vectors = solver.eigenvectors().rightCols(rest).rowwise().reverse();
  for (Index a = 0; a < count; ++a)
    maps.of[static_cast<std::size_t>(a)].into.bottomRightCorner(rest, rest) =
        scale.asDiagonal() * vectors.middleRows(a * rest, rest).transpose() *
        root[static_cast<std::size_t>(a)].transpose();
  for (Index a = 0; a < count; ++a) {
    Eigen::MatrixXd cross = Eigen::MatrixXd::Zero(rest, rest);
    for (Index b = 0; b < count; ++b)
      cross += inner(a, b) * maps.of[static_cast<std::size_t>(b)].into.bottomRightCorner(rest, rest).transpose();
    maps.of[static_cast<std::size_t>(a)].back.bottomRightCorner(rest, rest) = energy > 0 ? cross / energy : cross;
  }
}

inline GroupMaps factorise(const HeadInner& heads, std::span<const Index> members) {
  const Eigen::MatrixXd zero = Eigen::MatrixXd::Zero(heads.width, heads.width);
  GroupMaps maps{-1, false, std::vector<HeadMap>(members.size(), HeadMap{zero, zero})};
  for (Index pair = 0; pair < heads.pairs; ++pair) factorise_pair(heads, members, pair, maps);
  factorise_unpaired(heads, members, maps);
  return maps;
}

inline GroupMaps pool(const HeadInner& heads, std::size_t members, Index single) {
  const Eigen::MatrixXd same = Eigen::MatrixXd::Identity(heads.width, heads.width);
  GroupMaps maps{single, true, {}};
  for (std::size_t a = 0; a < members; ++a) {
    const double share = single < 0 ? 1.0 / static_cast<double>(members) : static_cast<Index>(a) == single ? 1.0 : 0.0;
    maps.of.push_back({share * same, same});
  }
  return maps;
}

/// @param picked the member that MergeMethod::random takes
inline GroupMaps merge(const HeadInner& heads, std::span<const Index> members, MergeMethod method, Index picked) {
  switch (method) {
    case MergeMethod::mean: return pool(heads, members.size(), -1);
    case MergeMethod::first: return pool(heads, members.size(), 0);
    case MergeMethod::random: return pool(heads, members.size(), picked);
    case MergeMethod::aligned_mean: return align(heads, members);
    case MergeMethod::low_rank:
    default: return factorise(heads, members);
  }
}

/// What a group's members lose, Σ_a ‖old_a − back_a·common‖², and what their readers miss of it.
struct GroupLoss {
  double lost = 0;
  double missed = 0;
};
inline GroupLoss loss_of(const HeadInner& heads, std::span<const Index> members, const GroupMaps& maps) {
  GroupLoss loss;
  Eigen::MatrixXd common = Eigen::MatrixXd::Zero(heads.width, heads.width);
  std::vector<Eigen::MatrixXd> by_member(members.size(), common);  // common·old_aᵀ
  for (std::size_t a = 0; a < members.size(); ++a)
    for (std::size_t b = 0; b < members.size(); ++b)
      by_member[a] += maps.of[b].into * heads.block(members[b], members[a]);
  for (std::size_t a = 0; a < members.size(); ++a) common += by_member[a] * maps.of[a].into.transpose();
  for (std::size_t a = 0; a < members.size(); ++a) {
    const Eigen::MatrixXd& back = maps.of[a].back;
    const Eigen::MatrixXd cross = back * by_member[a];
    const Eigen::MatrixXd rest =
        heads.block(members[a], members[a]) - cross - cross.transpose() + back * common * back.transpose();
    loss.lost += rest.trace();
    loss.missed += heads.need[static_cast<std::size_t>(members[a])].cwiseProduct(rest).sum();
  }
  return loss;
}

}  // namespace detail::inline GQA_ABI
}  // namespace gqa
