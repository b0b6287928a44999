// SPDX-License-Identifier: Apache-2.0
// What fewer KV heads cost real models, by each method of gqa/convert.hpp and without any training: perplexity of decoders, agreement
// of an encoder's embeddings. Prints Markdown tables.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <set>
#include <string>

#include "bert.hpp"
#include "methods.hpp"
#include "stories_decoder.hpp"

namespace quality {
namespace {

struct Settings {
  std::string stories, models;
  std::vector<std::string> only;
  Index calibration = 1 << 20, held_out = 1 << 20;
};

void say(const char* model, Index kv_heads, Index layer, Index layers) {
  std::fprintf(stderr, "%s, %td KV heads: layer %td of %td\n", model, kv_heads, layer + 1, layers);
}

/// The first sequences of a text, up to `tokens` tokens.
Sequences some(const nlohmann::json& text, Index tokens) {
  Sequences made;
  for (const nlohmann::json& sequence : text) {
    const auto length = static_cast<Index>(sequence.size());
    if (length > tokens && !made.empty()) break;
    made.push_back(sequence.get<std::vector<Token>>());
    tokens -= length;
  }
  return made;
}

/// Methods that differ where all KV heads become one: grouping then chooses nothing.
std::vector<Method> methods_for(Index kv_heads) {
  std::vector<Method> made;
  std::set<std::tuple<int, int, int, bool>> seen;
  for (const Method& method : every_method())
    if (kv_heads > 1 || seen.insert({static_cast<int>(method.keys), static_cast<int>(method.values),
                                     static_cast<int>(method.fit), method.weights_alone})
                            .second)
      made.push_back(method);
  for (Method& method : made)
    if (const std::size_t at = method.name.find(", similar heads"); kv_heads == 1 && at != std::string::npos)
      method.name.erase(at, 15);
  return made;
}

void decoder(const char* name, const Decoder& model, Index kv_heads, const Sequences& calibration,
             const Sequences& held_out) {
  const std::vector<Method> methods = methods_for(kv_heads);
  const std::vector<Hidden> results = run_methods(model, methods, kv_heads, calibration, held_out,
                                                  [&](Index layer) { say(name, kv_heads, layer, model.layers()); });
  const gqa::AttentionWeights first = model.attention(0);
  std::printf(
      "\n| %s, %td → %td KV heads | perplexity | nats above the model's | of the mean's gap closed "
      "|\n|---|---|---|---|\n",
      name, first.shape.kv_heads, kv_heads);
  const double before = mean_loss(model, results[0], held_out);
  std::printf("| as trained | %.2f | 0 | |\n", std::exp(before));
  double gap = 0;
  for (std::size_t i = 0; i < methods.size(); ++i) {
    const double above = mean_loss(model, results[i + 1], held_out) - before;
    if (i == 0) gap = above;
    std::printf("| %s | %.2f | %.3f | %.0f%% |\n", methods[i].name.c_str(), std::exp(before + above), above,
                100 * (1 - above / gap));
  }
  std::fflush(stdout);
}

void encoder(const char* name, const BertEncoder& model, Index kv_heads, const Sequences& calibration,
             const Sequences& held_out) {
  const std::vector<Method> methods = methods_for(kv_heads);
  const std::vector<Hidden> results = run_methods(model, methods, kv_heads, calibration, held_out,
                                                  [&](Index layer) { say(name, kv_heads, layer, model.layers()); });
  std::printf(
      "\n| %s, %td → %td KV heads | cosine of embeddings | correlation of similarities | of the mean's gap (1 − "
      "cosine) closed "
      "|\n|---|---|---|---|\n",
      name, model.attention(0).shape.kv_heads, kv_heads);
  const Eigen::MatrixXd before = embeddings(results[0]);
  double gap = 0;
  for (std::size_t i = 0; i < methods.size(); ++i) {
    const Agreement with = agreement(before, embeddings(results[i + 1]));
    if (i == 0) gap = 1 - with.cosine;
    std::printf("| %s | %.4f | %.4f | %.0f%% |\n", methods[i].name.c_str(), with.cosine, with.correlation,
                100 * (1 - (1 - with.cosine) / gap));
  }
  std::fflush(stdout);
}

int run(const Settings& settings) {
  const auto wanted = [&](const std::string& name, const std::string& file) {
    if (!settings.only.empty() && std::find(settings.only.begin(), settings.only.end(), name) == settings.only.end())
      return false;
    if (std::filesystem::exists(file)) return true;
    std::printf("no %s: %s was not run\n", file.c_str(), name.c_str());
    return false;
  };
  if (wanted("stories260K", settings.stories)) {
    const StoriesDecoder model(llama::read_weights(settings.stories));
    const Sequences calibration = model.tell(32, 200, 1), held_out = model.tell(32, 200, 2);
    for (const Index kv_heads : {2, 1}) decoder("stories260K", model, kv_heads, calibration, held_out);
  }
  if (wanted("smollm2-135m", settings.models + "/smollm2-135m/model.safetensors")) {
    const std::string folder = settings.models + "/smollm2-135m";
    const Checkpoint from(folder);
    const CheckpointDecoder model(from, from.config().form);
    const nlohmann::json text = read_json(folder + "/tokens.json");
    decoder("smollm2-135m", model, 1, some(text.at("calibration"), settings.calibration),
            some(text.at("held_out"), settings.held_out));
  }
  if (wanted("minilm", settings.models + "/minilm/model.safetensors")) {
    const std::string folder = settings.models + "/minilm";
    const BertEncoder model(folder);
    const nlohmann::json text = read_json(folder + "/tokens.json");
    for (const Index kv_heads : {6, 4, 1})
      encoder("minilm", model, kv_heads, some(text.at("calibration"), settings.calibration),
              some(text.at("held_out"), settings.held_out));
  }
  return 0;
}

}  // namespace
}  // namespace quality

int main(int argc, char** argv) {
  quality::Settings settings;
  CLI::App app("Quality of models with fewer KV heads, by method");
  app.option_defaults()->always_capture_default();
  app.add_option("--stories", settings.stories, "stories260K, as examples/llama/convert.py writes it")
      ->default_val("stories260K.safetensors");
  app.add_option("--models", settings.models, "folder of smollm2-135m/ and minilm/, as import_model.py writes them")
      ->envname("GQA_MODELS_DIR");
  app.add_option("--only", settings.only, "models to run: stories260K, smollm2-135m, minilm");
  app.add_option("--calibration-tokens", settings.calibration, "of a model's text, at most");
  app.add_option("--held-out-tokens", settings.held_out, "of a model's text, at most");
  CLI11_PARSE(app, argc, argv);
  try {
    return quality::run(settings);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "convert_quality: %s\n", error.what());
    return 2;
  }
}
