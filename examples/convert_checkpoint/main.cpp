// SPDX-License-Identifier: Apache-2.0
// Converts a checkpoint in Hugging Face's format from multi-head, or grouped-query, attention to fewer KV heads, or more.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint.hpp"
#include "convert_model.hpp"
#include "gqa/thread_pool.hpp"
#include "llama.hpp"
#include "tokens.hpp"
#include "writer.hpp"

namespace {

using namespace checkpoint;
namespace fs = std::filesystem;

struct Settings {
  std::string model, output, calibration, tokens, report, keys, values, method, grouping = "similar", fit = "layer",
                                                                                rope_pairs = "half-split";
  Index kv_heads = 0;
  std::uint64_t seed = 0;
  int threads = 1;
  Index max_tokens = 1 << 20;
  bool evaluate = false, replace = false;
};

/// The method called so. By default the one that keeps most: low rank where there is calibration data, else alignment.
gqa::MergeMethod merge_method(const Settings& settings, const std::string& own) {
  const std::string& name = settings.method.empty() ? own : settings.method;
  if (name.empty())
    return settings.tokens.empty() && settings.calibration.empty() ? gqa::MergeMethod::aligned_mean
                                                                   : gqa::MergeMethod::low_rank;
  return name == "mean"      ? gqa::MergeMethod::mean
         : name == "first"   ? gqa::MergeMethod::first
         : name == "random"  ? gqa::MergeMethod::random
         : name == "aligned" ? gqa::MergeMethod::aligned_mean
                             : gqa::MergeMethod::low_rank;
}

/// One line on the terminal that is overwritten; elsewhere nothing.
void progress(const std::string& text) {
  if (isatty(STDERR_FILENO) == 0) return;
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
}

/// The inputs of a layer's attention from a file: tokens × hidden, or sequences × tokens × hidden.
Hidden read_inputs(const SafetensorsFile& file, const std::string& path, Index layer, Index hidden) {
  const std::string name = "layers." + std::to_string(layer);
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end()) bad_file(path, "has no tensor " + name);
  Tensor tensor = found->second;
  if (tensor.shape.size() == 2) tensor.shape.insert(tensor.shape.begin(), 1);
  if (tensor.shape.size() != 3 || tensor.shape[2] != static_cast<std::uint64_t>(hidden) || tensor.bytes.empty())
    bad_file(path, name + ": expected tokens x " + std::to_string(hidden) + ", or sequences x tokens x " +
                       std::to_string(hidden));
  Hidden made;
  const std::uint64_t sequences = tensor.shape[0];
  for (std::uint64_t i = 0; i < sequences; ++i) {
    const std::size_t bytes = tensor.bytes.size() / sequences;
    const TensorWeights one(name,
                            {tensor.dtype, {tensor.shape[1], tensor.shape[2]}, tensor.bytes.subspan(i * bytes, bytes)});
    made.push_back(gqa::detail::read_weights(name.c_str(), one.view()).cast<float>().transpose());
  }
  return made;
}

/// The checkpoint that is written: the model's files with the attention of some other number of KV heads in them.
class Output {
 public:
  Output(const Checkpoint& from, const std::string& folder, Index kv_heads, bool replace)
      : from_(from), folder_(folder), kv_heads_(kv_heads) {
    if (fs::exists(folder) && fs::equivalent(folder, from.folder()))
      bad_file(folder, "is the model's own folder; expected another one");
    fs::create_directories(folder);
    if (!replace)
      for (const auto& [file, tensors] : from.files())
        if (fs::exists(folder + "/" + file))
          bad_file(folder + "/" + file, "is there already; --replace writes over it");
    for (const auto& [file, tensors] : from.files()) {
      std::map<std::string, SafetensorsWriter::Entry> entries;
      for (const auto& [name, tensor] : tensors->tensors()) {
        SafetensorsWriter::Entry entry{tensor.dtype, tensor.shape};
        if (is_attention(name, {"k_proj", "v_proj"}) && !entry.shape.empty())
          entry.shape[0] = static_cast<std::uint64_t>(kv_heads * from.config().heads.head_dim);
        entries.emplace(name, std::move(entry));
      }
      writers_[file] = std::make_unique<SafetensorsWriter>(folder + "/" + file, entries, tensors->metadata());
      for (const auto& [name, tensor] : tensors->tensors()) {
        home_[name] = file;
        if (!is_attention(name, {"q_proj", "k_proj", "v_proj", "o_proj"})) writers_[file]->write(name, tensor.bytes);
        else if (std::strtoll(name.c_str() + std::strlen("model.layers."), nullptr, 10) >= from.config().layers)
          bad_file(from.folder(), name + " is of no layer that config.json has; num_hidden_layers is " +
                                      std::to_string(from.config().layers));
      }
    }
  }

  /// Writes a layer's projections in the types that they had.
  void write(Index layer, const gqa::AttentionWeights& weights) {
    std::map<std::string, std::vector<std::byte>> bytes;
    gqa::AttentionWeightViews views;
    const auto place = [&](const char* part, const char* kind, Index rows, Index columns) -> gqa::WeightView {
      const std::string name = Checkpoint::attention_name(layer, part) + kind;
      if (!from_.has(name)) return {};
      const std::string& dtype = from_.tensor(name).dtype;
      std::vector<std::byte>& to = bytes[name];
      to.resize(static_cast<std::size_t>(rows * columns) * dtype_bytes(dtype));
      gqa::WeightView view;
      view.data = to.data();
      view.type = dtype == "F32"    ? gqa::ElementType::f32
                  : dtype == "BF16" ? gqa::ElementType::bf16
                                    : gqa::ElementType::f16;
      view.rows = rows;
      view.columns = view.row_stride = columns;
      return view;
    };
    const auto weight = [&](const char* part, const Eigen::MatrixXd& of) {
      return place(part, ".weight", of.rows(), of.cols());
    };
    const auto bias = [&](const char* part, const Eigen::VectorXd& of) { return place(part, ".bias", of.size(), 1); };
    views = {weight("q_proj", weights.q),    weight("k_proj", weights.k),    weight("v_proj", weights.v),
             weight("o_proj", weights.o),    bias("q_proj", weights.q_bias), bias("k_proj", weights.k_bias),
             bias("v_proj", weights.v_bias), bias("o_proj", weights.o_bias)};
    gqa::write_attention(weights, views);
    for (const auto& [name, data] : bytes) writers_.at(home_.at(name))->write(name, data);
  }

  /// Moves everything into place: tensors, then what says that they are there. Small files beside them are copied as they are.
  void commit() {
    for (const auto& [file, writer] : writers_) writer->commit();
    if (!from_.index().is_null()) {
      nlohmann::json index = from_.index();
      std::uint64_t total = 0;
      for (const auto& [file, writer] : writers_) total += writer->data_bytes();
      index["metadata"]["total_size"] = total;
      write_text(folder_ + "/model.safetensors.index.json", index.dump(2) + "\n");
    }
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
                             "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja"})
      if (fs::exists(from_.folder() + "/" + name))
        fs::copy_file(from_.folder() + "/" + name, folder_ + "/" + name, fs::copy_options::overwrite_existing);
    nlohmann::json config = from_.config().json;
    config["num_key_value_heads"] = kv_heads_;
    write_text(folder_ + "/config.json", config.dump(2) + "\n");
  }

 private:
  bool is_attention(const std::string& name, const std::vector<const char*>& parts) const {
    if (!name.starts_with("model.layers.")) return false;
    for (const char* part : parts)
      for (const char* kind : {".weight", ".bias"})
        if (name.ends_with(std::string(".self_attn.") + part + kind)) return true;
    return false;
  }

  const Checkpoint& from_;
  std::string folder_;
  Index kv_heads_;
  std::map<std::string, std::unique_ptr<SafetensorsWriter>> writers_;
  std::map<std::string, std::string> home_;
};

std::string percent(std::optional<double> share) {
  char text[32] = "-";
  if (share) std::snprintf(text, sizeof text, "%.1f%%", 100 * *share);
  return text;
}

int run(const Settings& settings) {
  const Checkpoint from(settings.model);
  ModelConfig config = from.config();
  if (settings.rope_pairs == "interleaved") config.form.rope.pairs = gqa::RopePairs::interleaved;
  if (settings.rope_pairs == "none") config.form.rope = {};
  const gqa::ThreadPoolExecutor executor(settings.threads);
  config.form.executor = executor;

  gqa::MergeOptions merge;
  merge.kv_heads = settings.kv_heads;
  merge.keys = merge_method(settings, settings.keys);
  merge.values = merge_method(settings, settings.values);
  merge.grouping = settings.grouping == "similar" ? gqa::HeadGrouping::similar : gqa::HeadGrouping::neighbours;
  merge.rope = config.form.rope;
  merge.seed = settings.seed;
  const Fit fit = settings.fit == "sequential" ? Fit::sequential : settings.fit == "layer" ? Fit::layer : Fit::none;

  const Index old_heads = config.heads.kv_heads;
  const bool expand = settings.kv_heads > old_heads;
  if (expand ? settings.kv_heads % old_heads != 0 || config.heads.query_heads % settings.kv_heads != 0
             : old_heads % settings.kv_heads != 0)
    throw std::runtime_error("--kv-heads " + std::to_string(settings.kv_heads) +
                             "; expected a divisor of the model's " + std::to_string(old_heads) +
                             " KV heads, or a multiple that divides its " + std::to_string(config.heads.query_heads) +
                             " query heads");
  const bool turns_keys = merge.keys == gqa::MergeMethod::aligned_mean || merge.keys == gqa::MergeMethod::low_rank;
  if (!expand && turns_keys && settings.kv_heads < old_heads &&
      from.has(Checkpoint::attention_name(0, "k_norm.weight")))
    throw std::runtime_error(settings.model +
                             ": has a norm between the keys' projection and RoPE, which no turned key head passes "
                             "unchanged; expected --keys mean, first or random");
  for (Index layer = 0; layer < config.layers; ++layer)
    static_cast<void>(from.tensor(Checkpoint::attention_name(layer, "k_proj.weight")));

  Output output(from, settings.output, settings.kv_heads, settings.replace);
  nlohmann::json report = {{"query_heads", config.heads.query_heads},
                           {"kv_heads", {old_heads, settings.kv_heads}},
                           {"layers", nlohmann::json::array()}};
  std::vector<gqa::AttentionWeights> converted;
  if (!expand)
    std::printf("layer  keys kept  values kept  error of outputs: mean of neighbours  merged   fitted   heads\n");
  const OnLayer on_layer = [&](Index layer, gqa::ConvertedLayer& after) {
    output.write(layer, after.weights);
    const gqa::LayerReport& r = after.report;
    progress("");
    if (!expand) {
      std::printf("%5td  %9s  %11s  %36s  %6s  %7s  ", layer, percent(r.keys_kept).c_str(),
                  percent(r.values_kept).c_str(), percent(r.pooled_error).c_str(), percent(r.merged_error).c_str(),
                  percent(r.fitted_error).c_str());
      const std::size_t size = static_cast<std::size_t>(old_heads / settings.kv_heads);
      for (std::size_t i = 0; i < after.order.size(); ++i)
        std::printf("%s%td", i == 0 ? "" : i % size == 0 ? " | " : " ", after.order[i]);
      std::printf("\n");
      std::fflush(stdout);
    }
    nlohmann::json one = {{"keys_kept", r.keys_kept}, {"values_kept", r.values_kept}, {"order", after.order}};
    if (r.pooled_error) one["pooled_error"] = *r.pooled_error;
    if (r.merged_error) one["merged_error"] = *r.merged_error;
    if (r.fitted_error) one["fitted_error"] = *r.fitted_error;
    report["layers"].push_back(one);
    if (settings.evaluate) converted.push_back(std::move(after.weights));
    progress("layer " + std::to_string(layer + 1) + " of " + std::to_string(config.layers) + " is done");
  };

  std::unique_ptr<CheckpointDecoder> model;
  if (!settings.tokens.empty()) model = std::make_unique<CheckpointDecoder>(from, config.form);
  if (!expand && model && settings.kv_heads < old_heads) {
    convert_model(*model, merge, fit, read_tokens(settings.tokens, "calibration", settings.max_tokens), on_layer);
  } else {
    std::unique_ptr<SafetensorsFile> given;
    if (!settings.calibration.empty() && !expand) given = std::make_unique<SafetensorsFile>(settings.calibration);
    for (Index layer = 0; layer < config.layers; ++layer) {
      const gqa::AttentionWeights before = from.attention(layer);
      gqa::ConvertedLayer after;
      if (expand) {
        after.weights = gqa::repeat_kv_heads(before, settings.kv_heads);
      } else {
        const Hidden inputs = given ? read_inputs(*given, settings.calibration, layer, config.hidden) : Hidden{};
        after = gqa::convert_layer(before, for_layer(merge, layer), config.form, {inputs, {}}, fit != Fit::none);
      }
      on_layer(layer, after);
    }
  }
  output.commit();
  progress("");
  if (settings.evaluate) {
    const Sequences text = read_tokens(settings.tokens, "held_out", settings.max_tokens);
    const double before = loss(*model, text), after = loss(*model, text, converted);
    std::printf("perplexity of the held-out text: %.3f before, %.3f after\n", std::exp(before), std::exp(after));
    report["perplexity"] = {std::exp(before), std::exp(after)};
  }
  if (!settings.report.empty()) write_text(settings.report, report.dump(2) + "\n");
  std::printf("%s: %td query heads over %td KV heads instead of %td; the cache is %.3g times %s\n",
              settings.output.c_str(), config.heads.query_heads, settings.kv_heads, old_heads,
              expand ? static_cast<double>(settings.kv_heads) / static_cast<double>(old_heads)
                     : static_cast<double>(old_heads) / static_cast<double>(settings.kv_heads),
              expand ? "as large" : "smaller");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app(
      "Converts a checkpoint (Hugging Face's .safetensors and config.json, Llama's names) to another number of KV "
      "heads, without training");
  app.option_defaults()->always_capture_default();
  const auto methods = CLI::IsMember({"mean", "first", "random", "aligned", "low-rank"});
  app.add_option("--model", settings.model, "folder of config.json and model.safetensors or its shards")->required();
  app.add_option("--output", settings.output, "folder to write; not the model's")->required();
  app.add_option("--kv-heads", settings.kv_heads,
                 "KV heads to have: a divisor of the model's (merged), or a multiple (repeated)")
      ->required()
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--keys", settings.keys, "how keys are merged; default: low-rank with calibration data, else aligned")
      ->check(methods);
  app.add_option("--values", settings.values, "how values are merged; default alike")->check(methods);
  app.add_option("--method", settings.method, "how both are merged")->check(methods);
  app.add_option("--grouping", settings.grouping, "which heads are merged")
      ->check(CLI::IsMember({"similar", "neighbours"}));
  app.add_option("--fit", settings.fit,
                 "fit the output projections to calibration data: each layer to its own outputs, or one after the "
                 "other to what "
                 "the model had behind the layer (needs --tokens)")
      ->check(CLI::IsMember({"none", "layer", "sequential"}));
  auto* tokens = app.add_option(
      "--tokens", settings.tokens,
      "calibration text as tokens, JSON: [[1, 2, ...], ...], or an object with such lists as `calibration` "
      "and `held_out`; the model is run over it");
  app.add_option("--calibration", settings.calibration,
                 "inputs of every layer's attention instead, .safetensors: layers.N, tokens x hidden or sequences x "
                 "tokens x hidden")
      ->excludes(tokens);
  app.add_option("--max-tokens", settings.max_tokens, "of each text, at most")->check(CLI::PositiveNumber);
  app.add_flag("--evaluate", settings.evaluate, "print the perplexity of `held_out` before and after")->needs(tokens);
  app.add_option("--rope-pairs", settings.rope_pairs, "dims that RoPE turns together")
      ->check(CLI::IsMember({"half-split", "interleaved", "none"}));
  app.add_option("--seed", settings.seed, "of random choices");
  app.add_option("--threads", settings.threads, "threads for attention")->check(CLI::Range(1, 1024));
  app.add_option("--report", settings.report, "JSON file for the report");
  app.add_flag("--replace", settings.replace, "write over files that are there");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(settings);
  } catch (const std::exception& error) {
    progress("");
    std::fprintf(stderr, "convert_checkpoint: %s\n", error.what());
    return 2;
  }
}
