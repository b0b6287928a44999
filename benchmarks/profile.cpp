// SPDX-License-Identifier: Apache-2.0
/// @file
/// Where a call's time goes, stage by stage, and how much of it is waiting for memory. A call is made again and again while a timer
/// interrupts it; where the interruptions found the processor says which functions were running, and kernels are functions of
/// their own. Linux on x86-64 and AArch64, one thread.
///
/// Each call is made in two ways, in turns of a twentieth of a second, so that a disturbance hits both:
///
///   cold       over a KV cache that comes from memory every time, as in decode_bench
///   resident   as many tokens and heads, cut and walked in the same way, but every key and value lies in the second-level cache: the
///              page table names one page again and again, and each head's rows start one row behind those of the head before
///
/// A stage's time is its share of the samples times the processor time of a call. Its waiting is its cold time less its resident
/// time. Everything is printed in percent of the cold call.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "caches.hpp"
#include "gqa/gqa.hpp"
#include "sampler.hpp"

namespace gqa::bench {
namespace {

enum Stage { scores, variant, softmax, accumulate, packing, states, planning, other, kStages };
constexpr const char* stage_names[kStages] = {"scores",  "variant", "softmax",  "accumulate",
                                              "packing", "states",  "planning", "other"};

/// The last columns: the whole call's waiting, and the part of it in the two stages that read keys and values.
constexpr const char* waiting_names[] = {"waiting", "in scores", "in accumulate"};

int column_width(const std::string& name) { return std::max(5, static_cast<int>(name.size())); }
void print_header() {
  std::string names = "| call             | type |     ms |", rule = "|------------------|------|-------:|";
  const auto add = [&](const std::string& name) {
    const auto width = static_cast<std::size_t>(column_width(name));
    names += " " + std::string(width - name.size(), ' ') + name + " |";
    rule += std::string(width + 1, '-') + ":|";
  };
  for (const char* const name : stage_names) add(name);
  for (const char* const name : waiting_names) add(name);
  std::printf("%s\n%s\n", names.c_str(), rule.c_str());
}

/// The stage of a function, by its demangled name: that of the first pattern found in it.
Stage stage_of(const std::string& function) {
  static const std::pair<std::regex, Stage> rules[] = {
      {std::regex("::Task::"), planning},  // before the kernels that its members are called like
      {std::regex("::(user_score|transform|variant_ref)<"), variant},
      {std::regex("::(score|lane_sums)"), scores},
      {std::regex("::softmax\\("), softmax},
      {std::regex("::(output_|accumulate|stage_values|prepare_weights|nonfinite)"), accumulate},
      {std::regex("::(pack|transpose_panel)"), packing},
      {std::regex("::(begin|merge|store)"), states},
      {std::regex("gqa::detail::"), planning}};  // checks, plans, addresses, masks
  for (const auto& [pattern, stage] : rules)
    if (std::regex_search(function, pattern)) return stage;
  return other;
}

/// Attention with linear biases, as a user would write it.
struct Alibi : Causal {
  float score(float score, Index query_position, Index key_position, Index query_head) const {
    return score - 0.01f * static_cast<float>((query_head + 1) * (query_position - key_position));
  }
};

struct CallShape {
  std::string name;
  CacheShape cache;
  Index query_tokens = 1;
  bool alibi = false;
};

/// A view of a shape's cache that fits in half of the second-level cache, with its memory.
class ResidentCache {
 public:
  explicit ResidentCache(const CacheShape& shape) {
    const ElementType type = shape.query_type();
    const Index row = shape.head_dim * element_bytes(type);
    const auto half = static_cast<Index>(cache_sizes().l2 / 2);
    // Whole blocks, and pages long enough to be walked as contiguous memory is: 32 KiB.
    const Index page = std::max(half / (2 * row) / 64 * 64, (Index{32} << 10) / row);
    pages_.assign(static_cast<std::size_t>(shape.tokens / page + 1), 0);
    const Index rows = page + shape.kv_heads - 1;
    const std::vector<std::byte> elements = normal_elements(type, static_cast<std::size_t>(2 * rows * shape.head_dim));
    memory_ = HugeBuffer(elements.size());  // rows on cache lines, as in the cold cache
    std::copy(elements.begin(), elements.end(), memory_.data());
    view_ = view_of(shape, {memory_.data(), nullptr}, pages_);
    view_.v = memory_.data() + rows * row;
    view_.storage = Storage::paged;
    view_.page_size = page;
    view_.pool_pages = 1;
    view_.page_table = pages_.data();
    view_.page_table_size = static_cast<Index>(pages_.size());
    view_.k_strides = view_.v_strides = {.token = shape.head_dim, .head = shape.head_dim, .page = 0};
  }
  const KvCacheView& view() const { return view_; }

 private:
  std::vector<std::int32_t> pages_;
  HugeBuffer memory_;
  KvCacheView view_;
};

/// Samples and processor time of one side.
struct Side {
  std::vector<std::uintptr_t> at = std::vector<std::uintptr_t>(1 << 20);  // touched here, not in the handler
  std::size_t count = 0;
  double seconds = 0;
  double calls = 0;
  double per_call() const { return seconds / calls; }

  /// Calls for a twentieth of a second, at least once, after one that is not sampled.
  template <class Call>
  void run(const Call& call) {
    call();
    const double start = sample_clock(), end = now() + 0.05;
    samples() = {at.data(), count, at.size()};
    std::atomic_signal_fence(std::memory_order_seq_cst);
    do call(), ++calls;
    while (now() < end);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    count = samples().count;
    samples().to = nullptr;
    seconds += sample_clock() - start;
  }

  /// Seconds of a call that each stage takes; adds to the samples of each function.
  std::array<double, kStages> stages(const Functions& functions,
                                     std::map<std::string, std::size_t>& by_function) const {
    std::array<double, kStages> result{};
    for (std::size_t i = 0; i < count; ++i) {
      const std::string name = functions.name(at[i]);
      result[stage_of(name)] += per_call() / static_cast<double>(count);
      ++by_function[name.empty() ? "(a library)" : name];
    }
    return result;
  }
};

struct Settings {
  std::string shape, type, path;
  double seconds = 2;
  std::size_t list = 0;
};

void profile(const CallShape& shape, const Functions& functions, const Settings& settings, const Options& options) {
  const ElementType type = shape.cache.query_type();
  const std::vector<std::byte> query = normal_elements(
      type, static_cast<std::size_t>(shape.query_tokens * shape.cache.query_heads * shape.cache.head_dim), 2);
  std::vector<float> out(query.size() / static_cast<std::size_t>(element_bytes(type)));
  ConstTensorView q;
  q.data = query.data();
  q.type = type;
  q.tokens = shape.query_tokens;
  q.heads = shape.cache.query_heads;
  q.dim = shape.cache.head_dim;
  q.strides = {q.heads * q.dim, q.dim, 1};
  const TensorView to(out.data(), q.tokens, q.heads, q.dim);
  DynamicAttention attention;
  const auto call = [&](const KvCacheView& kv) {
    if (shape.alibi) attention(q, kv, to, Alibi{}, options);
    else attention(q, kv, to, options);
  };

  CacheRotation rotation(shape.cache, true);
  const ResidentCache in_cache(shape.cache);
  Side cold, resident;
  while (cold.seconds < settings.seconds) {
    cold.run([&] { call(rotation.next()); });
    resident.run([&] { call(in_cache.view()); });
  }

  std::map<std::string, std::size_t> by_function, ignored;
  const auto from_memory = cold.stages(functions, by_function), from_cache = resident.stages(functions, ignored);
  const double whole = cold.per_call();
  std::printf("| %-16s | %-4s | %6.2f |", shape.name.c_str(), element_name(type), 1e3 * whole);
  const auto print = [&](const char* name, double seconds) {
    std::printf(" %*.1f |", column_width(name), 100 * seconds / whole);
  };
  for (std::size_t i = 0; i < kStages; ++i) print(stage_names[i], from_memory[i]);
  print(waiting_names[0], whole - resident.per_call());
  print(waiting_names[1], from_memory[scores] - from_cache[scores]);
  print(waiting_names[2], from_memory[accumulate] - from_cache[accumulate]);
  std::printf("\n");
  std::vector<std::pair<std::size_t, std::string>> most;
  for (const auto& [name, count] : by_function) most.emplace_back(count, name);
  std::sort(most.rbegin(), most.rend());
  for (std::size_t i = 0; i < std::min(settings.list, most.size()); ++i)
    std::printf("    %5.1f%%  %-11s  %s\n", 100 * static_cast<double>(most[i].first) / static_cast<double>(cold.count),
                stage_names[stage_of(most[i].second)], most[i].second.c_str());
  std::fflush(stdout);
}

}  // namespace
}  // namespace gqa::bench

int main(int argc, char** argv) {
  using namespace gqa::bench;
  Settings settings;
  CLI::App app("Where a call's time goes: shares of its stages, and of waiting for memory, in percent");
  app.add_option("--shape", settings.shape, "only shapes with this in their name: decode, mqa_32_1, prefill, …");
  app.add_option("--type", settings.type, "only this element type")->check(CLI::IsMember({"bf16", "f32", "f16"}));
  app.add_option("--path", settings.path, "instruction set; default: the best that the machine has")
      ->check(CLI::IsMember({"portable", "avx2", "avx512", "avx512bf16", "amx"}));
  app.add_option("--seconds", settings.seconds, "how long each call is sampled, over either cache")
      ->check(CLI::PositiveNumber);
  app.add_option("--functions", settings.list, "list so many functions under each call");
  CLI11_PARSE(app, argc, argv);
  try {
    gqa::Options options;
    for (const gqa::Path path :
         {gqa::Path::portable, gqa::Path::avx2, gqa::Path::avx512, gqa::Path::avx512bf16, gqa::Path::amx})
      if (settings.path == gqa::path_name(path)) options.path = path;
    sample_processor_time() = true;
    const Functions functions;
    start_timer();
    std::printf("%s, %s\n\n", machine_name().c_str(), gqa::path_name(options.path.value_or(gqa::active_path().path)));
    print_header();
    for (const gqa::ElementType type : {gqa::ElementType::bf16, gqa::ElementType::f32, gqa::ElementType::f16}) {
      if (settings.type.empty() ? type == gqa::ElementType::f16 : settings.type != gqa::element_name(type)) continue;
      for (CallShape shape : {CallShape{"decode_mha_32_32", {.kv_heads = 32}},
                              {"decode_gqa_32_8", {}},
                              {"decode_mqa_32_1", {.kv_heads = 1}},
                              {"verify_4", {}, 4},
                              {"prefill", {.tokens = 1024}, 1024},
                              {"decode_alibi", {}, 1, true}}) {
        shape.cache.type = type;
        if (shape.name.find(settings.shape) != std::string::npos) profile(shape, functions, settings, options);
      }
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "profile_stages: %s\n", error.what());
    return 1;
  }
}
