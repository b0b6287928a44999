// SPDX-License-Identifier: Apache-2.0
/// @file
/// Queries, keys and values that look like those of a trained model where it matters to arithmetic: a few channels of the keys
/// are much larger than the others, tokens share dominant directions, and the first tokens are sinks that every query attends to.
/// Plain normal noise would give a nearly flat softmax, in which errors average out. Seeded: the same numbers on every machine.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "gqa/gqa.hpp"

namespace spectrum {

using gqa::Index;

/// A counter-based generator: the numbers of a row depend on the row alone.
class RowNoise {
 public:
  RowNoise(std::uint64_t stream, std::uint64_t row) : state_(mix(stream * 0x9e3779b97f4a7c15u + row)) {}
  /// Roughly standard normal: the sum of four uniform 16-bit numbers, centred and scaled.
  float normal() {
    const std::uint64_t bits = mix(state_ += 0x9e3779b97f4a7c15u);
    const auto sum = static_cast<std::int64_t>((bits & 0xffffu) + ((bits >> 16) & 0xffffu) + ((bits >> 32) & 0xffffu) +
                                               (bits >> 48));
    return static_cast<float>(sum - 2 * 65535) * (1.7320508f / 65536.0f);
  }

 private:
  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  std::uint64_t state_;
};

/// Where a row is written, and its scale, if that lies elsewhere.
struct RowPlace {
  std::byte* row;
  std::byte* scale = nullptr;
};
/// Writes a row of one head as it is stored.
inline void put_row(const RowPlace& to, const gqa::KvEncoding& type, const std::vector<float>& row) {
  if (type.codec() != nullptr) {
    type.codec()->encoder(gqa::detail::row_ops().set, gqa::ElementType::f32)(
        reinterpret_cast<const std::byte*>(row.data()), 1, static_cast<Index>(row.size()), to.row, to.scale);
    return;
  }
  const gqa::ElementType element = gqa::KvType(type);
  for (std::size_t i = 0; i < row.size(); ++i) {
    const gqa::bf16 as_bf16(row[i]);
    const gqa::f16 as_f16(row[i]);
    if (element == gqa::ElementType::f32) std::memcpy(to.row + 4 * i, &row[i], 4);
    if (element == gqa::ElementType::bf16) std::memcpy(to.row + 2 * i, &as_bf16, 2);
    if (element == gqa::ElementType::f16) std::memcpy(to.row + 2 * i, &as_f16, 2);
  }
}

/// Rows of one KV head, one behind the other, and behind all of them their scales, if they lie outside of rows.
struct HeadLayout {
  gqa::KvType type;
  Index dim;
  Index tokens;

  Index row_bytes() const { return type.row_bytes(dim); }
  /// Whole blocks, and whole scales: heads follow each other.
  Index bytes() const {
    const Index unit = type.scale_bytes() > 0 ? std::lcm(type.scale_bytes(), type.block_bytes()) : 1;
    return (tokens * (row_bytes() + type.scale_bytes()) + unit - 1) / unit * unit;
  }
  RowPlace at(std::byte* head, Index token) const {
    return {head + token * row_bytes(), scales(head) + token * type.scale_bytes()};
  }
  template <class Byte>
  Byte* scales(Byte* head) const {
    return head + tokens * row_bytes();
  }
};

/// The inputs of one model.
class Inputs {
 public:
  static constexpr Index sinks = 4;          ///< tokens at the start that draw attention
  static constexpr Index topics = 8;         ///< dominant directions
  static constexpr Index topic_tokens = 64;  ///< neighbours share one

  Inputs(Index head_dim, std::uint64_t seed) : dim_(static_cast<std::size_t>(head_dim)), seed_(seed) {
    for (std::size_t i = 0; i < directions_.size(); ++i) directions_[i] = unit_vector(i);
  }

  /// tokens × dim of one KV head, to `to`.
  void keys(Index head, Index tokens, const gqa::KvEncoding& type, std::byte* to) const {
    const HeadLayout layout{type, static_cast<Index>(dim_), tokens};
    std::vector<float> row(dim_);
    for (Index t = 0; t < tokens; ++t) {
      RowNoise noise(stream(1, head), static_cast<std::uint64_t>(t));
      for (float& x : row) x = 0.7f * noise.normal();
      row[static_cast<std::size_t>(head) % dim_] += 6.0f;  // outlier channels, as trained keys have
      row[static_cast<std::size_t>(7 * head + 3) % dim_] -= 4.0f;
      add(row, topic(t), 3.0f);
      if (t < sinks) add(row, sink(), sink_strength() / static_cast<float>(1 + t));
      put_row(layout.at(to, t), type, row);
    }
  }
  /// tokens × dim of one KV head. Sinks carry little.
  void values(Index head, Index tokens, const gqa::KvEncoding& type, std::byte* to) const {
    const HeadLayout layout{type, static_cast<Index>(dim_), tokens};
    std::vector<float> row(dim_);
    for (Index t = 0; t < tokens; ++t) {
      RowNoise noise(stream(2, head), static_cast<std::uint64_t>(t));
      for (float& x : row) x = noise.normal() * (t < sinks ? 0.1f : 1.0f);
      put_row(layout.at(to, t), type, row);
    }
  }
  /// (token, head, dim), packed, for tokens [first, first + tokens).
  void queries(Index heads, Index first, Index tokens, gqa::ElementType type, std::byte* to) const {
    std::vector<float> row(dim_);
    for (Index t = first; t < first + tokens; ++t)
      for (Index head = 0; head < heads; ++head, to += row_bytes(type)) {
        RowNoise noise(stream(3, head), static_cast<std::uint64_t>(t));
        for (float& x : row) x = 0.7f * noise.normal();
        add(row, topic(t), 6.0f);
        add(row, sink(), query_pull);
        put_row({to}, type, row);
      }
  }

 private:
  static constexpr float query_pull = 8.0f;
  // Gives the first token a score about 9 above the others': half of the attention among eight thousand.
  float sink_strength() const { return 9.0f * std::sqrt(static_cast<float>(dim_)) / query_pull; }
  Index row_bytes(gqa::ElementType type) const { return static_cast<Index>(dim_) * gqa::element_bytes(type); }
  std::uint64_t stream(std::uint64_t kind, Index head) const {
    return (seed_ * 4 + kind) * 1024 + static_cast<std::uint64_t>(head);
  }
  const std::vector<float>& sink() const { return directions_[topics]; }
  const std::vector<float>& topic(Index token) const {
    return directions_[static_cast<std::size_t>((token / topic_tokens * 5) % topics)];
  }
  static void add(std::vector<float>& row, const std::vector<float>& direction, float amount) {
    for (std::size_t i = 0; i < row.size(); ++i) row[i] += amount * direction[i];
  }
  std::vector<float> unit_vector(std::size_t which) const {
    std::vector<float> vector(dim_);
    RowNoise noise(stream(0, 0), which);
    float square = 0;
    for (float& x : vector) {
      x = noise.normal();
      square += x * x;
    }
    for (float& x : vector) x /= std::sqrt(square);
    return vector;
  }

  std::size_t dim_;
  std::uint64_t seed_;
  std::array<std::vector<float>, topics + 1> directions_;
};

}  // namespace spectrum
