// SPDX-License-Identifier: Apache-2.0
// The parts of examples/kv_budget that work out and show: sizes as people write them, rows, JSON and the picture.
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "../examples/kv_budget/chart.hpp"
#include "../examples/kv_budget/sizes.hpp"
#include "../examples/kv_budget/tables.hpp"
#include "../examples/kv_budget/to_json.hpp"

namespace kv_budget {
namespace {

TEST(BudgetSizes, PowersOfTenAndOfTwoAreKeptApart) {
  EXPECT_EQ(parse_size("4096"), 4096);
  EXPECT_EQ(parse_size("7B"), 7);
  EXPECT_EQ(parse_size("1kB"), 1000);
  EXPECT_EQ(parse_size("1KiB"), 1024);
  EXPECT_EQ(parse_size("80GB"), 80'000'000'000);
  EXPECT_EQ(parse_size("80 GB"), 80'000'000'000);
  EXPECT_EQ(parse_size("80GiB"), 85'899'345'920);
  EXPECT_EQ(parse_size("1.5TB"), 1'500'000'000'000);
  EXPECT_EQ(parse_size("0.5TiB"), Index{1} << 39);
  EXPECT_EQ(parse_amount("3.35TB"), 3.35e12);
  EXPECT_EQ(parse_amount("990e12"), 990e12);
}

TEST(BudgetSizes, WhatIsNoSizeIsNamed) {
  const auto complaint = [](const char* text) {
    try {
      parse_size(text);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("nothing thrown");
  };
  EXPECT_EQ(complaint("much"), "\"much\" is no size; expected a number and a unit, as 80GiB or 140GB");
  for (const char* text : {"", "GB", "-1GB", "nan", "inf", " 1GB"})
    EXPECT_NE(complaint(text).find("is no size"), std::string::npos) << text;
  for (const char* text : {"1gb", "1Gb", "1GBB", "1G", "1 GB "})
    EXPECT_NE(complaint(text).find("ends in"), std::string::npos) << text;
  EXPECT_NE(complaint("9223372036854775808").find("63 bits"), std::string::npos);
  EXPECT_NE(complaint("1e30GB").find("63 bits"), std::string::npos);
}

TEST(BudgetSizes, ArePrintedAsTheyAreRead) {
  EXPECT_EQ(in_gb(Index{343'597'383'680}), "343.6 GB");
  EXPECT_EQ(in_gib(Index{343'597'383'680}), "320.0 GiB");
  EXPECT_EQ(in_gb(Index{999}), "999 B");
  EXPECT_EQ(in_gb(Index{999'960}), "1.0 MB");
  EXPECT_EQ(in_gib(Index{512} << 20), "512.0 MiB");
  EXPECT_EQ(with_commas(0), "0");
  EXPECT_EQ(with_commas(999), "999");
  EXPECT_EQ(with_commas(131072), "131,072");
  EXPECT_EQ(with_commas(-1234567), "-1,234,567");
  EXPECT_EQ(in_tokens(gqa::kUnlimited), "any");
  EXPECT_EQ(in_seconds(0.00342), "3.42 ms");
}

NamedModel named(const char* name) {
  NamedModel model;
  model.name = name;
  model.shape = gqa::preset(name);
  return model;
}

Question story() {
  Question q;
  q.context = 131072;
  q.memory = parse_size("80GB");
  q.weights = parse_size("140GB");
  return q;
}

TEST(BudgetRows, ThePublishedStory) {
  const NamedModel model = named("llama-2-70b");
  std::vector<Row> rows = rows_for(model, {});
  Question q = story();
  complete(q, model);
  answer(rows, q, model.shape);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].label, "MHA");
  EXPECT_EQ(rows[1].label, "GQA-8");
  EXPECT_EQ(rows[2].label, "MQA");
  EXPECT_TRUE(rows[1].published);
  EXPECT_FALSE(rows[0].published);
  EXPECT_EQ(rows[0].sequence_bytes, 343'597'383'680);
  EXPECT_EQ(rows[1].sequence_bytes, 42'949'672'960);
  EXPECT_EQ(rows[0].devices, 7);
  EXPECT_EQ(rows[1].devices, 3);
  EXPECT_EQ(rows[0].parallel_devices, 8);
  EXPECT_EQ(rows[1].parallel_devices, 4);
  EXPECT_EQ(q.devices, 2);  // what the weights alone need
  EXPECT_EQ(rows[1].longest, 20'000'000'000 / 327680);
  EXPECT_EQ(rows[2].most, 20'000'000'000 / rows[2].sequence_bytes);
}

TEST(BudgetRows, WantedHeadsAreThoseShownInTheirOrder) {
  const NamedModel model = named("llama-2-70b");
  const std::vector<Row> rows = rows_for(model, {1, 8, 64, 16});
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0].kv_heads, 1);
  EXPECT_TRUE(rows[1].published);
  EXPECT_EQ(rows[2].label, "MHA");
  EXPECT_EQ(rows[3].label, "GQA-16");
  EXPECT_THROW(rows_for(model, {5}), gqa::ArgumentError);
}

TEST(BudgetRows, ModelsAtTheExtremesHaveNoRowTwice) {
  const std::vector<Row> mha = rows_for(named("llama-2-7b"), {}), mqa = rows_for(named("falcon-7b"), {});
  ASSERT_EQ(mha.size(), 2u);
  EXPECT_TRUE(mha[0].published);
  ASSERT_EQ(mqa.size(), 2u);
  EXPECT_TRUE(mqa[1].published);
  const std::vector<Row> latent = rows_for(named("deepseek-v3"), {}), mixed = rows_for(named("gemma-4-31b"), {});
  ASSERT_EQ(latent.size(), 3u);
  EXPECT_EQ(latent[1].label, "MLA");
  ASSERT_EQ(mixed.size(), 3u);
  EXPECT_EQ(mixed[1].label, "as published");
}

TEST(BudgetRows, TimesAreBytesAndOperationsOverRates) {
  const NamedModel model = named("llama-3-8b");
  Question q;
  q.context = 8192;
  q.sequences = 4;
  q.bandwidth = 1e12;
  q.flops = 1e15;
  complete(q, model);
  EXPECT_EQ(*q.weights, 2 * 8'030'261'248);
  std::vector<Row> rows = rows_for(model, {});
  answer(rows, q, model.shape);
  EXPECT_DOUBLE_EQ(*rows[1].cache_seconds, 4.0 * 8192 * 131072 / 1e12);
  EXPECT_DOUBLE_EQ(*rows[0].cache_seconds, 4 * *rows[1].cache_seconds);
  EXPECT_DOUBLE_EQ(*rows[1].weights_seconds, 2.0 * (8'030'261'248 - 128256 * 4096) / 1e12);
  EXPECT_EQ(*rows[0].weights_seconds, *rows[2].weights_seconds);
  EXPECT_DOUBLE_EQ(*rows[1].prefill_seconds, gqa::prefill_flops(model.shape, 8192).total() / 1e15);
  EXPECT_FALSE(rows[1].prefill_attention_seconds.has_value());
}

TEST(BudgetRows, MeasuredRatesAreEachRowsOwn) {
  const NamedModel model = named("llama-3-8b");
  std::vector<Row> rows = rows_for(model, {});
  rows[0].measured = {40e9, 1e12};
  rows[1].measured = {30e9, 2e12};
  rows[2].measured = {10e9, 4e12};
  Question q;
  q.context = 1000;
  complete(q, model);
  answer(rows, q, model.shape);
  EXPECT_DOUBLE_EQ(*rows[2].cache_seconds, 1000.0 * 16384 / 10e9);
  EXPECT_DOUBLE_EQ(*rows[2].weights_seconds, *rows[0].weights_seconds);  // at the best of the rates
  EXPECT_DOUBLE_EQ(*rows[1].prefill_attention_seconds, gqa::prefill_flops(model.shape, 1000).attention / 2e12);
}

TEST(BudgetJson, HasTheExactNumbers) {
  const NamedModel model = named("llama-2-70b");
  std::vector<Row> rows = rows_for(model, {});
  Question q = story();
  complete(q, model);
  answer(rows, q, model.shape);
  const auto made = nlohmann::json::parse(to_json(model, q, rows).dump());
  EXPECT_EQ(made["model"], "llama-2-70b");
  EXPECT_EQ(made["parameters"], 68'976'648'192);
  EXPECT_EQ(made["memory"], 80'000'000'000);
  ASSERT_EQ(made["rows"].size(), 3u);
  EXPECT_EQ(made["rows"][0]["bytes_per_sequence"], 343'597'383'680);
  EXPECT_EQ(made["rows"][0]["devices_in_powers_of_two"], 8);
  EXPECT_EQ(made["rows"][1]["kv_heads"], 8);
  EXPECT_EQ(made["rows"][1]["published"], true);
  const NamedModel mistral = named("mistral-7b-v0.1");
  std::vector<Row> capped = rows_for(mistral, {});
  q.weights = 0;
  answer(capped, q, mistral.shape);
  EXPECT_TRUE(to_json(mistral, q, capped)["rows"][1]["longest_context"].is_null());  // no limit
}

TEST(BudgetChart, ContextsDoubleUpToTheOneAsked) {
  EXPECT_EQ(contexts_up_to(131072, 4), (std::vector<Index>{16384, 32768, 65536, 131072}));
  EXPECT_EQ(contexts_up_to(100, 3), (std::vector<Index>{25, 50, 100}));
  EXPECT_EQ(contexts_up_to(1, 4), (std::vector<Index>{1}));
}

TEST(BudgetChart, BarsGrowByEighths) {
  EXPECT_EQ(bar(0), "");
  EXPECT_EQ(bar(1), "▏");
  EXPECT_EQ(bar(8), "█");
  EXPECT_EQ(bar(17), "██▏");
}

TEST(BudgetChart, ThePictureIsWellFormedAndWithinItsBounds) {
  for (const Index context : {1, 2, 100, 131072}) {
    const NamedModel model = named("gemma-3-27b");
    Question q;
    q.context = context;
    const std::vector<Row> rows = rows_for(model, {});
    const std::vector<Curve> curves = curves_of(rows);
    const std::string svg = SvgChart(curves, q, "a < b & c").draw(parse_size("24GB"));
    EXPECT_EQ(svg.find("<svg "), 0u);
    EXPECT_TRUE(svg.ends_with("</svg>\n"));
    EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
    EXPECT_NE(svg.find("24.0 GB beside the weights"), std::string::npos);
    std::size_t lines = 0;
    for (std::size_t at = svg.find("<polyline"); at != std::string::npos; at = svg.find("<polyline", at + 1)) {
      ++lines;
      const std::size_t from = svg.find("points=\"", at) + 8;
      std::istringstream points(svg.substr(from, svg.find('"', from) - from));
      std::size_t count = 0;
      for (double x = 0, y = 0; points >> x && points.get() == ',' && points >> y; ++count) {
        EXPECT_TRUE(x >= 76 && x <= 600 && y >= 48 && y <= 400) << x << ',' << y;
      }
      EXPECT_EQ(count, 97u);
    }
    EXPECT_EQ(lines, curves.size());
  }
}

}  // namespace
}  // namespace kv_budget
