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
    std::printf(
        "Held-out loss in bits per byte, %td bytes%s. \"Closed\" is the share of the gap between right after "
        "conversion and the\n"
        "multi-head model that uptraining of %g%% closes. KV bytes are those of a token in a bf16 cache; a decode step "
        "is its\n"
        "attention over %td tokens, all layers, one thread.\n\n",
        held_out_bytes(), settings_.seeds > 1 ? ", mean ± standard deviation over seeds" : "", settings_.budgets.back(),
        decode_context_);
    const int width = settings_.seeds > 1 ? 15 : 8;
    std::printf("%8s %9s %11s  %-12s %*s", "KV heads", "KV bytes", "decode step", "model", width, "+0%");
    for (const double percent : settings_.budgets)
      std::printf(" %*s", width, ("+" + number("%g", percent) + "%").c_str());
    std::printf(" %8s\n", "closed");
    for (const std::size_t first : first_of_rows()) {
      const Plan& plan = results_[first].plan;
      std::printf("%8td %9td %8.1f µs  %-12s", plan.shape.kv_heads, plan.shape.kv_bytes_per_token(),
                  decode_.at(plan.shape.kv_heads) * 1e6, model_name(plan).c_str());
      std::vector<double> all{0};
      all.insert(all.end(), settings_.budgets.begin(), settings_.budgets.end());
      if (plan.origin == Origin::scratch) all = {0};
      for (const double percent : all) {
        const Spread loss =
            over_seeds(first, [&](const Result& each) { return std::optional(bits(loss_at(each, percent))); });
        std::string cell = number("%.3f", loss.mean);
        if (loss.deviation) cell += " ± " + number("%.3f", *loss.deviation);
        std::printf(" %*s", width + (loss.deviation ? 1 : 0), cell.c_str());  // the sign is two bytes
      }
      if (plan.origin == Origin::converted) {
        const Spread closed =
            over_seeds(first, [&](const Result& each) { return closed_by(each, settings_.budgets.back()); });
        std::printf(" %7.0f%%", 100 * closed.mean);
      }
      std::printf("\n");
    }
  }

  /// A line for each loss: seed, KV heads, model, budget in percent, steps, bits per byte, share closed, KV bytes, decode microseconds.
  std::string csv() const {
    std::string text =
        "seed,kv_heads,model,budget_percent,steps,bits_per_byte,gap_closed,kv_bytes_per_token,decode_us,decode_"
        "context\n";
    for (const Result& each : results_) {
      std::vector<double> all{0};
      if (each.plan.origin != Origin::scratch)
        all.insert(all.end(), settings_.budgets.begin(), settings_.budgets.end());
      for (const double percent : all) {
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
  static std::string model_name(const Plan& plan) {
    const bool multi_head = plan.shape.kv_heads == plan.shape.query_heads;
    if (plan.origin == Origin::scratch) return multi_head ? "multi-head" : "from scratch";
    return plan.origin == Origin::continued ? "trained on" : plan.origin_name();
  }

  Index held_out_bytes() const { return settings_.held_out * settings_.shape.context; }

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
  /// A number of each seed's result that corresponds to results_[first].
  template <class Value>
  Spread over_seeds(std::size_t first, const Value& value) const {
    const std::size_t per_seed = results_.size() / static_cast<std::size_t>(settings_.seeds);
    std::vector<double> values;
    for (std::size_t i = first; i < results_.size(); i += per_seed)
      if (const std::optional<double> one = value(results_[i])) values.push_back(*one);
    return spread_of(values);
  }

  Settings settings_;
  std::vector<Result> results_;
  DecodeTimes decode_;
  Index decode_context_;
};

}  // namespace uptrain
