// SPDX-License-Identifier: Apache-2.0
// Uptraining (Ainslie et al. 2023, "GQA"), small: trains a byte-level multi-head transformer, gives it fewer KV heads by each method of
// the library's conversions, trains it on for a few percent of its steps, and compares with models that had so few heads all along.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "decode_time.hpp"
#include "generate.hpp"
#include "gqa/thread_pool.hpp"
#include "report.hpp"

namespace {

using namespace uptrain;

constexpr const char* kPackagedText = "/usr/share/doc/jargon-text/jargon.txt.gz";

std::atomic<bool> stop_asked{false};
static_assert(std::atomic<bool>::is_always_lock_free, "it is set by a signal handler");

extern "C" void ask_to_stop(int number) {
  stop_asked = true;
  std::signal(number, SIG_DFL);  // a second one ends the program at once; what is done until the last checkpoint stays
}

struct Options {
  Settings settings;
  std::string preset = "default";
  std::string text = kPackagedText;
  std::string folder = "uptrain_run";
  std::string csv;
  std::vector<std::string> methods;
  Index warm_up_percent = 5;
  Index decode_context = 8192;
  std::string prompt = "The hacker ";
  Index generate = 120;
  Index stop_after = 0;
  int threads = gqa::bench::usable_processors();
};

/// What the long preset changes: twice the steps, three seeds.
void take_preset(Options& options, const CLI::App& app) {
  if (options.preset != "long") return;
  const auto set = [&](const char* name, Index& option, Index value) {
    if (app.count(name) == 0) option = value;
  };
  set("--steps", options.settings.recipe.steps, 1600);
  set("--seeds", options.settings.seeds, 3);
  set("--held-out", options.settings.held_out, 512);
}

/// Options that CLI11's own checks cannot judge. @throws std::invalid_argument naming the option
void check(Options& options) {
  Settings& settings = options.settings;
  settings.shape.kv_heads = settings.shape.query_heads;
  check_shape(settings.shape);
  if (!options.methods.empty()) {
    settings.methods.clear();
    for (const std::string& name : options.methods) settings.methods.push_back(method_named(name));
  }
  for (const Index heads : settings.kv_heads)
    if (heads < 1 || heads >= settings.shape.query_heads || settings.shape.query_heads % heads != 0)
      throw std::invalid_argument("--kv-heads has " + std::to_string(heads) + "; expected divisors of the " +
                                  std::to_string(settings.shape.query_heads) + " query heads, and fewer");
  const auto repeats = [](auto values) {
    std::sort(values.begin(), values.end());
    return std::adjacent_find(values.begin(), values.end()) != values.end();
  };
  if (repeats(settings.kv_heads)) throw std::invalid_argument("--kv-heads has a number twice");
  if (repeats(settings.methods)) throw std::invalid_argument("--methods has a method twice");
  if (repeats(settings.budgets)) throw std::invalid_argument("--budgets has a number twice");
  if (options.generate > 0 && options.prompt.empty())
    throw std::invalid_argument("--prompt is empty; expected a byte or more to go on from");
  std::sort(settings.budgets.begin(), settings.budgets.end());
  settings.recipe.final_rate = settings.recipe.rate / 10;
  settings.recipe.warm_up = settings.recipe.steps * options.warm_up_percent / 100;
}

Text open_text(const Options& options) {
  if (options.text == kPackagedText && !std::filesystem::exists(options.text))
    throw std::runtime_error(
        options.text + " is not there. It comes with Debian's package jargon-text; or choose any text with --text");
  return {read_text(options.text), options.settings.shape.context};
}

/// What a model goes on writing, from a bf16 cache of its own.
std::string continued(const Model& model, const std::string& prompt, Index count) {
  const auto positions = static_cast<Index>(prompt.size()) + count;
  std::vector<gqa::ContiguousKvCache> caches;
  for (Index layer = 0; layer < model.shape.layers; ++layer)
    caches.emplace_back(gqa::KvCacheConfig{.kv_heads = model.shape.kv_heads,
                                           .head_dim = model.shape.head_dim(),
                                           .k_type = gqa::ElementType::bf16,
                                           .capacity = positions});
  const std::vector<std::uint8_t> bytes(prompt.begin(), prompt.end());
  const std::vector<std::uint8_t> made = Generator(model, positions).greedy(bytes, count, caches);
  return {made.begin(), made.end()};
}

/// The multi-head model, and the first method's models after all their uptraining, each in a line.
void print_continuations(const Options& options, const std::vector<Result>& results) {
  std::printf("\n\"%s\" goes on, the likeliest byte at a time:\n", options.prompt.c_str());
  for (const Result& each : results) {
    const Plan& plan = each.plan;
    const bool multi_head = plan.origin == Origin::scratch && plan.shape == options.settings.shape;
    const bool converted = plan.origin == Origin::converted && plan.method == options.settings.methods.front();
    if (plan.seed != options.settings.first_seed || !(multi_head || converted)) continue;
    std::string text = continued(each.model, options.prompt, options.generate);
    for (char& letter : text)
      if (static_cast<unsigned char>(letter) < 0x20) letter = ' ';
    std::printf("  %td KV heads, %s: %s\n", plan.shape.kv_heads, multi_head ? "multi-head" : plan.origin_name().c_str(),
                text.c_str());
  }
}

int run(const Options& options) {
  const Settings& settings = options.settings;
  const Text text = open_text(options);
  if (const auto windows = static_cast<Index>(text.held_out_starts(settings.held_out).size());
      windows < settings.held_out)
    throw std::invalid_argument("--held-out is " + std::to_string(settings.held_out) +
                                "; the text's held-out part has " + std::to_string(windows) + " windows");
  const FolderLock lock(options.folder);
  std::signal(SIGINT, ask_to_stop);
  std::signal(SIGTERM, ask_to_stop);
  std::printf(
      "%s: %td bytes, a tenth of them held out. %td parameters, %td layers, %td query heads of %td; %td steps of %td × "
      "%td bytes.\n",
      options.text.c_str(), text.size(), parameter_count(settings.shape), settings.shape.layers,
      settings.shape.query_heads, settings.shape.head_dim(), settings.recipe.steps, settings.batch,
      settings.shape.context);
  std::fflush(stdout);
  const gqa::ThreadPoolExecutor executor(options.threads);
  Experiment experiment(settings, text, options.folder, executor, stop_asked, options.stop_after);
  const std::vector<Result> results = experiment();

  std::vector<Index> heads{settings.shape.query_heads};
  heads.insert(heads.end(), settings.kv_heads.begin(), settings.kv_heads.end());
  const std::vector<double> seconds = decode_seconds(settings.shape, heads, options.decode_context, 2.0);
  DecodeTimes decode;
  for (std::size_t i = 0; i < heads.size(); ++i) decode[heads[i]] = seconds[i];

  const Report report(settings, results, decode, options.decode_context);
  report.print();
  if (options.generate > 0) print_continuations(options, results);
  const std::string csv = options.csv.empty() ? options.folder + "/results.csv" : options.csv;
  const std::string lines = report.csv();
  replace_file(csv, std::as_bytes(std::span(lines)));
  std::printf("\nwritten: %s\n", csv.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  Settings& settings = options.settings;
  CLI::App app(
      "Uptraining: multi-head attention to grouped-query and multi-query attention, and what a little more training "
      "gives back");
  app.option_defaults()->always_capture_default();
  app.add_option("--preset", options.preset,
                 "long: twice the steps, more held-out text, and three seeds; six times as long")
      ->check(CLI::IsMember({"default", "long"}));
  app.add_option("--text", options.text, "what is learnt, plain or gzip")->type_name("FILE");
  app.add_option("--folder", options.folder, "checkpoints and results; an interrupted run goes on from there")
      ->type_name("FOLDER");
  app.add_option("--csv", options.csv, "results (default: results.csv in the folder)")->type_name("FILE");
  app.add_option("--steps", settings.recipe.steps, "training steps")->check(CLI::Range(Index{1}, Index{1} << 30));
  app.add_option("--batch", settings.batch, "sequences a step")->check(CLI::Range(Index{1}, Index{4096}));
  app.add_option("--context", settings.shape.context, "bytes of a sequence")->check(CLI::Range(Index{2}, Index{8192}));
  app.add_option("--layers", settings.shape.layers, "layers")->check(CLI::Range(Index{1}, Index{64}));
  app.add_option("--dim", settings.shape.dim, "width of the model")->check(CLI::Range(Index{2}, Index{4096}));
  app.add_option("--hidden", settings.shape.hidden, "width of the feed-forward layer")
      ->check(CLI::Range(Index{1}, Index{16384}));
  app.add_option("--heads", settings.shape.query_heads, "query heads, and KV heads of the multi-head model")
      ->check(CLI::Range(Index{2}, Index{256}));
  app.add_option("--kv-heads", settings.kv_heads, "numbers of KV heads to convert to")->delimiter(',');
  app.add_option("--methods", options.methods, "of mean, first, random, aligned, low-rank (default: the first four)")
      ->delimiter(',');
  app.add_option("--budgets", settings.budgets, "uptraining in percent of the steps")
      ->delimiter(',')
      ->check(CLI::Range(0.01, 100.0));
  app.add_option("--rate", settings.recipe.rate, "learning rate; falls to a tenth along a cosine")
      ->check(CLI::Range(1e-7, 1.0));
  app.add_option("--uptraining-rate", settings.uptraining_rate,
                 "learning rate that uptraining begins with; falls to a tenth")
      ->check(CLI::Range(1e-7, 1.0));
  app.add_option("--warm-up", options.warm_up_percent, "percent of the steps in which the learning rate rises")
      ->check(CLI::Range(Index{0}, Index{100}));
  app.add_option("--seeds", settings.seeds, "models trained from different parameters on different batches")
      ->check(CLI::Range(Index{1}, Index{100}));
  app.add_option("--seed", settings.first_seed, "the first seed");
  app.add_option("--held-out", settings.held_out, "held-out sequences that losses are measured on")
      ->check(CLI::Range(Index{1}, Index{1} << 20));
  app.add_option("--calibration", settings.calibration, "training sequences that aligned grouping looks at")
      ->check(CLI::Range(Index{1}, Index{1} << 16));
  app.add_option("--checkpoint-every", settings.checkpoint_every, "steps")->check(CLI::Range(Index{1}, Index{1} << 30));
  app.add_option("--decode-context", options.decode_context, "cached tokens of the decode step that is timed")
      ->check(CLI::Range(Index{1}, Index{1} << 22));
  app.add_option("--generate", options.generate, "bytes that models go on writing at the end; 0: none")
      ->check(CLI::Range(Index{0}, Index{1} << 16));
  app.add_option("--prompt", options.prompt, "what they go on from");
  app.add_option("--stop-after", options.stop_after, "stop after so many steps, as a signal would; 0: never")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--threads", options.threads, "threads; change no result")->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  try {
    take_preset(options, app);
    check(options);
    return run(options);
  } catch (const Interrupted& reason) {
    std::fprintf(stderr, "uptrain: %s\n", reason.what());
    return 3;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "uptrain: %s\n", error.what());
    return 2;
  }
}
