// SPDX-License-Identifier: Apache-2.0
// Rows of the backward pass on their way into words, and sums on their way out. Part of backward.inl.

// Rows of a block as words, those of `tokens`.
template <class Codec, class Word>
GQA_OP void stage_rows(const BlockRows<Codec>& rows, std::uint64_t tokens, Index dim, float* to, Index stride) {
  for (; tokens != 0; tokens &= tokens - 1) {
    const Index t = __builtin_ctzll(tokens);
    const RowOf<Codec> row = rows(t);
    float* const out = to + t * stride;
    Index d = 0;
    for (; d + kLanes <= dim; d += kLanes) Word::put(out, d, load(Codec{}, row, d));
    if (d < dim) Word::put(out, d, load_part(Codec{}, row, d, dim - d));
  }
}
template <class Codec, class Word>
inline void stage_keys(const BackwardTile& tile, Index at, const Block& block, std::uint64_t tokens) {
  const Index stride = tile.head_width / Word::kElements;
  stage_rows<Codec, Word>(block_keys<Codec>(block), tokens, tile.head_dim, tile.keys + at * kBlock * stride, stride);
}
template <class Codec, class Word>
inline void stage_values(const BackwardTile& tile, Index at, const Block& block, std::uint64_t tokens) {
  const Index stride = tile.value_width / Word::kElements;
  stage_rows<Codec, Word>(block_values<Codec>(block), tokens, tile.value_dim, tile.values + at * kBlock * stride,
                          stride);
}

// to, a lane is a dim ← `count` rows of words `stride` apart, as steps from `first` on of panels of `steps`. Rows beyond the last are zeros.
template <class Word, class Get>
GQA_OP void put_dim_lanes(const Get& get, Index count, Index width, float* to, Index steps, Index first) {
  const Index vectors = width / kLanes;
  for (Index v = 0; v < vectors;) {
    const Index panel = panel_width(v, vectors);
    for (Index k = 0; k * Word::kElements < count; ++k) {
      float* const out = panel_at(to, steps, v, panel, first + k);
      for (Index n = 0; n < panel; ++n) {
        Vec elements[Word::kElements];
        GQA_UNROLL
        for (int e = 0; e < Word::kElements; ++e) {
          const Index row = k * Word::kElements + e;
          elements[e] = row < count ? get(row, (v + n) * kLanes) : zero();
        }
        store(out + n * kLanes, Word::join(elements));
      }
    }
    v += panel;
  }
}
// to, a lane is a row ← rows of `width` floats: steps over their first `dim`. Rows beyond the last are zeros, up to a whole vector.
template <class Word, class Get>
GQA_OP void put_row_lanes(const Get& get, Index count, Index dim, float* to) {
  const Index vectors = round_up(count, kLanes) / kLanes;
  const Index steps = steps_of<Word>(dim);
  for (Index v = 0; v < vectors;) {
    const Index panel = panel_width(v, vectors);
    for (Index n = 0; n < panel; ++n) {
      for (Index d = 0; d < dim; d += kLanes) {
        Vec part[kLanes];
        GQA_UNROLL
        for (int r = 0; r < kLanes; ++r) {
          const Index row = (v + n) * kLanes + r;
          part[r] = row < count ? get(row, d) : zero();
        }
        transpose(part);
        GQA_UNROLL
        for (int k = 0; k < kLanes / Word::kElements; ++k) {
          const Index step = d / Word::kElements + k;
          if (step >= steps) break;
          Vec elements[Word::kElements];
          GQA_UNROLL
          for (int e = 0; e < Word::kElements; ++e) elements[e] = part[k * Word::kElements + e];
          store(panel_at(to, steps, v, panel, step) + n * kLanes, Word::join(elements));
        }
      }
    }
    v += panel;
  }
}

// Sixteen elements from d on of a row: of words, and of floats, of which some rows alone may be there.
template <class Word>
struct WordRows {
  const float* rows;
  Index stride;
  GQA_OP Vec operator()(Index row, Index d) const { return Word::get(rows + row * stride, d); }
};
struct FloatRows {
  const float* rows;
  Index stride;
  Index first, last;
  GQA_OP Vec operator()(Index row, Index d) const {
    return row >= first && row < last ? load(rows + row * stride + d) : zero();
  }
};

template <class Word>
inline void turn_keys(const BackwardTile& tile, Index at) {
  const Index stride = tile.head_width / Word::kElements;
  put_dim_lanes<Word>(WordRows<Word>{tile.keys + at * kBlock * stride, stride}, kBlock, tile.head_width,
                      tile.key_dim_lanes, kColumn / Word::kElements, at * kBlock / Word::kElements);
}

template <class Word>
GQA_KERNEL void pack_rows(const FloatRows& get, Index rows, Index dim, float* row_lanes, float* dim_lanes) {
  put_row_lanes<Word>(get, rows, dim, row_lanes);
  put_dim_lanes<Word>(get, rows, get.stride, dim_lanes, steps_of<Word>(rows), 0);
}
template <class Word>
inline void pack_words(const BackwardTile& tile, Index first, Index last) {
  pack_rows<Word>({tile.q, tile.head_width, first, last}, tile.rows, tile.head_dim, tile.q_row_lanes, tile.q_dim_lanes);
  pack_rows<Word>({tile.d_out, tile.value_width, first, last}, tile.rows, tile.value_dim, tile.d_out_row_lanes,
                  tile.d_out_dim_lanes);
}

inline void load_rows(const QuerySource& source, Index rows, Index dim, float* to, Index width) {
  for (Index row = 0; row < rows; ++row, to += width) {
    const std::byte* const from = source.row(row);
    switch (source.type) {
      case ElementType::f32: pack_row<F32>(from, source.dim_stride, dim, 1.0f, to); break;
      case ElementType::bf16: pack_row<Bf16>(from, source.dim_stride, dim, 1.0f, to); break;
      case ElementType::f16: pack_row<F16>(from, source.dim_stride, dim, 1.0f, to); break;
    }
  }
}

inline void store_gradient_rows(const float* from, Index width, Index rows, Index dim, float factor, bool add,
                                float* to, Index stride) {
  const Vec scale = set1(factor);
  for (Index row = 0; row < rows; ++row, from += width, to += stride) {
    for (Index d = 0; d < dim; d += kLanes) {
      const bool whole = d + kLanes <= dim;
      const auto* const old = reinterpret_cast<const std::byte*>(to);
      const Vec sum = load(from + d);
      const Vec result = !add    ? product(sum, scale)
                         : whole ? fma(sum, scale, load(to + d))
                                 : fma(sum, scale, load_part(F32{}, old, d, dim - d));
      if (whole) {
        store(to + d, result);
      } else {
        alignas(64) float lanes[kLanes];
        store(lanes, result);
        __builtin_memcpy(to + d, lanes, static_cast<std::size_t>(dim - d) * sizeof(float));
      }
    }
  }
}
