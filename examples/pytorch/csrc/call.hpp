// SPDX-License-Identifier: Apache-2.0
/// @file
/// Tensors as the library's views, PyTorch's threads as its executor, and an operator's options as a variant: what the operators and the
/// cache share.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "gqa/attention.hpp"
#include "gqa/variants.hpp"

namespace gqa_torch {

using gqa::Index;
using OptionalTensor = std::optional<at::Tensor>;

[[noreturn]] inline void fail(const std::string& argument, const std::string& value, const std::string& expected) {
  throw gqa::ArgumentError("gqa: " + argument + " is " + value + "; expected " + expected);
}
inline void expect_size(const at::Tensor& tensor, const char* name, int64_t dim, int64_t size, const char* what) {
  if (tensor.size(dim) != size)
    fail(std::string(name) + ".size(" + std::to_string(dim) + ")", std::to_string(tensor.size(dim)),
         std::string(what) + " = " + std::to_string(size));
}

/// What the library says becomes Python's ValueError.
template <class Work>
auto with_python_errors(const Work& work) {
  try {
    return work();
  } catch (const gqa::ArgumentError& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

inline gqa::ElementType element_type(const at::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return gqa::ElementType::f32;
    case at::kBFloat16: return gqa::ElementType::bf16;
    case at::kHalf: return gqa::ElementType::f16;
    default: fail(std::string(name) + ".dtype", c10::toString(tensor.scalar_type()), "float32, bfloat16 or float16");
  }
}

inline void check_tensor(const at::Tensor& tensor, const char* name, int64_t dims,
                         const char* what = "(batch, heads, tokens, head dim)") {
  if (!tensor.device().is_cpu()) fail(std::string(name) + ".device", tensor.device().str(), "cpu");
  if (tensor.dim() != dims)
    fail(std::string(name) + ".dim()", std::to_string(tensor.dim()),
         std::to_string(dims) + (dims == 4 ? std::string(": ") + what : ""));
}

/// Keys or values: rows are read where they lie, so their elements must lie side by side.
inline void check_rows(const at::Tensor& tensor, const char* name) {
  check_tensor(tensor, name, 4);
  if (tensor.stride(3) != 1 && tensor.size(3) != 1)
    fail(std::string(name) + ".stride(3)", std::to_string(tensor.stride(3)), "1: the elements of a row side by side");
}

/// Row `b` of (batch, heads, tokens, dim) as (token, head, dim) where it lies.
template <class View = gqa::ConstTensorView>
View view_of(const at::Tensor& tensor, const char* name, int64_t b) {
  auto* const data = static_cast<std::byte*>(tensor.data_ptr()) + b * tensor.stride(0) * tensor.element_size();
  return View(data, element_type(tensor, name), tensor.size(2), tensor.size(1), tensor.size(3),
              gqa::TensorStrides{tensor.stride(2), tensor.stride(1), tensor.stride(3)});
}

/// PyTorch's own threads. In one of its parallel regions already: the calling thread alone, so that no pool is nested in another.
struct TorchExecutor {
  Index concurrency() const { return at::in_parallel_region() ? 1 : at::get_num_threads(); }
  void parallel_for(Index count, const gqa::TaskRef& work) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) work(task);
    });
  }
};

/// An operator's options besides q, k and v.
struct Settings {
  OptionalTensor mask;   ///< (batch or 1, heads or 1, n_q or 1, n_kv), boolean (true: seen) or added to scores
  bool causal = false;   ///< the queries are the last n_q positions
  Index window = 0;      ///< positions that a query sees, its own among them; 0: all
  double soft_cap = 0;   ///< 0: none
  OptionalTensor sinks;  ///< (heads): a logit each that takes its share of the weights
  std::optional<double> scale;
  OptionalTensor starts;   ///< (batch), int64: the first token of each sequence; those before it are padding
  OptionalTensor lengths;  ///< (batch), int64: where each sequence ends

  /// @throws ArgumentError unless the options fit such a call
  void check(int64_t batch, int64_t heads, int64_t n_q, int64_t n_kv) const {
    if (window < 0) fail("window", std::to_string(window), "0 (none), or 1 or more positions");
    if (window > 0 && !causal) fail("window", std::to_string(window), "causal=True with it");
    if (!(soft_cap >= 0)) fail("soft_cap", std::to_string(soft_cap), "0 (none), or more");
    if (sinks) {
      check_tensor(*sinks, "sinks", 1);
      expect_size(*sinks, "sinks", 0, heads, "q.size(1)");
    }
    check_numbers(starts, "starts", batch);
    check_numbers(lengths, "lengths", batch);
    if (!mask) return;
    check_tensor(*mask, "mask", 4, "(batch or 1, heads or 1, n_q or 1, n_kv)");
    const int64_t sizes[] = {batch, heads, n_q};
    const char* const names[] = {"1, or q.size(0)", "1, or q.size(1)", "1, or q.size(2)"};
    for (int64_t dim = 0; dim < 3; ++dim)
      if (mask->size(dim) != 1) expect_size(*mask, "mask", dim, sizes[dim], names[dim]);
    expect_size(*mask, "mask", 3, n_kv, "the tokens of keys");
    if (starts) fail("starts", "given with a mask", "one of the two");
  }
  Index start_of(int64_t b) const { return starts ? starts->data_ptr<int64_t>()[b] : 0; }
  Index end_of(int64_t b, Index n_kv) const { return lengths ? lengths->data_ptr<int64_t>()[b] : n_kv; }
  gqa::Options options(TorchExecutor& executor) const {
    gqa::Options options;
    if (scale) options.scale = static_cast<float>(*scale);
    options.executor = executor;
    return options;
  }

 private:
  static void check_numbers(const OptionalTensor& numbers, const char* name, int64_t batch) {
    if (!numbers) return;
    check_tensor(*numbers, name, 1);
    if (numbers->scalar_type() != at::kLong)
      fail(std::string(name) + ".dtype", c10::toString(numbers->scalar_type()), "int64");
    expect_size(*numbers, name, 0, batch, "q.size(0)");
    if (!numbers->is_contiguous()) fail(name, "not contiguous", "a contiguous tensor");
  }
};

/// What can be told at run time without another type: the range that a query sees, and its sink.
struct Visible {
  bool causal;
  Index window;
  const float* sinks;         ///< null: none
  const int64_t* first_seen;  ///< of each sequence; null: 0
  Index first_held = 0;       ///< what is before is not there any more

  GQA_ALWAYS_INLINE gqa::PositionRange visible_range(const gqa::QueryContext& query, Index n_kv) const {
    gqa::PositionRange range = !causal      ? gqa::Full{}.visible_range(query.position, n_kv)
                               : window > 0 ? gqa::CausalWindow{window}.visible_range(query.position, n_kv)
                                            : gqa::Causal{}.visible_range(query.position, n_kv);
    if (first_seen != nullptr && range.begin < first_seen[query.sequence]) range.begin = first_seen[query.sequence];
    if (range.begin < first_held) range.begin = first_held;
    return range;
  }
  GQA_ALWAYS_INLINE float sink(const gqa::RowContext& row) const {
    return sinks == nullptr ? -std::numeric_limits<float>::infinity() : sinks[row.query_head];
  }
};

template <class T>
gqa::BroadcastView<T> broadcast(const at::Tensor& mask) {
  return {static_cast<const T*>(mask.data_ptr()),
          mask.size(0),
          mask.size(1),
          mask.size(2),
          mask.size(3),
          {mask.stride(0), mask.stride(1), mask.stride(2), mask.stride(3)}};
}

/// Calls call(variant) with the one type of variant that the options ask for.
template <class Call>
void with_variant(const Settings& settings, const Visible& visible, const Call& call) {
  const gqa::SoftCap cap{static_cast<float>(settings.soft_cap)};
  const auto capped = [&](const auto& part) {
    if (settings.soft_cap > 0) call(gqa::compose(visible, cap, part));
    else call(gqa::compose(visible, part));
  };
  if (!settings.mask && settings.soft_cap > 0) return call(gqa::compose(visible, cap));
  if (!settings.mask) return call(visible);
  switch (settings.mask->scalar_type()) {
    case at::kBool: return capped(gqa::BooleanMask{broadcast<bool>(*settings.mask)});
    case at::kFloat: return capped(gqa::AdditiveBias{broadcast<float>(*settings.mask)});
    case at::kBFloat16: return capped(gqa::AdditiveBias{broadcast<gqa::bf16>(*settings.mask)});
    case at::kHalf: return capped(gqa::AdditiveBias{broadcast<gqa::f16>(*settings.mask)});
    default: fail("mask.dtype", c10::toString(settings.mask->scalar_type()), "bool, float32, bfloat16 or float16");
  }
}

}  // namespace gqa_torch
