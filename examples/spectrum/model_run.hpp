// SPDX-License-Identifier: Apache-2.0
/// @file
/// One model with all its numbers of KV heads: measured, and checked.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "../../benchmarks/measure.hpp"
#include "../../benchmarks/peak_of_call.hpp"
#include "layer.hpp"

namespace spectrum {

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
  // Of quantised caches.
  Index bf16_bytes_per_token = 0;
  double bf16_decode_seconds = 0;  ///< of the same step over a bf16 cache
  double max_error_of_values = 0;  ///< against keys and values before they were stored
};

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
    static std::array<HugeBuffer, 8> buffers;
    return buffers[which];
  }
  HugeBuffer& all_heads() { return buffer(0); }
  HugeBuffer& repeated() { return buffer(1); }

  /// Caches of each number of KV heads, in buffers from one on.
  std::vector<std::unique_ptr<Layer>> layers_of(const Settings& settings, std::size_t first_buffer) {
    const std::size_t head = Layer::head_bytes(model_, settings), heads = static_cast<std::size_t>(model_.query_heads);
    if (all_heads().size() < 2 * head * heads) {
      all_heads() = HugeBuffer();
      all_heads() = HugeBuffer(2 * head * heads);
    }
    checkers_.run([&](int member) {
      for (Index h = member; h < model_.query_heads; h += checkers_.size()) {
        std::byte* const place = all_heads().data() + static_cast<std::size_t>(h) * head;
        inputs_.keys(h, settings.context, settings.kv_type, place);
        inputs_.values(h, settings.context, settings.kv_type, place + heads * head);
      }
    });
    std::vector<std::unique_ptr<Layer>> layers;
    for (const Index kv_heads : kv_head_counts(model_))
      layers.push_back(std::make_unique<Layer>(model_, settings, kv_heads, all_heads(),
                                               buffer(first_buffer + layers.size()), team_));
    return layers;
  }

  void make_caches() {
    if (settings_.quantised()) {
      Settings plain = settings_;
      plain.kv_type = gqa::ElementType::bf16;
      bf16_layers_ = layers_of(plain, 5);
    }
    layers_ = layers_of(settings_, 2);
    for (const std::unique_ptr<Layer>& layer : layers_) {
      decode_rows_.push_back(std::make_unique<Rows>(inputs_, model_, settings_.context - 1, 1, settings_.query_type()));
      Row row;
      row.kv_heads = layer->kv_heads();
      row.bytes_per_token = layer->bytes_per_token();
      rows_.push_back(row);
    }
  }

  void decode() {
    std::vector<Side> sides{gqa::bench::limit_side(limits_, Limit::memory_read)};
    double slowest = 0;
    for (const auto* const layers : {&layers_, &bf16_layers_})
      for (std::size_t i = 0; i < layers->size(); ++i) {
        const TimedCall step([this, layers, i] { (*layers)[i]->decode(*decode_rows_[i]); });
        slowest = std::max(slowest, step.estimate());
        sides.push_back([step] { return step(); });
      }
    const std::vector<double> medians = gqa::bench::take_turns(sides, 1.5, slowest > 0.1 ? 3 : 9);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      Row& row = rows_[i];
      row.read_rate = medians[0];
      row.decode_seconds = medians[1 + i];
      row.kv_rate = static_cast<double>(row.bytes_per_token * settings_.context) / row.decode_seconds;
      if (settings_.quantised()) {
        row.bf16_bytes_per_token = bf16_layers_[i]->bytes_per_token();
        row.bf16_decode_seconds = medians[1 + rows_.size() + i];
      }
    }
    // What is decoded last is what is checked: the rows' results are those of the caches in question.
    for (std::size_t i = 0; i < rows_.size(); ++i) layers_[i]->decode(*decode_rows_[i]);
  }

  void prefill() {
    const Index tokens = settings_.prefill > 0 ? std::min(settings_.prefill, settings_.context) : affordable_prefill();
    const Limit peak = gqa::bench::peak_of_call(settings_.path, settings_.query_type(), settings_.kv_type);
    std::vector<Side> sides;
    double slowest = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      prefill_rows_.push_back(std::make_unique<Rows>(inputs_, model_, 0, tokens, settings_.query_type()));
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
      const Rows rows(inputs_, model_, 0, tokens, settings_.query_type());
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
      if (settings_.quantised())
        rows_[i].max_error_of_values = layers_[i]->max_error_of_values(*decode_rows_[i], inputs_, {0}, checkers_);
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
  std::vector<std::unique_ptr<Layer>> layers_, bf16_layers_;
  std::vector<std::unique_ptr<Rows>> decode_rows_, prefill_rows_;
  std::vector<Row> rows_;
};

}  // namespace spectrum
