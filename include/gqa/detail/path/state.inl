// SPDX-License-Identifier: Apache-2.0
// Queries in, states merged, outputs out. Part of kernel.inl.

template <class Codec>
GQA_OP void pack_row(const std::byte* source, Index dim_stride, Index dim, float scale, float* out) {
  const Vec factor = set1(scale);
  Index d = 0;
  if (dim_stride == 1) {
    for (; d + kLanes <= dim; d += kLanes) store(out + d, mul(load(Codec{}, source, d), factor));
    if (d < dim) store(out + d, mul(load_part(Codec{}, source, d, dim - d), factor));
    return;
  }
  for (; d < dim; d += kLanes) {
    alignas(64) float lanes[kLanes] = {};
    for (Index i = 0; i < kLanes && d + i < dim; ++i) {
      alignas(64) float one[kLanes];
      store(one, load_part(Codec{}, source, (d + i) * dim_stride, 1));
      lanes[i] = one[0];
    }
    store(out + d, mul(load(lanes), factor));
  }
}

// to[0 … head_dim) ← scale · the query of a row, zeros up to a whole vector.
inline void pack_query(const QueryTile& tile, const QuerySource& source, Index row, float* to) {
  const std::byte* from = source.row(row);
  switch (source.type) {
    case ElementType::f32: pack_row<F32>(from, source.dim_stride, tile.head_dim, tile.score_scale, to); break;
    case ElementType::bf16: pack_row<Bf16>(from, source.dim_stride, tile.head_dim, tile.score_scale, to); break;
    case ElementType::f16: pack_row<F16>(from, source.dim_stride, tile.head_dim, tile.score_scale, to); break;
  }
}

// Sixteen packed rows of `floats` floats each → [float][row], or as order_pieces leaves them.
inline void transpose_panel(const float* rows, Index stride, Index count, Index floats, float* out) {
  for (Index f = 0; f < floats; f += kLanes) {
    Vec part[kLanes];
    GQA_UNROLL
    for (int r = 0; r < kLanes; ++r) part[r] = r < count ? load(rows + r * stride + f) : zero();
    transpose(part);
    order_pieces(part);
    GQA_UNROLL
    for (int i = 0; i < kLanes; ++i) store(out + (f + i) * kLanes, part[i]);
  }
}

// tile.q ← queries: panels of 16 rows as transpose_panel leaves them, zeros for rows beyond the last; then the other rows one by one.
inline void pack(const QueryTile& tile, const QuerySource& source) {
  float* q = static_cast<float*>(tile.q);
  const Index in_panels = rows_in_panels(tile.rows);
  if (in_panels > 0) prefetch_queries(tile, source, 0, kLanes);
  for (Index row = 0; row < in_panels; row += kLanes) {
    prefetch_queries(tile, source, row + kLanes, row + 2 * kLanes);
    auto* rows = typed<float>(tile.staging);
    const Index count = tile.rows - row < kLanes ? tile.rows - row : kLanes;
    for (Index r = 0; r < count; ++r) pack_query(tile, source, row + r, rows + r * tile.q_stride);
    transpose_panel(rows, tile.q_stride, count, round_up(tile.head_dim, kLanes), q + row * tile.q_stride);
  }
  for (Index row = in_panels; row < tile.rows; ++row) pack_query(tile, source, row, q + row * tile.q_stride);
}

inline void begin(const QueryTile& tile) {
  const Index rows = state_rows(tile.rows);
  for (Index row = 0; row < rows; ++row) tile.m[row] = kMinusInfinity;
  for (Index i = 0; i < rows * tile.l_stride; ++i) tile.l[i] = 0.0f;
  for (Index row = 0; tile.has_divisor && row < rows; ++row) tile.divisor[row] = 0.0f;
  for (Index i = 0; i < tile.rows * tile.o_stride; i += kLanes) store(tile.o + i, zero());
}

// The state of the tokens of `into` followed by those of `from`. A state of no tokens changes nothing.
inline void merge(const QueryTile& into, const QueryTile& from) {
  alignas(64) float a[kLanes];  // by row
  alignas(64) float b[kLanes];
  for (Index row = 0; row < into.rows; ++row) {
    const Index lane = row % kLanes;
    if (lane == 0) {
      const Index rows = into.rows - row < kLanes ? into.rows - row : kLanes;
      const Vec m_into = load_part(F32{}, reinterpret_cast<const std::byte*>(into.m + row), 0, rows);
      const Vec m_from = load_part(F32{}, reinterpret_cast<const std::byte*>(from.m + row), 0, rows);
      const Vec m = larger(m_from, m_into);
      const Vec base = finite_base(m);
      alignas(64) float lanes[kLanes];
      store(a, exp2_nonpositive(sub(m_into, base)));
      store(b, exp2_nonpositive(sub(m_from, base)));
      store(lanes, m);
      __builtin_memcpy(into.m + row, lanes, static_cast<std::size_t>(rows) * sizeof(float));
    }
    for (Index i = row * into.l_stride; i < (row + 1) * into.l_stride; ++i)
      into.l[i] = fma(into.l[i], a[lane], from.l[i] * b[lane]);
    if (into.has_divisor) into.divisor[row] = fma(into.divisor[row], a[lane], from.divisor[row] * b[lane]);
    const Vec into_factor = set1(a[lane]);
    const Vec from_factor = set1(b[lane]);
    float* o = into.o + row * into.o_stride;
    const float* other = from.o + row * from.o_stride;
    for (Index d = 0; d < into.o_stride; d += kLanes)
      store(o + d, fma(load(o + d), into_factor, mul(load(other + d), from_factor)));
  }
}

template <class Codec>
GQA_OP void store_row(const float* o, float factor, Index dim, std::byte* out, Index dim_stride) {
  const Vec scale = set1(factor);
  Index d = 0;
  if (dim_stride == 1)
    for (; d + kLanes <= dim; d += kLanes) store_as<Codec>(out + d * Codec::bytes, mul(load(o + d), scale));
  for (; d < dim; d += kLanes) {
    alignas(64) std::byte lanes[kLanes * Codec::bytes];
    store_as<Codec>(lanes, mul(load(o + d), scale));
    for (Index i = 0; i < kLanes && d + i < dim; ++i)
      __builtin_memcpy(out + (d + i) * dim_stride * Codec::bytes, lanes + i * Codec::bytes, Codec::bytes);
  }
}

// out ← o / divisor, zeros where nothing was visible.
GQA_OP void store_output(const QueryTile& tile, const OutputTarget& target, Index row, float divisor) {
  const RowPlace at(target.first_row + row, target.group);
  std::byte* const out = target.data + at.token * target.token_stride + at.head * target.head_stride;
  const float* o = tile.o + row * tile.o_stride;
  float factor = divisor == 0.0f ? 0.0f : 1.0f / divisor;
  if (target.turn_back != nullptr) {  // the output as it would be stored in f32, then turned
    for (Index d = 0; d < tile.value_dim; d += kLanes) store(target.turned + d, mul(load(o + d), set1(factor)));
    target.turn_back(target.turned, tile.value_dim, target.rotation);
    o = target.turned;
    factor = 1.0f;
  }
  switch (target.type) {
    case ElementType::f32: store_row<F32>(o, factor, tile.value_dim, out, target.dim_stride); break;
    case ElementType::bf16: store_row<Bf16>(o, factor, tile.value_dim, out, target.dim_stride); break;
    case ElementType::f16: store_row<F16>(o, factor, tile.value_dim, out, target.dim_stride); break;
  }
}

// Outputs, if they go anywhere; lse ← natural logarithm of the sum of exp(score), likewise.
inline void store(const QueryTile& tile, const OutputTarget& target) {
  for (Index row = 0; row < tile.rows; ++row) {
    const float l = tile.l_stride == 1 ? tile.l[row] : reduce_add(load(tile.l + row * kLanes));
    if (target.data != nullptr) store_output(tile, target, row, tile.has_divisor ? tile.divisor[row] : l);
    if (target.lse != nullptr) {
      const RowPlace at(target.first_row + row, target.group);
      constexpr double kLog2 =
          static_cast<double>(0x1.62e42fefa39efp-1L);  // the suffix: for -fsingle-precision-constant
      const double scaled = rounded_product(static_cast<double>(tile.m[row]) * kLog2);
      const double log_l = l == 0.0f ? 0.0 : __builtin_log(static_cast<double>(l));
      target.lse[at.token * target.lse_token_stride + at.head] = static_cast<float>(scaled + log_l);
    }
  }
}
