// SPDX-License-Identifier: Apache-2.0
/// @file
/// How well a model predicts a text with its keys and values stored by each codec.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "generate.hpp"
#include "loss_change.hpp"

namespace llama {

/// A text's losses with one way of storing keys and values.
struct PerplexityRun {
  Format format;
  bool rotate = false;
  std::vector<double> losses{};  ///< nats, of each sequence
};

/// Those that `names` asks for ("all", or codecs' names), of widths that the model has: f32 first. All but plain elements also rotated.
/// @throws std::invalid_argument for a name that there is not, or whose blocks do not divide the width of a head
inline std::vector<PerplexityRun> perplexity_runs(const ModelConfig& config, const std::vector<std::string>& names) {
  const gqa::HeadShape shape{config.query_heads, config.kv_heads, config.head_dim, config.head_dim};
  const bool all = std::find(names.begin(), names.end(), "all") != names.end();
  std::vector<Format> formats{every_format().front()};
  if (all) {
    formats.clear();
    for (const Format& format : every_format())
      if (takes(format, shape)) formats.push_back(format);
  }
  for (const std::string& name : names) {
    if (all || name == "f32") continue;
    const Format format = format_named(name);
    if (!takes(format, shape))
      throw std::invalid_argument("codec: " + name + " has blocks of " +
                                  std::to_string(gqa::KvType(format.k).block_elements()) + "; the model's heads are " +
                                  std::to_string(config.head_dim) + " wide");
    formats.push_back(format);
  }
  std::vector<PerplexityRun> made;
  for (const Format& format : formats) {
    made.push_back({format, false});
    if (!gqa::KvType(format.k).is_element()) made.push_back({format, true});
  }
  return made;
}

/// A text's tokens as sequences of `length` tokens, each with the model's begin token in front if it has one; the rest is left out,
/// unless there is nothing else.
inline std::vector<std::vector<Token>> sequences_of(const std::vector<Token>& tokens, Index length, bool begins) {
  std::vector<std::vector<Token>> made;
  const std::size_t room = static_cast<std::size_t>(length) - (begins ? 1 : 0);
  for (std::size_t first = begins ? 1 : 0; first < tokens.size(); first += room) {
    const std::size_t count = std::min(room, tokens.size() - first);
    if (count < room && !made.empty()) break;
    std::vector<Token>& sequence = made.emplace_back();
    if (begins) sequence.push_back(tokens.front());
    sequence.insert(sequence.end(), tokens.begin() + static_cast<std::ptrdiff_t>(first),
                    tokens.begin() + static_cast<std::ptrdiff_t>(first + count));
  }
  return made;
}

/// Fills in the losses of each run. @param on_run  called before each
inline void run_perplexity(const Llama& model, const std::vector<std::vector<Token>>& text,
                           std::vector<PerplexityRun>& runs, const std::function<void(const PerplexityRun&)>& on_run) {
  for (PerplexityRun& run : runs) {
    on_run(run);
    for (const std::vector<Token>& sequence : text) {
      ModelCache cache(model.config(),
                       {.format = run.format, .capacity = static_cast<Index>(sequence.size()), .rotate = run.rotate});
      run.losses.push_back(text_loss(model, cache, sequence));
    }
  }
}

/// A Markdown table of them.
inline std::string perplexity_table(const ModelConfig& config, const std::vector<std::vector<Token>>& text,
                                    const std::vector<PerplexityRun>& runs) {
  const gqa::HeadShape shape{config.query_heads, config.kv_heads, config.head_dim, config.head_dim};
  std::vector<double> predicted;
  for (const std::vector<Token>& sequence : text) predicted.push_back(static_cast<double>(sequence.size()) - 1);
  const double count = std::accumulate(predicted.begin(), predicted.end(), 0.0);
  std::string made =
      "| keys / values | bytes a token | bits an element | perplexity | against f32 | rotated | against f32 |\n"
      "| --- | --- | --- | --- | --- | --- | --- |\n";
  const auto add = [&](const char* form, auto... values) {
    char cell[96];
    std::snprintf(cell, sizeof cell, form, values...);
    made += cell;
  };
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const PerplexityRun& run = runs[i];
    if (!run.rotate)
      add("| %s | %td | %.4g", run.format.name().c_str(),
          config.layers() * config.kv_heads * token_bytes(run.format, shape), bits(run.format, shape));
    add(" | %.4f", std::exp(std::accumulate(run.losses.begin(), run.losses.end(), 0.0) / count));
    const Change by = change(run.losses, runs[0].losses, predicted);
    if (i == 0) made += " | ";
    else if (text.size() == 1) add(" | %+.3f%%", by.percent);
    else add(" | %+.3f ± %.3f%%", by.percent, by.deviation);
    const bool last_of_row = i + 1 == runs.size() || !runs[i + 1].rotate;
    if (last_of_row) made += run.rotate ? " |\n" : " | | |\n";
  }
  return made;
}

}  // namespace llama
