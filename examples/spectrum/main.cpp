// SPDX-License-Identifier: Apache-2.0
/// @file
/// The spectrum from multi-head over grouped-query to multi-query attention on the shapes of real models: what each costs in
/// memory, what it gains in a decode step, how near it comes to the machine's limits, and that it computes the same.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../../benchmarks/measure.hpp"
#include "../../benchmarks/peak_of_call.hpp"
#include "layer.hpp"

namespace spectrum {
namespace {

using gqa::bench::Limit;
using gqa::bench::MachineLimits;
using gqa::bench::Side;
using gqa::bench::TimedCall;

/// What is shown, and written to the JSON file, for one model and number of KV heads.
struct Row {
  Index kv_heads = 0;
  Index bytes_per_token = 0;  ///< of one layer
  double decode_seconds = 0;
  double kv_rate = 0;    ///< bytes per second
  double read_rate = 0;  ///< what the machine reads, bytes per second
  Index prefill_tokens = 0;
  double prefill_rate = 0;  ///< FLOP per second
  double peak_rate = 0;     ///< what the machine multiplies, FLOP per second
  double max_error = 0;
  bool bit_equal = false;
};

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

/// Measures one model with all its head configurations in turn, so that what disturbs the machine disturbs all of them.
class ModelRun {
 public:
  ModelRun(const Model& model, const Settings& settings, ThreadTeam& team, ThreadTeam& checkers, MachineLimits& limits)
      : model_(model),
        settings_(settings),
        team_(team),
        checkers_(checkers),
        limits_(limits),
        inputs_(model.head_dim, 2023) {}

  std::vector<Row> operator()(const std::function<void(const char*)>& progress) {
    progress("making keys and values");
    make_caches();
    progress("decoding");
    decode();
    progress("prefilling");
    prefill();
    progress("comparing with the reference and with repeated KV heads");
    check();
    return rows_;
  }

 private:
  // Kept from one model to the next: pages once touched need not be touched again.
  static HugeBuffer& buffer(std::size_t which) {
    static std::array<HugeBuffer, 5> buffers;
    return buffers[which];
  }
  HugeBuffer& all_heads() { return buffer(0); }
  HugeBuffer& repeated() { return buffer(1); }

  void make_caches() {
    const std::size_t head = Layer::head_bytes(model_, settings_), heads = static_cast<std::size_t>(model_.query_heads);
    if (all_heads().size() < 2 * head * heads) {
      all_heads() = HugeBuffer();
      all_heads() = HugeBuffer(2 * head * heads);
    }
    checkers_.run([&](int member) {
      for (Index h = member; h < model_.query_heads; h += checkers_.size()) {
        std::byte* const place = all_heads().data() + static_cast<std::size_t>(h) * head;
        inputs_.keys(h, settings_.context, settings_.kv_type, place);
        inputs_.values(h, settings_.context, settings_.kv_type, place + heads * head);
      }
    });
    for (const Index kv_heads : kv_head_counts(model_)) {
      layers_.push_back(
          std::make_unique<Layer>(model_, settings_, kv_heads, all_heads(), buffer(2 + layers_.size()), team_));
      decode_rows_.push_back(std::make_unique<Rows>(inputs_, model_, settings_.context - 1, 1, settings_.kv_type));
      Row row;
      row.kv_heads = kv_heads;
      row.bytes_per_token = layers_.back()->bytes_per_token();
      rows_.push_back(row);
    }
  }

  void decode() {
    std::vector<Side> sides{gqa::bench::limit_side(limits_, Limit::memory_read)};
    double slowest = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const TimedCall step([this, i] { layers_[i]->decode(*decode_rows_[i]); });
      slowest = std::max(slowest, step.estimate());
      sides.push_back([step] { return step(); });
    }
    const std::vector<double> medians = gqa::bench::take_turns(sides, 1.5, slowest > 0.1 ? 3 : 9);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      Row& row = rows_[i];
      row.read_rate = medians[0];
      row.decode_seconds = medians[1 + i];
      row.kv_rate = static_cast<double>(row.bytes_per_token * settings_.context) / row.decode_seconds;
    }
  }

  void prefill() {
    const Index tokens = settings_.prefill > 0 ? std::min(settings_.prefill, settings_.context) : affordable_prefill();
    const Limit peak = gqa::bench::peak_of_call(settings_.path, settings_.kv_type, settings_.kv_type);
    std::vector<Side> sides;
    double slowest = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      prefill_rows_.push_back(std::make_unique<Rows>(inputs_, model_, 0, tokens, settings_.kv_type));
      const TimedCall call([this, i] { layers_[i]->prefill(*prefill_rows_[i]); });
      slowest = std::max(slowest, call.estimate());
      sides.push_back([call] { return call(); });
    }
    sides.push_back(gqa::bench::limit_side(limits_, peak, slowest));
    const std::vector<double> medians = gqa::bench::take_turns(sides, 0.5, 3);
    // Two products of D multiply-adds for each visible pair of a query and a key.
    const double pairs = 0.5 * static_cast<double>(tokens) * static_cast<double>(tokens + 1);
    const double flop = 4.0 * pairs * static_cast<double>(model_.head_dim * model_.query_heads);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      rows_[i].prefill_tokens = tokens;
      rows_[i].prefill_rate = flop / medians[i];
      rows_[i].peak_rate = medians.back();
    }
  }

  // The longest prefill, up to 2048 tokens, of which each configuration's half a dozen calls take about three seconds in all.
  Index affordable_prefill() {
    Index tokens = std::min<Index>(64, settings_.context);
    for (; tokens * 2 <= std::min<Index>(2048, settings_.context); tokens *= 2) {
      const Rows rows(inputs_, model_, 0, tokens, settings_.kv_type);
      const TimedCall call([&] { layers_[0]->prefill(rows); });
      const double twice_as_long = 4 * call.estimate();
      if (twice_as_long * 6 * static_cast<double>(layers_.size()) > 3.0) break;
    }
    return tokens;
  }

  void check() {
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const Index tokens = rows_[i].prefill_tokens;
      const double decode_error = layers_[i]->max_error(*decode_rows_[i], {0}, checkers_);
      const double prefill_error =
          layers_[i]->max_error(*prefill_rows_[i], {0, tokens / 3, 2 * tokens / 3, tokens - 1}, checkers_);
      rows_[i].max_error = prefill_error > decode_error || std::isnan(prefill_error) ? prefill_error : decode_error;
      rows_[i].bit_equal = layers_[i]->equals_repeated(*decode_rows_[i], repeated()) &&
                           layers_[i]->equals_repeated(*prefill_rows_[i], repeated());
    }
  }

  Model model_;
  Settings settings_;
  ThreadTeam& team_;
  ThreadTeam& checkers_;
  MachineLimits& limits_;
  Inputs inputs_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<std::unique_ptr<Rows>> decode_rows_, prefill_rows_;
  std::vector<Row> rows_;
};

void print_header(const Settings& settings) {
  std::printf(
      "A decode step is one new token over %td cached ones, in one layer, its cache read from memory. \"of read\" is "
      "the share\n"
      "of the bandwidth at which this machine reads memory, \"of peak\" the share of its %s peak, both measured\n"
      "in turn with the calls. Times are medians%s. The model's own heads are starred.\n"
      "Inputs are seeded, and shaped as trained models' are: outlier channels, dominant directions, attention sinks at "
      "the\n"
      "first tokens. Errors are absolute, against the definition in double precision, for values of unit variance.\n\n",
      settings.context,
      gqa::bench::limit_name(gqa::bench::peak_of_call(settings.path, settings.kv_type, settings.kv_type)),
      gqa::bench::sample_processor_time() ? " of processor time" : "");
  std::printf("%-11s %-7s %9s %10s %10s | %10s %8s %8s %8s | %8s %9s %8s | %9s %9s\n", "", "", "KV bytes", "KV cache",
              "all", "decode", "against", "KV", "of", "prefill", "", "of", "largest", "grouped =");
  std::printf("%-11s %-7s %9s %10s %10s | %10s %8s %8s %8s | %8s %9s %8s | %9s %9s\n", "model", "heads", "per token",
              "of a layer", "layers", "step", "MHA", "GB/s", "read", "tokens", "GFLOP/s", "peak", "error", "repeated");
}

void print_rows(const Model& model, const Settings& settings, const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    const double cache = static_cast<double>(row.bytes_per_token * settings.context);
    std::printf("%-11s %-7s %9td %10s %10s | %7.3f ms %7.1fx %8.1f %7.0f%% | %8td %9.1f %7.0f%% | %9.1e %9s\n",
                &row == &rows.front() ? model.name.c_str() : "", heads_name(model, row.kv_heads).c_str(),
                row.bytes_per_token, in_bytes(cache).c_str(),
                in_bytes(cache * static_cast<double>(model.layers)).c_str(), row.decode_seconds * 1e3,
                rows.front().decode_seconds / row.decode_seconds, row.kv_rate / 1e9, 100 * row.kv_rate / row.read_rate,
                row.prefill_tokens, row.prefill_rate / 1e9, 100 * row.prefill_rate / row.peak_rate, row.max_error,
                row.bit_equal ? "bit equal" : "DIFFERS");
  }
  std::fflush(stdout);
}

nlohmann::ordered_json as_json(const Model& model, const Settings& settings, const Row& row) {
  return {{"model", model.name},
          {"query_heads", model.query_heads},
          {"kv_heads", row.kv_heads},
          {"head_dim", model.head_dim},
          {"kv_type", gqa::element_name(settings.kv_type)},
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
}

/// Room for what a model needs at once, or a sentence that says how much is missing.
void check_memory(const std::vector<Model>& chosen, const Settings& settings) {
  double most = 0;
  for (const Model& model : chosen) {
    const double mha =
        2.0 * static_cast<double>(Layer::head_bytes(model, settings)) * static_cast<double>(model.query_heads);
    double needed = 2 * mha;
    for (const Index kv_heads : kv_head_counts(model)) {
      const double cache = mha * static_cast<double>(kv_heads) / static_cast<double>(model.query_heads);
      needed += std::max(cache, static_cast<double>(gqa::bench::out_of_cache_bytes()) + cache);
    }
    most = std::max(most, needed);
  }
  const auto available = static_cast<double>(gqa::bench::available_memory());
  if (available > 0 && most > 0.9 * available)
    throw std::runtime_error("this takes " + in_bytes(most) + " of memory and " + in_bytes(available) +
                             " are free: choose a shorter --context");
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
  app.add_option("--kv-type", type, "Element type of the cache and of the queries")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->capture_default_str();
  app.add_option("--threads", settings.threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--path", path, "Instruction set (default: the best that can run)")
      ->check(CLI::IsMember({"portable", "avx2", "avx512", "avx512bf16", "amx"}));
  app.add_flag("--processor-time", gqa::bench::sample_processor_time(),
               "Count the thread's processor time, for a machine that others use meanwhile (one thread)");
  app.add_option("--json", json_file, "Also write the results to this file");
  CLI11_PARSE(app, argc, argv);

  settings.kv_type = type == "f32"   ? gqa::ElementType::f32
                     : type == "f16" ? gqa::ElementType::f16
                                     : gqa::ElementType::bf16;
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
