// SPDX-License-Identifier: Apache-2.0
/// @file
/// The spectrum from multi-head over grouped-query to multi-query attention on the shapes of real models: what each costs in
/// memory, what it gains in a decode step, how near it comes to the machine's limits, and that it computes the same.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "model_run.hpp"

namespace spectrum {
namespace {

using gqa::bench::MachineLimits;

/// One line on the terminal that is overwritten; elsewhere, a line each.
class Progress {
 public:
  void say(const std::string& text) {
    if (terminal_) std::fprintf(stderr, "\r\033[K%s", text.c_str());
    else std::fprintf(stderr, "%s\n", text.c_str());
    std::fflush(stderr);
  }
  void clear() const {
    if (terminal_) std::fprintf(stderr, "\r\033[K");
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) != 0;
};

std::string in_bytes(double bytes) {
  constexpr const char* units[] = {"B", "KiB", "MiB", "GiB"};
  int unit = 0;
  for (; bytes >= 1024 && unit < 3; ++unit) bytes /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, bytes < 10 && unit > 0 ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
  return text;
}

void print_header(const Settings& settings) {
  std::printf(
      "A decode step is one new token over %td cached ones, in one layer, its cache read from memory. \"of read\" is "
      "the share\n"
      "of the bandwidth at which this machine reads memory, \"of peak\" the share of its %s peak, both measured\n"
      "in turn with the calls. Times are medians%s. The model's own heads are starred.\n"
      "Inputs are seeded, and shaped as trained models' are: outlier channels, dominant directions, attention sinks at "
      "the\n"
      "first tokens. Errors are absolute, against the definition in double precision, for values of unit "
      "variance.\n%s\n",
      settings.context,
      gqa::bench::limit_name(gqa::bench::peak_of_call(settings.path, settings.query_type(), settings.kv_type)),
      gqa::bench::sample_processor_time() ? " of processor time" : "",
      settings.quantised()
          ? "\"Largest error\" is over what the cache's rows stand for, \"error from values\", of the decode step, "
            "over "
            "keys\nand values as they were before they were stored. \"Bytes\" and \"time\" are beside a bf16 cache, "
            "timed in turn.\n"
          : "");
  std::printf("%-11s %-7s %9s %10s %10s | %10s %8s %8s %8s | %8s %9s %8s | %9s %9s", "", "", "KV bytes", "KV cache",
              "all", "decode", "against", "KV", "of", "prefill", "", "of", "largest", "grouped =");
  if (settings.quantised()) std::printf(" | %7s %7s %12s", "bytes", "time", "error from");
  std::printf("\n%-11s %-7s %9s %10s %10s | %10s %8s %8s %8s | %8s %9s %8s | %9s %9s", "model", "heads", "per token",
              "of a layer", "layers", "step", "MHA", "GB/s", "read", "tokens", "GFLOP/s", "peak", "error", "repeated");
  if (settings.quantised()) std::printf(" | %7s %7s %12s", "of bf16", "of bf16", "values");
  std::printf("\n");
}

void print_rows(const Model& model, const Settings& settings, const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    const double cache = static_cast<double>(row.bytes_per_token * settings.context);
    std::printf("%-11s %-7s %9td %10s %10s | %7.3f ms %7.1fx %8.1f %7.0f%% | %8td %9.1f %7.0f%% | %9.1e %9s",
                &row == &rows.front() ? model.name.c_str() : "", heads_name(model, row.kv_heads).c_str(),
                row.bytes_per_token, in_bytes(cache).c_str(),
                in_bytes(cache * static_cast<double>(model.layers)).c_str(), row.decode_seconds * 1e3,
                rows.front().decode_seconds / row.decode_seconds, row.kv_rate / 1e9, 100 * row.kv_rate / row.read_rate,
                row.prefill_tokens, row.prefill_rate / 1e9, 100 * row.prefill_rate / row.peak_rate, row.max_error,
                row.bit_equal ? "bit equal" : "DIFFERS");
    if (settings.quantised())
      std::printf(" | %6.2fx %6.2fx %12.1e",
                  static_cast<double>(row.bytes_per_token) / static_cast<double>(row.bf16_bytes_per_token),
                  row.decode_seconds / row.bf16_decode_seconds, row.max_error_of_values);
    std::printf("\n");
  }
  std::fflush(stdout);
}

nlohmann::ordered_json as_json(const Model& model, const Settings& settings, const Row& row) {
  nlohmann::ordered_json json{{"model", model.name},
                              {"query_heads", model.query_heads},
                              {"kv_heads", row.kv_heads},
                              {"head_dim", model.head_dim},
                              {"kv_type", gqa::detail::codec_name(settings.kv_type).c_str()},
                              {"context", settings.context},
                              {"threads", settings.threads},
                              {"kv_bytes_per_token", row.bytes_per_token},
                              {"decode_ms", row.decode_seconds * 1e3},
                              {"kv_bytes_per_s", row.kv_rate},
                              {"read_bandwidth_bytes_per_s", row.read_rate},
                              {"prefill_flops_per_s", row.prefill_rate},
                              {"peak_flops_per_s", row.peak_rate},
                              {"max_error", row.max_error},
                              {"bit_equal", row.bit_equal}};
  if (settings.quantised()) {
    json["bf16_kv_bytes_per_token"] = row.bf16_bytes_per_token;
    json["bf16_decode_ms"] = row.bf16_decode_seconds * 1e3;
    json["max_error_of_values"] = row.max_error_of_values;
  }
  return json;
}

/// Room for what a model needs at once, or a sentence that says how much is missing.
void check_memory(const std::vector<Model>& chosen, const Settings& settings) {
  std::vector<Settings> kept{settings};
  if (settings.quantised()) {
    kept.push_back(settings);
    kept.back().kv_type = gqa::ElementType::bf16;
  }
  double most = 0;
  for (const Model& model : chosen) {
    double needed = 0;
    for (const Settings& each : kept) {
      const double mha =
          2.0 * static_cast<double>(Layer::head_bytes(model, each)) * static_cast<double>(model.query_heads);
      needed += 2 * mha;
      for (const Index kv_heads : kv_head_counts(model)) {
        const double cache = mha * static_cast<double>(kv_heads) / static_cast<double>(model.query_heads);
        needed += std::max(cache, static_cast<double>(gqa::bench::out_of_cache_bytes()) + cache);
      }
    }
    most = std::max(most, needed);
  }
  const auto available = static_cast<double>(gqa::bench::available_memory());
  if (available > 0 && most > 0.9 * available)
    throw std::runtime_error("this takes " + in_bytes(most) + " of memory and " + in_bytes(available) +
                             " are free: choose a shorter --context");
}

/// The caches' types by the names that they have on the command line.
const std::map<std::string, gqa::KvEncoding>& kv_types() {
  static const std::map<std::string, gqa::KvEncoding> types{{"bf16", gqa::ElementType::bf16},
                                                            {"f16", gqa::ElementType::f16},
                                                            {"f32", gqa::ElementType::f32},
                                                            {"i8", gqa::Int8{}},
                                                            {"i4", gqa::Int4{}},
                                                            {"q8_0", gqa::Q8_0{}},
                                                            {"q4_0", gqa::Q4_0{}}};
  return types;
}

int run(int argc, char** argv) {
  CLI::App app("The spectrum from MHA over GQA to MQA on real model shapes: memory, speed, exactness");
  Settings settings;
  std::vector<std::string> names, allowed{"all"};
  for (const Model& model : models()) allowed.push_back(model.name);
  std::string type = "bf16", path, json_file;
  app.add_option("--model", names, "Model; may be given several times (default: all)")
      ->check(CLI::IsMember(allowed, CLI::ignore_case));
  app.add_option("--context", settings.context, "Tokens in the cache")
      ->check(CLI::Range(Index{1}, Index{1} << 24))
      ->capture_default_str();
  app.add_option("--prefill", settings.prefill, "Tokens to prefill (default: up to 2048, as time allows)")
      ->check(CLI::Range(Index{1}, Index{1} << 24));
  app.add_option("--kv-type", type,
                 "How keys and values are stored: as elements, which queries are then too, or quantised, beside a bf16 "
                 "cache and with bf16 queries")
      ->check(CLI::IsMember({"bf16", "f16", "f32", "i8", "i4", "q8_0", "q4_0"}))
      ->capture_default_str();
  app.add_option("--threads", settings.threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--path", path, "Instruction set (default: the best that can run)")
      ->check(CLI::IsMember({"portable", "avx2", "avx512", "avx512bf16", "amx"}));
  app.add_flag("--processor-time", gqa::bench::sample_processor_time(),
               "Count the thread's processor time, for a machine that others use meanwhile (one thread)");
  app.add_option("--json", json_file, "Also write the results to this file");
  CLI11_PARSE(app, argc, argv);

  settings.kv_type = kv_types().at(type);
  settings.path = gqa::active_path().path;
  if (!path.empty())
    for (const gqa::Path each :
         {gqa::Path::portable, gqa::Path::avx2, gqa::Path::avx512, gqa::Path::avx512bf16, gqa::Path::amx})
      if (path == gqa::path_name(each)) settings.path = each;
  if (!gqa::path_available(settings.path)) throw std::runtime_error("this machine cannot run the path " + path);

  if (gqa::bench::sample_processor_time() && settings.threads > 1)
    throw std::runtime_error("--processor-time is that of one thread: leave out --threads");

  std::vector<Model> chosen;
  for (const Model& model : models()) {
    const auto names_it = [&](const std::string& name) {
      return name == "all" || CLI::detail::to_lower(name) == CLI::detail::to_lower(model.name);
    };
    if (names.empty() || std::any_of(names.begin(), names.end(), names_it)) chosen.push_back(model);
  }
  check_memory(chosen, settings);
  std::ofstream file;
  if (!json_file.empty()) {
    file.open(json_file);
    if (!file) throw std::runtime_error("cannot write " + json_file);
  }

  const std::string machine = gqa::bench::machine_name();
  std::printf("%s; path %s; KV cache %s; %d thread%s\n\n", machine.c_str(), gqa::path_name(settings.path), type.c_str(),
              settings.threads, settings.threads == 1 ? "" : "s");
  print_header(settings);

  ThreadTeam team(settings.threads), checkers(gqa::bench::usable_processors());
  MachineLimits limits(team);
  Progress progress;
  nlohmann::ordered_json json{
      {"machine", machine}, {"path", gqa::path_name(settings.path)}, {"rows", nlohmann::ordered_json::array()}};
  bool all_equal = true;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const std::string label =
        "[" + std::to_string(i + 1) + "/" + std::to_string(chosen.size()) + "] " + chosen[i].name + ": ";
    ModelRun measure(chosen[i], settings, team, checkers, limits);
    const std::vector<Row> rows = measure([&](const char* what) { progress.say(label + what); });
    progress.clear();
    print_rows(chosen[i], settings, rows);
    for (const Row& row : rows) {
      json["rows"].push_back(as_json(chosen[i], settings, row));
      all_equal = all_equal && row.bit_equal;
    }
  }
  if (file.is_open()) {
    file << json.dump(2) << "\n";
    if (!file.flush()) throw std::runtime_error("cannot write " + json_file);
  }
  if (!all_equal) std::fprintf(stderr, "grouped and repeated heads gave different results\n");
  return all_equal ? 0 : 1;
}

}  // namespace
}  // namespace spectrum

int main(int argc, char** argv) {
  try {
    return spectrum::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "spectrum: %s\n", error.what());
    return 2;
  }
}
