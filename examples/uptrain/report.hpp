// SPDX-License-Identifier: Apache-2.0
/// @file
/// Results of all seeds side by side: a table for people, CSV for plot.py.
#pragma once

#include <cmath>
#include <cstdio>
#include <map>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

#include "experiment.hpp"

namespace uptrain {

inline double bits(double nats) { return nats / std::numbers::ln2; }

/// Share of the gap to the multi-head model that uptraining closes: 0 right after conversion, 1 where the multi-head model was when it was
/// converted. Nothing if conversion made no gap.
inline std::optional<double> gap_closed(double converted, double uptrained, double multi_head) {
  if (!(converted > multi_head)) return std::nullopt;
  return (converted - uptrained) / (converted - multi_head);
}

/// Mean and sample standard deviation over seeds.
struct Spread {
  double mean = 0;
  std::optional<double> deviation = std::nullopt;  ///< of two values or more
};
inline Spread spread_of(const std::vector<double>& values) {
  Spread made;
  for (const double value : values) made.mean += value / static_cast<double>(values.size());
  if (values.size() < 2) return made;
  double squares = 0;
  for (const double value : values) squares += (value - made.mean) * (value - made.mean);
  made.deviation = std::sqrt(squares / static_cast<double>(values.size() - 1));
  return made;
}

/// Seconds of a decode step by KV heads.
using DecodeTimes = std::map<Index, double>;

/// Results, looked up.
class Report {
 public:
  Report(const Settings& settings, std::vector<Result> results, DecodeTimes decode, Index decode_context)
      : settings_(settings),
        results_(std::move(results)),
        decode_(std::move(decode)),
        decode_context_(decode_context) {}

  /// A row for each way to each number of KV heads, a column for each budget.
  void print() const {
    const bool spread = settings_.seeds > 1;
    const int loss_width = spread ? 14 : 7, closed_width = spread ? 10 : 7;
    std::printf(
        "Held-out loss in bits per byte, of %td bytes%s; +n%%: after uptraining for n%% of the steps. \"Closed\":\n"
        "the share of the gap between the model as converted and the multi-head one that all of it closes. KV bytes: "
        "of\n"
        "a token in a bf16 cache. Decode step: its attention over %td tokens, all layers, one thread.\n\n",
        settings_.held_out * settings_.shape.context, spread ? ", mean ± standard deviation over seeds" : "",
        decode_context_);
    std::printf("%8s %9s %11s  %-12s", "KV heads", "KV bytes", "decode step", "model");
    for (const double percent : budgets(Origin::converted))
      std::printf(" %*s", loss_width, ("+" + number("%g", percent) + "%").c_str());
    std::printf(" %*s\n", closed_width, "closed");
    for (const std::size_t first : first_of_rows()) {
      const Plan& plan = results_[first].plan;
      std::printf("%8td %9td %8.1f µs  %-12s", plan.shape.kv_heads, plan.shape.kv_bytes_per_token(),
                  decode_.at(plan.shape.kv_heads) * 1e6, model_name(plan).c_str());
      for (const double percent : budgets(plan.origin)) {
        const auto loss = [&](const Result& each) { return std::optional(bits(loss_at(each, percent))); };
        std::printf(" %s", cell(over_seeds(first, loss), "%.3f", loss_width).c_str());
      }
      if (plan.origin == Origin::converted) {
        const auto closed = [&](const Result& each) -> std::optional<double> {
          const std::optional<double> share = closed_by(each, settings_.budgets.back());
          return share ? std::optional(100 * *share) : std::nullopt;
        };
        std::printf(" %s", cell(over_seeds(first, closed), "%.0f%%", closed_width).c_str());
      }
      std::printf("\n");
    }
  }

  /// A line for each loss: seed, KV heads, model, budget in percent, steps, bits per byte, share closed, KV bytes, decode microseconds.
  std::string csv() const {
    std::string text =
        "seed,kv_heads,model,budget_percent,steps,bits_per_byte,gap_closed,kv_bytes_per_token,"
        "decode_us,decode_context\n";
    for (const Result& each : results_) {
      for (const double percent : budgets(each.plan.origin)) {
        const std::optional<double> closed =
            each.plan.origin == Origin::converted ? closed_by(each, percent) : std::nullopt;
        text += std::to_string(each.plan.seed) + "," + std::to_string(each.plan.shape.kv_heads) + "," +
                each.plan.origin_name() + "," + number("%g", percent) + "," + std::to_string(step_at(each, percent)) +
                "," + number("%.6f", bits(loss_at(each, percent))) + "," + (closed ? number("%.4f", *closed) : "") +
                "," + std::to_string(each.plan.shape.kv_bytes_per_token()) + "," +
                number("%.3f", decode_.at(each.plan.shape.kv_heads) * 1e6) + "," + std::to_string(decode_context_) +
                "\n";
      }
    }
    return text;
  }

 private:
  static std::string number(const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    return text;
  }
  /// A number and its spread at the right of a column.
  static std::string cell(const std::optional<Spread>& spread, const char* format, int width) {
    std::string text = spread ? number(format, spread->mean) : "no gap";
    const bool several = spread && spread->deviation;
    if (several) text += " ± " + number(format, *spread->deviation);
    const auto shown = text.size() - (several ? 1 : 0);  // the sign is two bytes
    return std::string(static_cast<std::size_t>(width) - std::min(shown, static_cast<std::size_t>(width)), ' ') + text;
  }
  /// Percent of uptraining that there are losses of.
  std::vector<double> budgets(Origin origin) const {
    std::vector<double> all{0};
    if (origin != Origin::scratch) all.insert(all.end(), settings_.budgets.begin(), settings_.budgets.end());
    return all;
  }
  static std::string model_name(const Plan& plan) {
    const bool multi_head = plan.shape.kv_heads == plan.shape.query_heads;
    if (plan.origin == Origin::scratch) return multi_head ? "multi-head" : "from scratch";
    return plan.origin == Origin::continued ? "trained on" : plan.origin_name();
  }

  Index step_at(const Result& result, double percent) const {
    if (result.plan.origin == Origin::scratch) return settings_.recipe.steps;
    return percent > 0 ? budget_steps(settings_, percent) : 0;
  }
  double loss_at(const Result& result, double percent) const {
    const Index step = step_at(result, percent);
    for (const Evaluation& each : result.evaluations)
      if (each.step == step) return each.loss;
    throw std::logic_error(result.plan.name() + ": no evaluation after step " + std::to_string(step));
  }
  double multi_head_loss(std::uint64_t seed) const {
    for (const Result& each : results_)
      if (each.plan.seed == seed && each.plan.origin == Origin::scratch && each.plan.shape == settings_.shape)
        return each.evaluations.back().loss;
    throw std::logic_error("no multi-head model of seed " + std::to_string(seed));
  }
  std::optional<double> closed_by(const Result& result, double percent) const {
    return gap_closed(loss_at(result, 0), loss_at(result, percent), multi_head_loss(result.plan.seed));
  }

  /// The first seed's results, ordered by KV heads.
  std::vector<std::size_t> first_of_rows() const {
    std::vector<std::size_t> rows;
    for (std::size_t i = 0; i < results_.size(); ++i)
      if (results_[i].plan.seed == settings_.first_seed) rows.push_back(i);
    std::stable_sort(rows.begin(), rows.end(), [&](std::size_t a, std::size_t b) {
      return results_[a].plan.shape.kv_heads > results_[b].plan.shape.kv_heads;
    });
    return rows;
  }
  /// Of a number of each seed's result that corresponds to results_[first]; nothing if none of them has it.
  template <class Value>
  std::optional<Spread> over_seeds(std::size_t first, const Value& value) const {
    const std::size_t per_seed = results_.size() / static_cast<std::size_t>(settings_.seeds);
    std::vector<double> values;
    for (std::size_t i = first; i < results_.size(); i += per_seed)
      if (const std::optional<double> one = value(results_[i])) values.push_back(*one);
    return values.empty() ? std::nullopt : std::optional(spread_of(values));
  }

  Settings settings_;
  std::vector<Result> results_;
  DecodeTimes decode_;
  Index decode_context_;
};

}  // namespace uptrain
