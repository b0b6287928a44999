// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a description of a model gives, whatever it was read from, and how it says that a field is wrong.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "gqa/budget_time.hpp"

namespace kv_budget {

using gqa::Index;

/// A model and how it is called.
struct NamedModel {
  std::string name;
  gqa::ModelShape shape;
  Index weight_bytes = 0;          ///< 0: not known
  std::vector<std::string> notes;  ///< what was assumed, for the user to read
};

/// A description that is unknown, incomplete or contradicts itself.
class ModelFileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// "FILE: FIELD is VALUE; expected EXPECTED".
[[noreturn]] inline void bad_field(const std::string& file, const std::string& field, const std::string& value,
                                   const std::string& expected) {
  throw ModelFileError(file + ": " + field + " is " + value + "; expected " + expected);
}
[[noreturn]] inline void bad_field(const std::string& file, const std::string& field, Index value,
                                   const std::string& expected) {
  bad_field(file, field, std::to_string(value), expected);
}

/// The largest count or width that is believed.
inline constexpr Index kMostBelieved = Index{1} << 30;
/// The most layers: each is looked at.
inline constexpr Index kMostLayers = 100000;

/// What the readers find out before layers are counted by kind.
struct LayerPlan {
  std::vector<bool> windowed;    ///< of each layer
  std::vector<bool> shares;      ///< of each layer
  gqa::LayerKind full{};         ///< a layer without window
  gqa::LayerKind with_window{};  ///< a layer with one
};

/// A shared layer reads what the last layer of its kind before the shared ones stored; there has to be one.
inline void share_last_layers(const std::string& file, const std::string& field, Index shared, LayerPlan& plan) {
  const Index layers = static_cast<Index>(plan.windowed.size());
  if (shared < 0 || shared >= layers)
    bad_field(file, field, shared, "0 to " + std::to_string(layers - 1) + ", fewer than there are layers");
  plan.shares.assign(plan.windowed.size(), false);
  for (Index i = layers - shared; i < layers; ++i) {
    bool stored = false;
    for (Index before = 0; before < layers - shared; ++before)
      stored = stored || plan.windowed[static_cast<std::size_t>(before)] == plan.windowed[static_cast<std::size_t>(i)];
    if (!stored)
      bad_field(file, field, shared,
                std::string("fewer: no layer ") + (plan.windowed[static_cast<std::size_t>(i)] ? "with" : "without") +
                    " a window is left that stores keys and values");
    plan.shares[static_cast<std::size_t>(i)] = true;
  }
}

/// Counts the layers of a plan by kind.
inline void add_planned_layers(gqa::ModelShape& shape, const LayerPlan& plan) {
  for (std::size_t i = 0; i < plan.windowed.size(); ++i) {
    gqa::LayerKind kind = plan.windowed[i] ? plan.with_window : plan.full;
    kind.count = 1;
    kind.shares_kv = !plan.shares.empty() && plan.shares[i];
    shape.add_layers(kind);
  }
}

}  // namespace kv_budget
