// SPDX-License-Identifier: Apache-2.0
// What storing keys and values in fewer bits costs: errors of attention's outputs on drawn and on real keys and values, and the perplexity of
// real models, for each codec, with and without rotation. Prints Markdown tables.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

#include "../../examples/convert_checkpoint/tokens.hpp"
#include "../../examples/llama/loss_change.hpp"
#include "../convert_quality/stories_decoder.hpp"
#include "drawn.hpp"
#include "gqa/thread_pool.hpp"
#include "run_formats.hpp"

namespace accuracy {
namespace {

struct Settings {
  std::string stories, model, text;
  std::vector<std::string> only, codecs;
  Index tokens = 1 << 20;
  int threads = 1;
};

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// Those that were asked for, after f32.
std::vector<Format> formats_for(const Settings& settings, const gqa::HeadShape& shape) {
  std::vector<Format> made;
  for (const Format& format : every_format())
    if (takes(format, shape) && (made.empty() || settings.codecs.empty() || contains(settings.codecs, format.k_name) ||
                                 contains(settings.codecs, format.v_name)))
      made.push_back(format);
  return made;
}

/// Two digits, or all before the point.
std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, share < 0.995 ? "%.2g%%" : "%.0f%%", 100 * share);
  return text;
}

std::string first_cells(const Format& format, const gqa::HeadShape& shape) {
  char bits_text[32];
  std::snprintf(bits_text, sizeof bits_text, "%.4g", bits(format, shape));
  const std::string names = format.k_name == format.v_name ? format.k_name : format.k_name + " / " + format.v_name;
  return "| " + names + " | " + bits_text;
}

void drawn_rows(const Settings& settings, gqa::ExecutorRef executor) {
  constexpr std::uint64_t seeds = 4;
  const std::vector<Format> formats = formats_for(settings, drawn(Kind::gaussian, 1).shape);
  std::vector<RelativeError> errors(formats.size() * kKinds.size() * 2);
  for (std::size_t kind = 0; kind < kKinds.size(); ++kind)
    for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
      const Rows rows = drawn(kKinds[kind], seed);
      const Eigen::MatrixXf expected = attend(rows, formats[0], executor);
      for (std::size_t i = 0; i < formats.size(); ++i) {
        RelativeError* const at = &errors[(i * kKinds.size() + kind) * 2];
        at[0].add(attend(rows, formats[i], executor), expected);
        at[1].add(attend_rotated(rows, formats[i], executor), expected);
      }
    }
  std::printf("\n| K / V | bits");
  for (const Kind kind : kKinds) std::printf(" | %s | rotated", name_of(kind));
  std::printf(" |\n|---|---|---|---|---|---|---|---|\n");
  for (std::size_t i = 1; i < formats.size(); ++i) {
    std::printf("%s", first_cells(formats[i], drawn(Kind::gaussian, 1).shape).c_str());
    for (std::size_t j = 0; j < 2 * kKinds.size(); ++j)
      std::printf(" | %s", percent(errors[i * kKinds.size() * 2 + j].value()).c_str());
    std::printf(" |\n");
  }
  std::fflush(stdout);
}

void model_table(const char* name, const Decoder& model, const Sequences& text, const Settings& settings) {
  const gqa::HeadShape shape = model.attention(0).shape;
  std::vector<Run> runs;
  for (const Format& format : formats_for(settings, shape)) {
    runs.push_back({format, false});
    if (!gqa::KvType(format.k).is_element()) runs.push_back({format, true});
  }
  const std::vector<Outcome> outcomes = run_formats(model, runs, text, [&](Index layer) {
    std::fprintf(stderr, "%s: layer %td of %td\n", name, layer + 1, model.layers());
  });
  double sum = 0;
  for (const double loss : outcomes[0].losses) sum += loss;
  std::vector<double> predicted;
  for (const auto& sequence : text) predicted.push_back(static_cast<double>(sequence.size()) - 1);
  std::printf(
      "\n%s: %td query heads over %td KV heads of width %td, %zu sequences, %td tokens. Perplexity with f32 rows "
      "%.4f.\n\n"
      "| K / V | bits | output error | perplexity | rotated: output error | perplexity |\n|---|---|---|---|---|---|\n",
      name, shape.query_heads, shape.kv_heads, shape.head_dim, text.size(), predicted_tokens(text),
      std::exp(sum / static_cast<double>(predicted_tokens(text))));
  for (std::size_t i = 1; i < runs.size(); ++i) {
    const Change by = change(outcomes[i].losses, outcomes[0].losses, predicted);
    if (!runs[i].rotate) std::printf("%s", first_cells(runs[i].format, shape).c_str());
    std::printf(" | %s | %+.3f ± %.3f%%", percent(outcomes[i].output_error).c_str(), by.percent, by.deviation);
    if (i + 1 == runs.size() || !runs[i + 1].rotate) std::printf("%s |\n", runs[i].rotate ? "" : " | | ");
  }
  std::fflush(stdout);
}

int run(const Settings& settings) {
  const gqa::ThreadPoolExecutor pool(settings.threads);
  const auto wanted = [&](const std::string& name, const std::string& file) {
    if (!settings.only.empty() && !contains(settings.only, name)) return false;
    if (file.empty() || std::filesystem::exists(file)) return true;
    std::printf("no %s: %s was not run\n", file.c_str(), name.c_str());
    return false;
  };
  if (wanted("drawn", "")) drawn_rows(settings, pool);
  if (wanted("stories", settings.stories)) {
    const quality::StoriesDecoder model(llama::read_weights(settings.stories));
    model_table("stories260K", model, model.tell(64, 400, 2), settings);
  }
  if (wanted("model", settings.model + "/model.safetensors")) {
    const Checkpoint from(settings.model);
    gqa::AttentionForm form = from.config().form;
    form.executor = pool;
    const std::string text = settings.text.empty() ? settings.model + "/tokens.json" : settings.text;
    model_table(std::filesystem::path(settings.model).filename().c_str(), CheckpointDecoder(from, form),
                read_tokens(text, "held_out", settings.tokens), settings);
  }
  return 0;
}

}  // namespace
}  // namespace accuracy

int main(int argc, char** argv) {
  accuracy::Settings settings;
  CLI::App app("Error and perplexity of caches in fewer bits, by codec");
  app.option_defaults()->always_capture_default();
  app.add_option("--stories", settings.stories, "stories260K, as examples/llama/convert.py writes it")
      ->default_val("stories260K.safetensors");
  app.add_option("--model", settings.model, "folder of a Llama, as import_model.py writes it");
  app.add_option("--text", settings.text, "tokens; default: the model's tokens.json");
  app.add_option("--only", settings.only, "what to run: drawn, stories, model");
  app.add_option("--codecs", settings.codecs, "run formats with one of these alone");
  app.add_option("--tokens", settings.tokens, "of the model's text, at most");
  app.add_option("--threads", settings.threads, "for attention");
  CLI11_PARSE(app, argc, argv);
  try {
    return accuracy::run(settings);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quantised_accuracy: %s\n", error.what());
    return 2;
  }
}
