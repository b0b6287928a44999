// SPDX-License-Identifier: Apache-2.0
/// @file
/// The answers as text.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "budget_rows.hpp"
#include "gqa/budget_presets.hpp"
#include "sizes.hpp"

namespace kv_budget {

/// Columns as wide as their widest cell; the first to the left, the others to the right.
class Table {
 public:
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void print() const {
    std::vector<std::size_t> widths;
    for (const auto& row : rows_)
      for (std::size_t c = 0; c < row.size(); ++c) {
        if (c == widths.size()) widths.push_back(0);
        widths[c] = std::max(widths[c], row[c].size());
      }
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t c = 0; c < row.size(); ++c) {
        const std::string gap(widths[c] - row[c].size(), ' ');
        line += c == 0 ? row[c] + gap : "   " + gap + row[c];
      }
      line.erase(line.find_last_not_of(' ') + 1);
      std::puts(line.c_str());
    }
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

inline std::string plan_text(const gqa::KvPlan& plan) {
  std::string text = gqa::kv_format_name(plan.k_format);
  if (plan.v_format != plan.k_format) text = "keys in " + text + ", values in " + gqa::kv_format_name(plan.v_format);
  if (plan.page_size > 0) text += ", pages of " + with_commas(plan.page_size) + " tokens";
  if (!plan.windows_capped) text += ", every token kept";
  return text;
}

/// "52 layers: 32 query heads over 16 KV heads, D = 128, window 1,024".
inline std::string kind_text(const gqa::LayerKind& kind) {
  std::string text = std::to_string(kind.count) + (kind.count == 1 ? " layer: " : " layers: ") +
                     std::to_string(kind.query_heads) + " query heads over ";
  if (kind.values_in_keys)
    text +=
        "a latent of " + std::to_string(kind.head_dim) + ", values its first " + std::to_string(kind.width_of_values());
  else
    text += std::to_string(kind.kv_heads) + (kind.kv_heads == 1 ? " KV head" : " KV heads") +
            ", D = " + std::to_string(kind.head_dim) +
            (kind.width_of_values() != kind.head_dim ? ", Dv = " + std::to_string(kind.width_of_values()) : "");
  if (kind.window > 0) text += ", window " + with_commas(kind.window);
  if (kind.shares_kv) text += ", read another layer's cache";
  return text;
}

inline void print_model(const NamedModel& model, const Question& q) {
  std::printf("%s", model.name.c_str());
  if (const auto counted = gqa::count_parameters(model.shape)) {
    std::printf(": %.4g billion parameters", static_cast<double>(counted->total()) / 1e9);
    if (counted->active() != counted->total())
      std::printf(", %.3g active", static_cast<double>(counted->active()) / 1e9);
  }
  std::printf("\n");
  for (Index i = 0; i < model.shape.kind_count; ++i) std::printf("  %s\n", kind_text(model.shape.kinds[i]).c_str());
  for (const std::string& note : model.notes) std::printf("  note: %s\n", note.c_str());
  if (model.shape.max_context > 0 && q.context > model.shape.max_context)
    std::printf("  note: made for %s tokens, asked about %s\n", with_commas(model.shape.max_context).c_str(),
                with_commas(q.context).c_str());
  std::printf("KV cache: %s; %s tokens, %s", plan_text(q.plan).c_str(), with_commas(q.context).c_str(),
              q.sequences == 1 ? "1 sequence" : (with_commas(q.sequences) + " sequences").c_str());
  if (q.weights)
    std::printf("; weights %s%s", in_gb(*q.weights).c_str(),
                q.weights_are.empty() ? "" : (" (" + q.weights_are + ")").c_str());
  if (q.memory && !q.weights) std::printf("; weights not known, and not counted: give --weights");
  if (q.memory) std::printf("; devices of %s (%s)", in_gb(*q.memory).c_str(), in_gib(*q.memory).c_str());
  std::printf("\n\n");
}

inline std::string row_label(const Row& row) {
  return row.label + (row.published && row.label != "as published" ? " (as published)" : "");
}

/// "1/8" of the first row, or "2 x" it.
inline std::string share_text(const Row& row, const Row& first) {
  const double times_less = static_cast<double>(first.sequence_bytes) / static_cast<double>(row.sequence_bytes);
  if (times_less == 1) return "1";
  return times_less > 1 ? printed("1/%.4g", times_less) : printed("%.4g x", 1 / times_less);
}

inline void print_memory(const std::vector<Row>& rows, const Question& q) {
  Table table;
  std::vector<std::string> head{"", "a token", "a sequence", "", "share"};
  if (q.sequences > 1) head.push_back(with_commas(q.sequences) + " sequences");
  if (q.plan.page_size > 0) head.push_back("unused in pages");
  if (q.memory) head.insert(head.end(), {"devices", "in powers of two"});
  table.add(head);
  for (const Row& row : rows) {
    std::vector<std::string> cells{row_label(row), in_gb(row.token_bytes), in_gb(row.sequence_bytes),
                                   "= " + in_gib(row.sequence_bytes), share_text(row, rows.front())};
    if (q.sequences > 1) cells.push_back(in_gb(row.batch_bytes));
    if (q.plan.page_size > 0) cells.push_back(in_gb(row.waste_bytes));
    if (q.memory) {
      cells.push_back(with_commas(*row.devices));
      cells.push_back(row.parallel_devices ? with_commas(*row.parallel_devices) : "none");
    }
    table.add(cells);
  }
  table.print();
  if (q.memory)
    std::puts(
        "devices: bytes of weights and caches / memory of one; in powers of two: tensor parallel, KV heads whole");
}

inline void print_inverse(const std::vector<Row>& rows, const Question& q) {
  if (!q.memory) return;
  const Index left = left_beside_weights(q);
  std::printf("\n%s of %s %s %s", (with_commas(*q.devices) + (*q.devices == 1 ? " device" : " devices")).c_str(),
              in_gb(*q.memory).c_str(), *q.devices == 1 ? "holds" : "hold",
              in_gb(gqa::detail::times(*q.devices, *q.memory)).c_str());
  if (q.weights) std::printf(", %s beside the weights", left > 0 ? in_gb(left).c_str() : "nothing");
  std::printf(":\n");
  if (left <= 0) return;
  Table table;
  table.add({"", q.sequences == 1 ? "longest context" : "longest context of " + with_commas(q.sequences),
             "most sequences of " + with_commas(q.context) + " tokens"});
  for (const Row& row : rows) table.add({row_label(row), in_tokens(*row.longest), with_commas(*row.most)});
  table.print();

  const auto published = std::find_if(rows.begin(), rows.end(), [](const Row& row) { return row.published; });
  const Row& own = published == rows.end() ? rows.front() : *published;
  const std::string asked = (q.sequences == 1 ? "one sequence" : with_commas(q.sequences) + " sequences") + " of " +
                            with_commas(q.context) + " tokens";
  const auto format = gqa::widest_format_that_fits(own.shape, q.plan, q.context, q.sequences, left);
  std::printf("for %s, %s: %s\n", asked.c_str(), row_label(own).c_str(),
              format ? (std::string("the widest format that fits is ") + gqa::kv_format_name(*format)).c_str()
                     : "no format fits");
  const auto heads = gqa::most_kv_heads_that_fit(own.shape, q.plan, q.context, q.sequences, left);
  std::printf("for %s (%s): %s\n", asked.c_str(), plan_text(q.plan).c_str(),
              heads ? ("the most KV heads that fit are " + with_commas(*heads)).c_str() : "one KV head is too many");
}

inline void print_time(const std::vector<Row>& rows, const Question& q) {
  const bool decode = rows.front().cache_seconds.has_value();
  const bool prefill = rows.front().prefill_seconds || rows.front().prefill_attention_seconds;
  if (!decode && !prefill) return;
  Table table;
  std::vector<std::string> head{"at least"};
  const bool weights = rows.front().weights_seconds.has_value();
  if (decode && weights) head.push_back("weights");
  if (decode) head.insert(head.end(), {"cache", "decode step", "tokens/s"});
  if (rows.front().prefill_seconds) head.push_back("prefill of one");
  if (rows.front().prefill_attention_seconds) head.push_back("its attention");
  if (rows.front().measured) head.insert(head.end(), {"GB/s", "prefill GFLOP/s"});
  table.add(head);
  for (const Row& row : rows) {
    std::vector<std::string> cells{row_label(row)};
    const double step = row.cache_seconds.value_or(0) + row.weights_seconds.value_or(0);
    if (decode && weights) cells.push_back(in_seconds(*row.weights_seconds));
    if (decode)
      cells.insert(cells.end(), {in_seconds(*row.cache_seconds), in_seconds(step),
                                 printed("%.3g", static_cast<double>(q.sequences) / step)});
    if (row.prefill_seconds) cells.push_back(in_seconds(*row.prefill_seconds));
    if (row.prefill_attention_seconds) cells.push_back(in_seconds(*row.prefill_attention_seconds));
    if (row.measured)
      cells.insert(cells.end(),
                   {printed("%.1f", row.measured->bandwidth / 1e9), printed("%.0f", row.measured->flops / 1e9)});
    table.add(cells);
  }
  std::printf("\n");
  table.print();
}

/// All formats at the model's shape: what a sequence takes, and how many bits that is a number.
inline void print_formats(const NamedModel& model, const Question& q) {
  Table table;
  table.add({"format", "row of 128", "bits a number", "a token", "a sequence", "in the library"});
  for (const gqa::KvFormatInfo& info : gqa::kKvFormats) {
    gqa::KvPlan plan = q.plan;
    plan.k_format = plan.v_format = info.format;
    const Index row = gqa::kv_row_bytes(info.format, 128);
    std::vector<std::string> cells{info.name,
                                   std::to_string(row),
                                   printed("%.3g", static_cast<double>(row) / 16),
                                   "-",
                                   "-",
                                   info.in_library ? "yes" : "not yet"};
    if (gqa::detail::formats_fit_widths(model.shape, info.format, info.format)) {
      cells[3] = in_gb(gqa::kv_bytes_per_token(model.shape, plan));
      cells[4] = in_gb(gqa::kv_sequence_bytes(model.shape, plan, q.context));
    }
    table.add(cells);
  }
  table.print();
}

inline void print_presets() {
  Table table;
  table.add(
      {"preset", "layers", "query heads", "KV heads", "D", "windows", "parameters", "context", "a token in bf16"});
  for (Index i = 0; i < gqa::preset_count; ++i) {
    const gqa::ModelShape shape = gqa::preset(gqa::preset_name(i));
    const gqa::LayerKind& first = shape.kinds[0];
    const auto counted = gqa::count_parameters(shape);
    const Index heads = common_kv_heads(shape);
    std::string windows;
    for (Index k = 0; k < shape.kind_count; ++k)
      if (const Index w = shape.kinds[k].window; w > 0) windows = std::to_string(w);
    table.add({std::string(gqa::preset_name(i)), std::to_string(gqa::layer_count(shape)),
               std::to_string(first.query_heads),
               first.values_in_keys ? "latent"
               : heads > 0          ? std::to_string(heads)
                                    : "mixed",
               std::to_string(first.head_dim), windows,
               counted ? printed("%.4g", static_cast<double>(counted->total()) / 1e9) + " B" : "",
               shape.max_context > 0 ? with_commas(shape.max_context) : "",
               in_gb(gqa::kv_bytes_per_token(shape, gqa::KvPlan{}))});
  }
  table.print();
}

/// Several models beside each other, each as published.
inline void print_comparison(const std::vector<NamedModel>& models, const std::vector<Question>& questions) {
  Table table;
  const Question& q = questions.front();
  std::vector<std::string> head{
      plan_text(q.plan) + ", " + with_commas(q.context) + " tokens", "layers", "Hq", "Hkv", "a token", "a sequence"};
  if (q.sequences > 1) head.push_back(with_commas(q.sequences) + " sequences");
  head.push_back("weights");
  if (q.memory) head.insert(head.end(), {"devices", "in powers of two"});
  if (q.bandwidth) head.push_back("decode step");
  table.add(head);
  for (std::size_t i = 0; i < models.size(); ++i) {
    std::vector<Row> rows{row_of(models[i].name, models[i].shape, true)};
    answer(rows, questions[i], models[i].shape);
    const Row& row = rows.front();
    std::vector<std::string> cells{models[i].name,
                                   std::to_string(gqa::layer_count(row.shape)),
                                   std::to_string(row.shape.kinds[0].query_heads),
                                   row.kv_heads > 0                    ? std::to_string(row.kv_heads)
                                   : row.shape.kinds[0].values_in_keys ? "latent"
                                                                       : "mixed",
                                   in_gb(row.token_bytes),
                                   in_gb(row.sequence_bytes)};
    if (q.sequences > 1) cells.push_back(in_gb(row.batch_bytes));
    cells.push_back(questions[i].weights ? in_gb(*questions[i].weights) : "?");
    if (q.memory) {
      cells.push_back(with_commas(*row.devices));
      cells.push_back(row.parallel_devices ? with_commas(*row.parallel_devices) : "none");
    }
    if (q.bandwidth) cells.push_back(in_seconds(row.cache_seconds.value_or(0) + row.weights_seconds.value_or(0)));
    table.add(cells);
  }
  table.print();
}

}  // namespace kv_budget
