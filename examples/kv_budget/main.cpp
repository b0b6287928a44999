// SPDX-License-Identifier: Apache-2.0
// Plans with the spectrum from multi-head to multi-query attention: what a model's KV cache takes with each number of KV heads,
// what fits into a memory, and how long decoding and prefill take at least.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "../../benchmarks/machine.hpp"
#include "chart.hpp"
#include "gguf_model.hpp"
#include "hf_config.hpp"
#include "measure.hpp"
#include "tables.hpp"
#include "to_json.hpp"

namespace {

using namespace kv_budget;

struct Arguments {
  std::string model, config, gguf;
  std::vector<std::string> compare;
  bool list = false, formats = false, measure = false, json = false, whole_windows = false;
  Index context = 0, batch = 1, page_size = 0, chunk = 1;
  Index devices = 0;
  std::string kv_type = "bf16", k_type, v_type, memory, weights, bandwidth, flops, svg;
  std::vector<std::string> what_if;
  int threads = 0;
};

/// A preset's name, or the path of a config.json or a GGUF file.
NamedModel model_named(const std::string& text) {
  if (text.ends_with(".json")) return read_config(text);
  if (text.ends_with(".gguf")) return read_gguf(text);
  NamedModel model;
  model.name = text;
  model.shape = gqa::preset(text);
  return model;
}

/// One of the three ways to name a model.
NamedModel model_of(const Arguments& a) {
  if (!a.config.empty()) return read_config(a.config);
  if (!a.gguf.empty()) return read_gguf(a.gguf);
  return model_named(a.model);
}

/// "kv-heads=64,8,1"; "mha" and "mqa" are numbers too.
std::vector<Index> wanted_heads(const std::vector<std::string>& texts, const gqa::ModelShape& shape) {
  std::vector<Index> heads;
  for (std::string text : texts) {
    if (text.starts_with("kv-heads=")) text.erase(0, std::string("kv-heads=").size());
    Index count = text == "mha" ? mha_heads(shape) : text == "mqa" ? 1 : 0;
    if (count == 0) {
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
      if (error != std::errc() || end != text.data() + text.size() || count < 1)
        throw std::invalid_argument("--what-if: \"" + text +
                                    "\" is no number of KV heads; expected kv-heads=64,8,1, mha or mqa");
    }
    heads.push_back(count);
  }
  return heads;
}

Question question_of(const Arguments& a, const NamedModel& model) {
  Question q;
  q.plan.k_format = gqa::kv_format_named(a.k_type.empty() ? a.kv_type : a.k_type);
  q.plan.v_format = gqa::kv_format_named(a.v_type.empty() ? a.kv_type : a.v_type);
  q.plan.page_size = a.page_size;
  q.plan.chunk = a.chunk;
  q.plan.windows_capped = !a.whole_windows;
  q.context = a.context > 0 ? a.context : model.shape.max_context > 0 ? model.shape.max_context : 8192;
  q.sequences = a.batch;
  if (!a.memory.empty()) q.memory = parse_size(a.memory);
  if (q.memory && *q.memory == 0) throw std::invalid_argument("--memory: is 0; expected the bytes of a device");
  if (!a.weights.empty()) q.weights = parse_size(a.weights);
  if (a.devices > 0) q.devices = a.devices;
  if (!a.bandwidth.empty()) q.bandwidth = parse_amount(a.bandwidth);
  if (!a.flops.empty()) q.flops = parse_amount(a.flops);
  complete(q, model);
  return q;
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw std::runtime_error(path + ": cannot be written");
}

std::string cache_text(const Question& q) {
  return (q.sequences == 1 ? "a sequence" : with_commas(q.sequences) + " sequences") + ", " + plan_text(q.plan);
}

int compare(const Arguments& a) {
  std::vector<NamedModel> models;
  std::vector<Question> questions;
  for (const std::string& name : a.compare) models.push_back(model_named(name));
  Arguments same = a;  // one context for all: the first model's, unless given
  for (const NamedModel& model : models) {
    questions.push_back(question_of(same, model));
    same.context = questions.front().context;
  }
  std::vector<Curve> curves;
  for (const NamedModel& model : models) curves.push_back({model.name, model.shape});
  if (a.json) {
    nlohmann::ordered_json made;
    for (std::size_t i = 0; i < models.size(); ++i) {
      std::vector<Row> rows{row_of(models[i].name, models[i].shape, true)};
      answer(rows, questions[i], models[i].shape);
      made.push_back(to_json(models[i], questions[i], rows));
    }
    std::cout << made.dump(2) << '\n';
  } else {
    print_comparison(models, questions);
    print_bars(curves, questions.front(), 0);
  }
  if (!a.svg.empty())
    write_file(a.svg, SvgChart(curves, questions.front(), "KV cache of " + cache_text(questions.front())).draw(0));
  return 0;
}

int run(const Arguments& a) {
  if (a.list) {
    print_presets();
    return 0;
  }
  if (!a.compare.empty()) return compare(a);
  const NamedModel model = model_of(a);
  const Question q = question_of(a, model);
  if (a.formats) {
    print_formats(model, q);
    return 0;
  }
  std::vector<Row> rows = rows_for(model, wanted_heads(a.what_if, model.shape));
  if (a.measure) measure(rows, a.threads > 0 ? a.threads : gqa::bench::usable_processors());
  answer(rows, q, model.shape);
  const Index available = q.memory ? std::max<Index>(left_beside_weights(q), 0) : 0;
  const std::vector<Curve> curves = curves_of(rows);
  if (a.json) {
    std::cout << to_json(model, q, rows).dump(2) << '\n';
  } else {
    print_model(model, q);
    print_memory(rows, q);
    print_inverse(rows, q);
    print_time(rows, q);
    print_bars(curves, q, available);
  }
  if (!a.svg.empty()) {
    const std::string what = q.sequences == 1 ? "a sequence" : with_commas(q.sequences) + " sequences";
    write_file(a.svg,
               SvgChart(curves, q, model.name + ": KV cache of " + what + ", " + plan_text(q.plan)).draw(available));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments a;
  CLI::App app("What a KV cache takes: bytes, devices, contexts and times, for MHA, GQA and MQA beside each other");
  app.option_defaults()->always_capture_default();
  auto* const model = app.add_option("--model", a.model, "a preset (see --list), or the path of a .json or .gguf file");
  auto* const config = app.add_option("--config", a.config, "a Hugging Face config.json")->excludes(model);
  auto* const gguf =
      app.add_option("--gguf", a.gguf, "a GGUF file, of which the metadata is read")->excludes(model)->excludes(config);
  app.add_option("--compare", a.compare, "several models beside each other, named as for --model")
      ->excludes(model)
      ->excludes(config)
      ->excludes(gguf);
  app.add_flag("--list", a.list, "lists the presets");
  app.add_flag("--formats", a.formats, "lists the storage formats, with what a sequence of the model takes in each");
  app.add_option("--context", a.context, "tokens of a sequence; 0: what the model was made for")
      ->check(CLI::Range(Index{0}, Index{1} << 40));
  app.add_option("--batch", a.batch, "sequences at once")->check(CLI::Range(Index{1}, Index{1} << 40));
  app.add_option("--kv-type", a.kv_type, "how keys and values are stored (see --formats)");
  app.add_option("--k-type", a.k_type, "how keys are stored, if otherwise");
  app.add_option("--v-type", a.v_type, "how values are stored, if otherwise");
  app.add_option("--page-size", a.page_size, "tokens in a page; 0: no pages")
      ->check(CLI::Range(Index{0}, Index{1} << 30));
  app.add_option("--chunk", a.chunk, "tokens appended at a time; a window of w keeps w + chunk - 1")
      ->check(CLI::Range(Index{1}, Index{1} << 40));
  app.add_flag("--whole-windows", a.whole_windows, "layers with a window keep every token, as without a ring");
  app.add_option("--memory", a.memory, "memory of a device: 80GiB, 80GB");
  app.add_option("--weights", a.weights, "size of the weights; default: all parameters in bf16, or a GGUF file's size");
  app.add_option("--devices", a.devices, "devices whose contexts and sequences are asked for; 0: what the weights need")
      ->check(CLI::Range(Index{0}, Index{1} << 20));
  app.add_option("--what-if", a.what_if,
                 "other numbers of KV heads: kv-heads=64,8,1 (also mha, mqa); default: MHA, the model's own, MQA")
      ->delimiter(',');
  app.add_option("--bandwidth", a.bandwidth, "bytes that are read a second, for decode times: 3.35TB");
  app.add_option("--flops", a.flops, "operations a second, for prefill times: 990e12");
  app.add_flag("--measure", a.measure, "measures both on this machine by the library's own calls");
  app.add_option("--threads", a.threads, "threads of --measure; 0: all processors")->check(CLI::Range(0, 1024));
  app.add_option("--svg", a.svg, "writes the chart to this file");
  app.add_flag("--json", a.json, "prints JSON");
  CLI11_PARSE(app, argc, argv);
  if (!a.list && a.compare.empty() && a.model.empty() && a.config.empty() && a.gguf.empty()) {
    std::fprintf(stderr,
                 "kv_budget: which model? Give --model, --config, --gguf or --compare; --list lists the presets.\n");
    return 2;
  }
  try {
    return run(a);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kv_budget: %s\n", error.what());
    return 2;
  }
}
