// SPDX-License-Identifier: Apache-2.0
/// @file
/// How keys and values are stored, and attention over a cache that stores them so.
#pragma once

#include <Eigen/Core>
#include <string>
#include <vector>

#include "gqa/gqa.hpp"

namespace accuracy {

using gqa::Index;

/// Keys by one codec, values by another.
struct Format {
  std::string k_name, v_name;
  gqa::KvEncoding k, v;
};

/// Queries, keys and values of a sequence: heads side by side, a column a token. Fewer query tokens than others: the last ones.
struct Rows {
  gqa::HeadShape shape;
  Eigen::MatrixXf q, k, v;
};

/// Whether rows of these widths can be stored so: ggml's formats take whole blocks alone.
inline bool takes(const Format& format, const gqa::HeadShape& shape) {
  const auto whole = [](gqa::KvType type, Index dim) {
    return !type.whole_blocks() || dim % type.block_elements() == 0;
  };
  return whole(format.k, shape.head_dim) && whole(format.v, shape.value_dim);
}

/// Bits of memory an element, of keys and values together.
inline double bits(const Format& format, const gqa::HeadShape& shape) {
  const auto bytes = [](gqa::KvType type, Index dim) {
    return static_cast<double>(type.row_bytes(dim) + type.scale_bytes());
  };
  return 8 * (bytes(format.k, shape.head_dim) + bytes(format.v, shape.value_dim)) /
         static_cast<double>(shape.head_dim + shape.value_dim);
}

/// What is measured: first f32, the one that others are held against.
inline std::vector<Format> every_format() {
  struct Named {
    const char* name;
    gqa::KvEncoding encoding;
  };
  using gqa::ElementType;
  const auto codec = []<class C>(C) { return Named{C::name, C{}}; };
  const Named int8 = codec(gqa::Int8{}), int4 = codec(gqa::Int4{}), q8_0 = codec(gqa::Q8_0{}),
              q4_0 = codec(gqa::Q4_0{}), q5_0 = codec(gqa::Q5_0{}), bf16 = {"bf16", ElementType::bf16};
  const Named one_codec[] = {{"f32", ElementType::f32},
                             {"f16", ElementType::f16},
                             bf16,
                             int8,
                             q8_0,
                             codec(gqa::Q8Kv{}),
                             codec(gqa::Fp8E4M3{}),
                             codec(gqa::Fp8E5M2{}),
                             codec(gqa::Q5_1{}),
                             q5_0,
                             codec(gqa::Iq4Nl{}),
                             q4_0,
                             int4,
                             codec(gqa::Mxfp4{})};
  std::vector<Format> made;
  const auto add = [&](const Named& k, const Named& v) { made.push_back({k.name, v.name, k.encoding, v.encoding}); };
  for (const Named& both : one_codec) add(both, both);
  add(q8_0, q4_0);
  add(q4_0, q8_0);
  add(q5_0, q4_0);
  add(int8, int4);
  add(int4, int8);
  return made;
}

/// The Hadamard matrix of a power of two (Sylvester 1867), scaled to be orthogonal. It is symmetric: its own inverse.
inline Eigen::MatrixXf hadamard(Index dim) {
  Eigen::MatrixXf made = Eigen::MatrixXf::Constant(dim, dim, 1 / std::sqrt(static_cast<float>(dim)));
  for (Index row = 0; row < dim; ++row)
    for (Index column = 0; column < dim; ++column)
      if (__builtin_parityll(static_cast<unsigned long long>(row & column))) made(row, column) *= -1;
  return made;
}

/// Every head's rows rotated by the largest power of two that divides their width.
inline Eigen::MatrixXf rotated(const Eigen::MatrixXf& heads, Index dim) {
  const Index block = dim & -dim;
  Eigen::MatrixXf made(heads.rows(), heads.cols());
  Eigen::Map<Eigen::MatrixXf>(made.data(), block, heads.size() / block).noalias() =
      hadamard(block) * Eigen::Map<const Eigen::MatrixXf>(heads.data(), block, heads.size() / block);
  return made;
}

using Attention = gqa::GroupedQueryAttention<
    gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic,
    gqa::CacheOf<float, gqa::bf16, gqa::f16, gqa::Int8, gqa::Int4, gqa::Q8_0, gqa::Q5_1, gqa::Q5_0, gqa::Q4_0,
                 gqa::Iq4Nl, gqa::Q8Kv, gqa::Fp8E4M3, gqa::Fp8E5M2, gqa::Mxfp4>>;

/// Causal attention of all query heads over a cache of that format: Hq·Dv × query tokens.
inline Eigen::MatrixXf attend(const Rows& rows, const Format& format, gqa::ExecutorRef executor) {
  const gqa::HeadShape& shape = rows.shape;
  const Index tokens = rows.k.cols();
  gqa::ContiguousKvCache cache({.kv_heads = shape.kv_heads,
                                .head_dim = shape.head_dim,
                                .value_dim = shape.value_dim,
                                .k_type = format.k,
                                .v_type = format.v,
                                .capacity = tokens});
  cache.append(gqa::ConstTensorView(rows.k.data(), tokens, shape.kv_heads, shape.head_dim),
               gqa::ConstTensorView(rows.v.data(), tokens, shape.kv_heads, shape.value_dim));
  Eigen::MatrixXf out(shape.query_heads * shape.value_dim, rows.q.cols());
  static const Attention attention;
  attention(gqa::ConstTensorView(rows.q.data(), rows.q.cols(), shape.query_heads, shape.head_dim), cache.view(),
            gqa::TensorView(out.data(), rows.q.cols(), shape.query_heads, shape.value_dim), gqa::Causal{},
            {.executor = executor});
  return out;
}

/// The same with keys and queries rotated, and values rotated and outputs turned back.
inline Eigen::MatrixXf attend_rotated(const Rows& rows, const Format& format, gqa::ExecutorRef executor) {
  const gqa::HeadShape& shape = rows.shape;
  return rotated(attend({shape, rotated(rows.q, shape.head_dim), rotated(rows.k, shape.head_dim),
                         rotated(rows.v, shape.value_dim)},
                        format, executor),
                 shape.value_dim);
}

/// √(Σ ‖output − expected‖² / Σ ‖expected‖²).
class RelativeError {
 public:
  void add(const Eigen::MatrixXf& output, const Eigen::MatrixXf& expected) {
    difference_ += (output - expected).cast<double>().squaredNorm();
    whole_ += expected.cast<double>().squaredNorm();
  }
  double value() const { return std::sqrt(difference_ / whole_); }

 private:
  double difference_ = 0, whole_ = 0;
};

}  // namespace accuracy
