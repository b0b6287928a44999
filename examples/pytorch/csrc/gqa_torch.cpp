// SPDX-License-Identifier: Apache-2.0
/// @file
/// torch.ops.gqa.attention and its gradients: attention over CPU tensors where they lie, whatever their strides.
///
/// q is (batch, query heads, n_q, D), k and v are (batch, KV heads, n_kv, D or Dv), as PyTorch's scaled_dot_product_attention has them.
/// Outputs are laid out (batch, n_q, query heads, Dv) and returned transposed, which is what a model's output projection reads.

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>
#include <torch/torch.h>

#include "call.hpp"
#include "gqa/backward.hpp"

namespace gqa_torch {
namespace {

using at::Tensor;

/// The options in the order of the operators' schemas.
#define GQA_TORCH_SETTINGS                                                                               \
  const OptionalTensor &mask, bool causal, int64_t window, double soft_cap, const OptionalTensor &sinks, \
      std::optional<double> scale, const OptionalTensor &starts, const OptionalTensor &lengths
#define GQA_TORCH_SETTINGS_GIVEN mask, causal, window, soft_cap, sinks, scale, starts, lengths
constexpr const char* kSettings =
    "Tensor? mask=None, bool causal=False, int window=0, float soft_cap=0.0, Tensor? sinks=None, float? scale=None, "
    "Tensor? starts=None, Tensor? lengths=None)";

/// A call of the library over q, k and v: one sequence for each row of the batch, at the tensors' own addresses.
struct Call {
  Settings settings;
  Tensor sinks;  // f32
  std::vector<gqa::Sequence> batch;

  Call(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse, Settings given)
      : settings(std::move(given)) {
    const Index n_q = q.size(2), n_kv = k.size(2);
    if (settings.sinks) sinks = settings.sinks->to(at::kFloat).contiguous();
    for (int64_t b = 0; b < q.size(0); ++b) {
      const Index start = settings.start_of(b), end = settings.end_of(b, n_kv);
      if (start < 0 || start > n_kv)
        fail("starts[" + std::to_string(b) + "]", std::to_string(start), "0 to k.size(2) = " + std::to_string(n_kv));
      if (end < start || end > n_kv)
        fail("lengths[" + std::to_string(b) + "]", std::to_string(end),
             "the sequence's start to k.size(2), " + std::to_string(start) + " to " + std::to_string(n_kv));
      // Position 0 is the sequence's first token, not padding: its results are the bits of the sequence alone. The queries are the last
      // positions; those in the padding have negative ones and, if causal, see nothing.
      const auto kv = gqa::KvCacheView::contiguous(view_of(k, "k", b).slice(start, end - start),
                                                   view_of(v, "v", b).slice(start, end - start));
      const Index rows = n_q * q.size(1);
      batch.push_back({view_of(q, "q", b),
                       kv,
                       view_of<gqa::TensorView>(out, "out", b),
                       {},
                       {lse.data_ptr<float>() + b * rows, static_cast<std::size_t>(rows)}});
    }
  }
  template <class Work>
  void run(const Work& work) const {
    with_variant(settings,
                 {settings.causal, settings.window, sinks.defined() ? sinks.data_ptr<float>() : nullptr, nullptr},
                 work);
  }
};

/// @throws ArgumentError unless q, k and v are a batch of one shape; what else is wrong the library's call finds
void check_inputs(const Tensor& q, const Tensor& k, const Tensor& v, const Settings& settings) {
  check_tensor(q, "q", 4);
  check_rows(k, "k");
  check_rows(v, "v");
  expect_size(k, "k", 0, q.size(0), "q.size(0)");
  expect_size(v, "v", 0, q.size(0), "q.size(0)");
  expect_size(v, "v", 2, k.size(2), "k.size(2)");
  settings.check(q.size(0), q.size(1), q.size(2), k.size(2));
}

/// → output (batch, Hq, n_q, Dv) of q's type, log-sum-exp (batch, n_q, Hq) in f32.
std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, GQA_TORCH_SETTINGS) {
  return with_python_errors([&] {
    static const gqa::DynamicAttention attention;
    const Settings settings{GQA_TORCH_SETTINGS_GIVEN};
    check_inputs(q, k, v, settings);
    const Tensor out = at::empty({q.size(0), q.size(2), q.size(1), v.size(3)}, q.options()).transpose(1, 2);
    const Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat));
    const Call call(q, k, v, out, lse, settings);
    TorchExecutor executor;
    call.run([&](const auto& variant) { attention(call.batch, variant, settings.options(executor)); });
    return std::make_tuple(out, lse);
  });
}

/// → the gradients by q, k, v, an additive mask and sinks, those that are wanted; tensors without elements for the others.
std::vector<Tensor> backward(const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                             const Tensor& lse, std::array<bool, 5> wanted, GQA_TORCH_SETTINGS) {
  return with_python_errors([&] {
    static const gqa::DynamicAttentionBackward attention;
    const Settings settings{GQA_TORCH_SETTINGS_GIVEN};
    check_inputs(q, k, v, settings);
    const auto f32 = q.options().dtype(at::kFloat);
    // f32, (batch, tokens, heads, dim); tokens that a shorter sequence does not have stay zero.
    const auto like = [&](const Tensor& x, bool is_wanted) {
      return is_wanted ? at::zeros({x.size(0), x.size(2), x.size(1), x.size(3)}, f32).transpose(1, 2)
                       : at::empty({0}, f32);
    };
    const Tensor d_q = like(q, wanted[0]), d_k = like(k, wanted[1]), d_v = like(v, wanted[2]);
    const Tensor d_mask = wanted[3] ? at::zeros(mask->sizes(), f32) : at::empty({0}, f32);
    const Tensor d_sink = wanted[4] ? at::empty_like(lse) : at::empty({0}, f32);

    const Call call(q, k, v, out, lse, settings);
    std::vector<gqa::SequenceGradients> gradients;
    for (int64_t b = 0; b < q.size(0); ++b) {
      gqa::SequenceGradients row{.d_out = view_of(d_out, "d_out", b)};
      const Index start = settings.start_of(b), tokens = call.batch[static_cast<std::size_t>(b)].kv.length;
      if (wanted[0]) row.d_q = view_of<gqa::TensorView>(d_q, "d_q", b);
      if (wanted[1]) row.d_k = view_of<gqa::TensorView>(d_k, "d_k", b).slice(start, tokens);
      if (wanted[2]) row.d_v = view_of<gqa::TensorView>(d_v, "d_v", b).slice(start, tokens);
      const Index rows = q.size(2) * q.size(1);
      if (wanted[4]) row.d_sink = {d_sink.data_ptr<float>() + b * rows, static_cast<std::size_t>(rows)};
      gradients.push_back(row);
    }
    TorchExecutor executor;
    gqa::BackwardOptions options;
    static_cast<gqa::Options&>(options) = settings.options(executor);
    gqa::LookupGradient of_mask;
    if (wanted[3]) {  // where the mask is the same for all sequences, heads or queries, a stride of 0 sums over them
      const auto step = [&](int64_t dim) { return mask->size(dim) == 1 ? 0 : d_mask.stride(dim); };
      of_mask = {.data = {d_mask.data_ptr<float>(), static_cast<std::size_t>(d_mask.numel())},
                 .strides = {step(0), step(1), step(2), 1}};
      options.lookups = {&of_mask, 1};
    }
    call.run([&](const auto& variant) { attention(call.batch, gradients, variant, options); });
    return std::vector<Tensor>{d_q.to(q.scalar_type()), d_k.to(k.scalar_type()), d_v.to(v.scalar_type()),
                               wanted[3] ? d_mask.to(mask->scalar_type()) : d_mask,
                               wanted[4] ? d_sink.sum(at::IntArrayRef{0, 1}).to(sinks->scalar_type()) : d_sink};
  });
}

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static std::vector<Tensor> forward(torch::autograd::AutogradContext* context, const Tensor& q, const Tensor& k,
                                     const Tensor& v, GQA_TORCH_SETTINGS) {
    static const auto below = operator_named<decltype(gqa_torch::forward)>("gqa::attention_with_lse");
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [out, lse] = below.call(q, k, v, GQA_TORCH_SETTINGS_GIVEN);
    const auto given = [](const OptionalTensor& tensor) { return tensor.value_or(Tensor()); };
    context->save_for_backward({q, k, v, out, lse, given(mask), given(sinks), given(starts), given(lengths)});
    context->saved_data["causal"] = causal;
    context->saved_data["window"] = window;
    context->saved_data["soft_cap"] = soft_cap;
    context->saved_data["scale"] = scale;
    context->mark_non_differentiable({lse});
    return {out, lse};
  }

  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context, std::vector<Tensor> d_outputs) {
    static const auto op = operator_named<decltype(gqa_torch::backward)>("gqa::attention_backward");
    const auto saved = context->get_saved_variables();
    const auto given = [&](std::size_t i) { return saved[i].defined() ? OptionalTensor(saved[i]) : std::nullopt; };
    // What this pass asks for, which may be less than all that has gradients. Tensors that were given have numbers, in order.
    std::size_t number = 0;
    const auto wants = [&](std::size_t i) { return saved[i].defined() && context->needs_input_grad(number++); };
    const std::array<bool, 5> wanted = {wants(0), wants(1), wants(2), wants(5), wants(6)};
    const auto d = op.call(d_outputs[0], saved[0], saved[1], saved[2], saved[3], saved[4], wanted, given(5),
                           context->saved_data["causal"].toBool(), context->saved_data["window"].toInt(),
                           context->saved_data["soft_cap"].toDouble(), given(6),
                           context->saved_data["scale"].toOptional<double>(), given(7), given(8));
    const auto of = [&](std::size_t i) { return wanted[i] ? d[i] : Tensor(); };
    // In the order of forward's arguments: q, k, v, mask, causal, window, soft_cap, sinks, scale, starts, lengths.
    return {of(0), of(1), of(2), of(3), {}, {}, {}, of(4), {}, {}, {}};
  }
};

std::tuple<Tensor, Tensor> with_autograd(const Tensor& q, const Tensor& k, const Tensor& v, GQA_TORCH_SETTINGS) {
  const auto outputs = Attention::apply(q, k, v, GQA_TORCH_SETTINGS_GIVEN);
  return {outputs[0], outputs[1]};
}

/// The output alone.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, GQA_TORCH_SETTINGS) {
  static const auto op = operator_named<decltype(gqa_torch::forward)>("gqa::attention_with_lse");
  return std::get<0>(op.call(q, k, v, GQA_TORCH_SETTINGS_GIVEN));
}

}  // namespace
}  // namespace gqa_torch

TORCH_LIBRARY_FRAGMENT(gqa, library) {
  const auto define = [&](const std::string& arguments, const char* returns) {
    library.def((arguments + gqa_torch::kSettings + returns).c_str(), {at::Tag::pt2_compliant_tag});
  };
  define("attention(Tensor q, Tensor k, Tensor v, ", " -> Tensor");
  define("attention_with_lse(Tensor q, Tensor k, Tensor v, ", " -> (Tensor, Tensor)");
  define("attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool[5] wanted, ",
         " -> Tensor[]");
}
TORCH_LIBRARY_IMPL(gqa, CompositeImplicitAutograd, library) { library.impl("attention", gqa_torch::attention); }
TORCH_LIBRARY_IMPL(gqa, CPU, library) {
  library.impl("attention_with_lse", gqa_torch::forward);
  library.impl("attention_backward", gqa_torch::backward);
}
TORCH_LIBRARY_IMPL(gqa, Autograd, library) {
  library.impl("attention_with_lse", gqa_torch::with_autograd);
  library.impl("attention_backward", torch::autograd::autogradNotImplementedFallback());
}
