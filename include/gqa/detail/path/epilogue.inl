// SPDX-License-Identifier: Apache-2.0
// What a variant does to outputs once they are there. Part of kernel.inl.

// 1 / (1 + e⁻ˣ)
GQA_OP Vec sigmoid(const Vec& x) { return div(set1(1.0f), add(set1(1.0f), exponential(negated(x)))); }

// row[0 … dim) ← row · sigmoid(gate)
template <class Codec>
GQA_OP void gate_row(float* row, const void* gate, Index dim) {
  const auto* const logits = static_cast<const std::byte*>(gate);
  for (Index d = 0; d < dim; d += kLanes) {
    const Vec x = d + kLanes <= dim ? load(Codec{}, logits, d) : load_part(Codec{}, logits, d, dim - d);
    store(row + d, product(load(row + d), sigmoid(x)));
  }
}

// target ← rows of `dim` floats, `stride` apart, a multiple of kLanes, each times its factor and its gate. Compiled for the variants that
// have that: V says no more than that there is one.
template <class V>
inline void finish_rows(float* rows, Index stride, Index count, Index dim, const OutputChange* changes,
                        const OutputTarget& target) {
  for (Index row = 0; row < count; ++row) {
    float* const o = rows + row * stride;
    const OutputChange& change = changes[row];
    for (Index d = 0; d < dim; d += kLanes) store(o + d, product(load(o + d), set1(change.factor)));
    if (change.gate.data != nullptr) {
      switch (change.gate.type) {
        case ElementType::f32: gate_row<F32>(o, change.gate.data, dim); break;
        case ElementType::bf16: gate_row<Bf16>(o, change.gate.data, dim); break;
        case ElementType::f16: gate_row<F16>(o, change.gate.data, dim); break;
      }
    }
    std::byte* const out = target.row(row);
    switch (target.type) {
      case ElementType::f32: store_row<F32>(o, 1.0f, dim, out, target.dim_stride); break;
      case ElementType::bf16: store_row<Bf16>(o, 1.0f, dim, out, target.dim_stride); break;
      case ElementType::f16: store_row<F16>(o, 1.0f, dim, out, target.dim_stride); break;
    }
  }
}
