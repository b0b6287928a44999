// SPDX-License-Identifier: Apache-2.0
/// @file
/// Every kind of mask, score, sink and change of outputs that the library has, and compose(), which puts them together:
///
///     attention(q, kv, out, compose(Causal{}, SoftCap{50.0f}, Alibi{slopes}));
#pragma once

#include "gqa/variants/compose.hpp"
#include "gqa/variants/masks.hpp"
#include "gqa/variants/outputs.hpp"
#include "gqa/variants/ranges.hpp"
#include "gqa/variants/scores.hpp"
