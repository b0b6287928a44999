// SPDX-License-Identifier: Apache-2.0
// A call whose workers' moves a test makes one by one.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "executors.hpp"
#include "gqa/attention.hpp"
#include "paths.hpp"

namespace gqa::test {

/// A call that is checked and planned for two workers, and shared out among them, with a scale of 1/4. The tensors are the caller's.
class SteppedCall {
 public:
  template <class V>
  SteppedCall(std::span<const Sequence> batch, const V& variant, Path path) {
    options_.path = path;
    options_.products = usual_products();
    options_.executor = executor_;
    const detail::FunctorRef functor{
        {}, AnyCache::types, &detail::kernels_for<AnyCache::types, detail::kOtherDim, detail::kOtherDim>};
    detail::check_call(batch, functor, detail::variant_ref(variant), options_, call_);
    call_.scale = kScale;
    const detail::ScratchSizes sizes = detail::plan_batch(call_, options_);
    memory_.assign(detail::total_scratch(sizes), std::byte{0xff});  // numbers in it are NaN
    void* aligned = memory_.data();
    std::size_t room = memory_.size();
    std::align(detail::kScratchAlignment, 1, aligned, room);
    detail::Carver carver(static_cast<std::byte*>(aligned));
    detail::carve_call(carver, sizes, call_);
    detail::plan_batch(call_, options_);
    call_.status = &status_;
    detail::share_out(call_);
  }
  SteppedCall(const SteppedCall&) = delete;
  SteppedCall& operator=(const SteppedCall&) = delete;

  static constexpr float kScale = 0.25f;

  detail::CallPlan& call() { return call_; }
  /// A worker's tasks of a sequence.
  detail::SequenceTasks tasks(Index worker, std::size_t sequence) const {
    return {call_, call_.batch[sequence], call_.sequences[sequence],
            call_.slots + static_cast<std::size_t>(worker) * call_.slot_bytes};
  }

 private:
  CountingExecutor executor_{0, 0, 2};
  Options options_;
  detail::CallPlan call_{};
  detail::CallStatus status_{};
  std::vector<std::byte> memory_;
};

}  // namespace gqa::test
