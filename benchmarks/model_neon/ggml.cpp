// SPDX-License-Identifier: Apache-2.0
// The same decode step by ggml's flash attention, for count_neon.py: one KV head, 4 query heads, D = 128, one thread.
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#ifndef GQA_COUNTED_GGML
#define GQA_COUNTED_GGML GGML_TYPE_F32
#endif

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  const int tokens = std::atoi(argv[1]);
  const int calls = std::atoi(argv[2]);
  constexpr int group = 4;
  constexpr int dim = 128;
  ggml_init_params params = {std::size_t{64} << 20, nullptr, false};
  ggml_context* const context = ggml_init(params);
  ggml_tensor* const q = ggml_new_tensor_4d(context, GGML_TYPE_F32, dim, 1, group, 1);
  ggml_tensor* const k = ggml_new_tensor_4d(context, GQA_COUNTED_GGML, dim, tokens, 1, 1);
  ggml_tensor* const v = ggml_new_tensor_4d(context, GQA_COUNTED_GGML, dim, tokens, 1, 1);
  ggml_set_f32(q, 0.01f);
  // Contexts are zeroed pages: keys and values are zeros of whatever type.
  ggml_tensor* const out =
      ggml_flash_attn_ext(context, q, k, v, nullptr, 1.0f / std::sqrt(static_cast<float>(dim)), 0.0f, 0.0f);
  ggml_cgraph* const graph = ggml_new_graph(context);
  ggml_build_forward_expand(graph, out);
  ggml_cplan plan = ggml_graph_plan(graph, 1, nullptr);
  std::vector<unsigned char> work(plan.work_size + 1);
  plan.work_data = work.data();
  for (int i = 0; i < calls; ++i) ggml_graph_compute(graph, &plan);
  std::printf("%g\n", static_cast<double>(*static_cast<const float*>(out->data)));
  ggml_free(context);
  return 0;
}
