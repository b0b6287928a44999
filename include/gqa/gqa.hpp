// SPDX-License-Identifier: Apache-2.0
/// @file
/// The whole core: attention over one KV-cache view. Needs the standard library alone.
/// The headers that need Eigen are separate: gqa/eigen.hpp, gqa/thread_pool.hpp, gqa/reference.hpp, gqa/reference_backward.hpp. So are
/// those that plan and do not compute: gqa/budget.hpp, gqa/budget_time.hpp, gqa/budget_presets.hpp.
#pragma once

#include "gqa/attention.hpp"
#include "gqa/codec.hpp"
#include "gqa/cpu.hpp"
#include "gqa/element.hpp"
#include "gqa/error.hpp"
#include "gqa/executor.hpp"
#include "gqa/heads.hpp"
#include "gqa/kv_cache.hpp"
#include "gqa/kv_cache_view.hpp"
#include "gqa/kv_type.hpp"
#include "gqa/options.hpp"
#include "gqa/tensor_view.hpp"
#include "gqa/variant.hpp"
#include "gqa/variants.hpp"
#include "gqa/version.hpp"
