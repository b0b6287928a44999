// SPDX-License-Identifier: Apache-2.0
/// @file
/// What changes queries and keys by their positions, and norms of them.
#pragma once

#include <gqa/qk_norm.hpp>
#include <gqa/rope.hpp>
#include <gqa/rotation.hpp>

#include "arrays.hpp"

namespace gqa::python {

/// Weights of a norm of keys and queries.
struct Norm {
  std::vector<float> weights;
  float weight_offset;
  double epsilon;
  RmsNormOptions options() const { return {.weights = weights, .weight_offset = weight_offset, .epsilon = epsilon}; }
};

/// Calls `use` with the hook that these make together, or with none.
template <class Use>
void with_hook(const Rope* rope, const std::vector<Index>* positions, const Norm* norm, const Use& use) {
  const auto turned = [&] { return positions == nullptr ? rope->keys() : rope->keys(*positions); };
  if (rope != nullptr && norm != nullptr) use(compose_hooks(RmsNormKeys{norm->options()}, turned()));
  else if (rope != nullptr) use(turned());
  else if (norm != nullptr) use(RmsNormKeys{norm->options()});
  else use();
}

void bind_rope(nb::module_& module);

}  // namespace gqa::python
