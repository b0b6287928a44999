// SPDX-License-Identifier: Apache-2.0
/// @file
/// How fast this machine goes: the library's own calls, timed for about a second.
#pragma once

#include "budget_rows.hpp"

namespace kv_budget {

/// Times decode steps and a prefill of the first layer of each row's shape, in bf16, and puts the rates into the rows. Latents are
/// measured as what they are to attention: one KV head.
/// Decode steps read a cache that is larger than the processor's caches, of which all rows have the same bytes: fewer KV heads, more
/// tokens. Memory: a quarter of what is free, 512 MiB at most.
void measure(std::vector<Row>& rows, int threads);

}  // namespace kv_budget
