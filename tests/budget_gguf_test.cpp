// SPDX-License-Identifier: Apache-2.0
// Reading the metadata of GGUF files, examples/kv_budget: files made here give the shapes they describe, wrong ones are named, and
// no cut or changed byte leads to anything but a named error or a model.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "../examples/kv_budget/gguf_model.hpp"
#include "gqa/budget_presets.hpp"

namespace kv_budget {
namespace {

/// Writes a GGUF file piece by piece.
class Writer {
 public:
  template <class T>
  static std::string bytes(T value) {
    std::string text(sizeof value, '\0');
    std::memcpy(text.data(), &value, sizeof value);
    return text;
  }
  static std::string text(const std::string& value) { return bytes(static_cast<std::uint64_t>(value.size())) + value; }

  Writer& entry(const std::string& key, std::uint32_t type, const std::string& value) {
    body_ += text(key) + bytes(type) + value;
    ++entries_;
    return *this;
  }
  Writer& number(const std::string& key, std::uint32_t value) { return entry(key, 4, bytes(value)); }
  Writer& string(const std::string& key, const std::string& value) { return entry(key, 8, text(value)); }
  Writer& numbers(const std::string& key, const std::vector<std::int32_t>& values) {
    std::string all = bytes(std::uint32_t{5}) + bytes(static_cast<std::uint64_t>(values.size()));
    for (const std::int32_t value : values) all += bytes(value);
    return entry(key, 9, all);
  }
  Writer& booleans(const std::string& key, const std::vector<bool>& values) {
    std::string all = bytes(std::uint32_t{7}) + bytes(static_cast<std::uint64_t>(values.size()));
    for (const bool value : values) all += value ? '\1' : '\0';
    return entry(key, 9, all);
  }
  Writer& strings(const std::string& key, std::size_t count) {
    std::string all = bytes(std::uint32_t{8}) + bytes(static_cast<std::uint64_t>(count));
    for (std::size_t i = 0; i < count; ++i) all += text("token " + std::to_string(i));
    return entry(key, 9, all);
  }
  Writer& tensor(const std::string& name, const std::vector<std::uint64_t>& dims) {
    tensors_body_ += text(name) + bytes(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t dim : dims) tensors_body_ += bytes(dim);
    tensors_body_ += bytes(std::uint32_t{0}) + bytes(std::uint64_t{0});
    ++tensors_;
    return *this;
  }
  std::string file(std::uint32_t version = 3) const {
    return "GGUF" + bytes(version) + bytes(tensors_) + bytes(entries_) + body_ + tensors_body_;
  }

 private:
  std::string body_, tensors_body_;
  std::uint64_t entries_ = 0, tensors_ = 0;
};

NamedModel read(const std::string& file) {
  std::istringstream stream(file);
  return model_from_gguf(stream, static_cast<Index>(file.size()), "a.gguf");
}

/// The complaint, without the file's name.
std::string complaint(const std::string& file) {
  try {
    read(file);
  } catch (const ModelFileError& error) {
    const std::string what = error.what();
    EXPECT_EQ(what.find("a.gguf: "), 0u) << what;
    return what.substr(std::min<std::size_t>(what.size(), 8));
  }
  return "nothing thrown";
}

/// A Llama of 3 layers, 8 query heads over 2, hidden size 64, feed-forward 96, vocabulary 50.
Writer llama() {
  Writer w;
  w.string("general.architecture", "llama").string("general.name", "A small Llama");
  w.number("llama.block_count", 3).number("llama.context_length", 2048).number("llama.embedding_length", 64);
  w.number("llama.feed_forward_length", 96)
      .number("llama.attention.head_count", 8)
      .number("llama.attention.head_count_kv", 2);
  w.entry("llama.rope.freq_base", 6, Writer::bytes(10000.0f)).strings("tokenizer.ggml.tokens", 50);
  return w;
}

TEST(BudgetGguf, HeadsWidthsAndContextAreRead) {
  for (const std::uint32_t version : {2u, 3u}) {
    const NamedModel model = read(llama().file(version));
    EXPECT_EQ(model.name, "A small Llama");
    ASSERT_EQ(model.shape.kind_count, 1);
    const gqa::LayerKind& kind = model.shape.kinds[0];
    EXPECT_EQ(kind.count, 3);
    EXPECT_EQ(kind.query_heads, 8);
    EXPECT_EQ(kind.kv_heads, 2);
    EXPECT_EQ(kind.head_dim, 8);
    EXPECT_EQ(kind.width_of_values(), 8);
    EXPECT_EQ(model.shape.max_context, 2048);
    EXPECT_FALSE(gqa::count_parameters(model.shape).has_value());
    EXPECT_EQ(model.weight_bytes, 0);
  }
}

TEST(BudgetGguf, ParametersAreThoseOfTheTensors) {
  Writer w = llama();
  w.tensor("token_embd.weight", {64, 50}).tensor("output.weight", {64, 50}).tensor("output_norm.weight", {64});
  for (const char* layer : {"blk.0.", "blk.1.", "blk.2."}) {
    for (const char* name : {"attn_q.weight", "attn_output.weight"}) w.tensor(std::string(layer) + name, {64, 64});
    for (const char* name : {"attn_k.weight", "attn_v.weight"}) w.tensor(std::string(layer) + name, {64, 16});
    for (const char* name : {"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"})
      w.tensor(std::string(layer) + name, {64, 96});
    for (const char* name : {"attn_norm.weight", "ffn_norm.weight"}) w.tensor(std::string(layer) + name, {64});
  }
  const NamedModel model = read(w.file());
  const Index expected = 2 * 64 * 50 + 64 + 3 * (2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 96 + 2 * 64);
  ASSERT_TRUE(gqa::count_parameters(model.shape).has_value());
  EXPECT_EQ(gqa::count_parameters(model.shape)->total(), expected);
  EXPECT_EQ(gqa::count_parameters(model.shape)->output, 64 * 50);
  EXPECT_EQ(model.weight_bytes, static_cast<Index>(w.file().size()));
}

TEST(BudgetGguf, WithoutKvHeadsAllQueryHeadsHaveTheirOwn) {
  Writer w;
  w.string("general.architecture", "gpt2").number("gpt2.block_count", 2).number("gpt2.embedding_length", 64);
  w.number("gpt2.attention.head_count", 4);
  EXPECT_EQ(read(w.file()).shape.kinds[0].kv_heads, 4);
}

TEST(BudgetGguf, EachLayerMayHaveItsOwnHeads) {
  Writer w;
  w.string("general.architecture", "deci").number("deci.block_count", 4).number("deci.embedding_length", 64);
  w.numbers("deci.attention.head_count", {8, 8, 0, 8}).numbers("deci.attention.head_count_kv", {8, 2, 0, 2});
  w.number("deci.attention.key_length", 16);
  const gqa::ModelShape shape = read(w.file()).shape;
  ASSERT_EQ(shape.kind_count, 2);
  EXPECT_EQ(gqa::layer_count(shape), 3);  // one layer has no attention
  EXPECT_EQ(shape.kinds[1].count, 2);
  EXPECT_EQ(gqa::kv_bytes_per_token(shape, gqa::KvPlan{}), (8 + 2 + 2) * 16 * 2 * 2);
}

TEST(BudgetGguf, WindowsFollowThePatternOfTheFileOrOfTheArchitecture) {
  Writer gemma;  // Gemma 3 does not write its pattern down
  gemma.string("general.architecture", "gemma3")
      .number("gemma3.block_count", 26)
      .number("gemma3.embedding_length", 1152);
  gemma.number("gemma3.attention.head_count", 4).number("gemma3.attention.head_count_kv", 1);
  gemma.number("gemma3.attention.key_length", 256).number("gemma3.attention.value_length", 256);
  gemma.number("gemma3.attention.sliding_window", 512);
  const gqa::ModelShape read_gemma = read(gemma.file()).shape, preset = gqa::preset("gemma-3-1b");
  for (const Index tokens : {1, 512, 513, 100'000})
    EXPECT_EQ(gqa::kv_sequence_bytes(read_gemma, gqa::KvPlan{}, tokens),
              gqa::kv_sequence_bytes(preset, gqa::KvPlan{}, tokens));

  Writer gemma4;  // Gemma 4 does, with other widths for layers with a window, and layers that share
  gemma4.string("general.architecture", "gemma4")
      .number("gemma4.block_count", 35)
      .number("gemma4.embedding_length", 1536);
  gemma4.number("gemma4.attention.head_count", 8).number("gemma4.attention.head_count_kv", 1);
  gemma4.number("gemma4.attention.key_length", 512).number("gemma4.attention.value_length", 512);
  gemma4.number("gemma4.attention.key_length_swa", 256).number("gemma4.attention.value_length_swa", 256);
  gemma4.number("gemma4.attention.sliding_window", 512).number("gemma4.attention.shared_kv_layers", 20);
  std::vector<bool> pattern;
  for (int i = 0; i < 35; ++i) pattern.push_back((i + 1) % 5 != 0);
  gemma4.booleans("gemma4.attention.sliding_window_pattern", pattern);
  const gqa::ModelShape read_gemma4 = read(gemma4.file()).shape, preset4 = gqa::preset("gemma-4-e2b");
  for (const Index tokens : {1, 512, 513, 100'000}) {
    EXPECT_EQ(gqa::kv_sequence_bytes(read_gemma4, gqa::KvPlan{}, tokens),
              gqa::kv_sequence_bytes(preset4, gqa::KvPlan{}, tokens));
    EXPECT_EQ(gqa::kv_bytes_read(read_gemma4, gqa::KvPlan{}, tokens),
              gqa::kv_bytes_read(preset4, gqa::KvPlan{}, tokens));
  }

  const NamedModel unknown = read(llama().number("llama.attention.sliding_window", 16).file());
  EXPECT_EQ(unknown.shape.kinds[0].window, 0);
  ASSERT_FALSE(unknown.notes.empty());
  EXPECT_EQ(unknown.notes[0],
            "llama.attention.sliding_window is 16, but the file does not say which layers have it: taken as none");
}

TEST(BudgetGguf, LatentsAreRead) {
  Writer w;
  w.string("general.architecture", "deepseek2")
      .number("deepseek2.block_count", 61)
      .number("deepseek2.embedding_length", 7168);
  w.number("deepseek2.attention.head_count", 128).number("deepseek2.attention.head_count_kv", 1);
  w.number("deepseek2.attention.key_length", 576).number("deepseek2.attention.value_length", 512);
  w.number("deepseek2.attention.key_length_mla", 192).number("deepseek2.attention.value_length_mla", 128);
  w.number("deepseek2.attention.kv_lora_rank", 512).number("deepseek2.attention.q_lora_rank", 1536);
  w.number("deepseek2.rope.dimension_count", 64);
  const gqa::ModelShape shape = read(w.file()).shape, preset = gqa::preset("deepseek-v3");
  EXPECT_EQ(gqa::kv_sequence_bytes(shape, gqa::KvPlan{}, 1000), gqa::kv_sequence_bytes(preset, gqa::KvPlan{}, 1000));
  EXPECT_EQ(gqa::kv_bytes_per_token(gqa::with_kv_heads(shape, 128), gqa::KvPlan{}),
            gqa::kv_bytes_per_token(gqa::with_kv_heads(preset, 128), gqa::KvPlan{}));
}

TEST(BudgetGguf, ExpertsAreRead) {
  Writer w = llama();
  w.number("llama.expert_count", 8).number("llama.expert_used_count", 2).tensor("token_embd.weight", {64, 50});
  const gqa::ModelShape shape = read(w.file()).shape;
  ASSERT_EQ(shape.feed_forward_count, 1);
  EXPECT_EQ(shape.feed_forward[0].experts, 8);
  EXPECT_EQ(shape.feed_forward[0].active_experts, 2);
  EXPECT_EQ(shape.feed_forward[0].expert_intermediate, 96);
  EXPECT_EQ(shape.feed_forward[0].intermediate, 0);
}

TEST(BudgetGguf, APartOfASplitFileDoesNotKnowTheWeights) {
  Writer w = llama();
  w.entry("split.count", 2, Writer::bytes(std::uint16_t{3})).tensor("token_embd.weight", {64, 50});
  const NamedModel model = read(w.file());
  EXPECT_EQ(model.weight_bytes, 0);
  ASSERT_EQ(model.notes.size(), 1u);
  EXPECT_EQ(model.notes[0], "the file is one of several: give the size of all weights");
}

// --- complaints --------------------------------------------------------------------------------------------------------

TEST(BudgetGgufErrors, NameTheKeyItsValueAndWhatWasExpected) {
  const auto head = [] { return Writer().string("general.architecture", "llama"); };
  EXPECT_EQ(complaint("GGML0000000000000000"), "does not start with \"GGUF\"; expected a GGUF file");
  EXPECT_EQ(complaint(Writer().file(1)), "version is 1; expected 2 or 3");
  EXPECT_EQ(complaint(Writer().file(0x03000000)), "is big endian; expected a little-endian GGUF file");
  EXPECT_EQ(complaint(Writer().file()), "general.architecture is missing; expected a name, such as \"llama\"");
  EXPECT_EQ(complaint(Writer().number("general.architecture", 3).file()),
            "general.architecture is no string; expected a name, such as \"llama\"");
  EXPECT_EQ(complaint(head().file()), "llama.block_count is missing; expected a whole number of 1 or more");
  EXPECT_EQ(complaint(head().number("llama.block_count", 0).file()),
            "llama.block_count is 0; expected 1 to 1073741824");
  EXPECT_EQ(complaint(head().number("llama.block_count", 1'000'000).file()),
            "llama.block_count is 1000000; expected 100000 at most");
  EXPECT_EQ(complaint(head().string("llama.block_count", "3").file()),
            "llama.block_count is no whole number; expected one");
  EXPECT_EQ(complaint(llama().number("llama.block_count", 3).file()), "llama.block_count is there twice");
  EXPECT_EQ(complaint(llama().number("llama.nextn_predict_layers", 3).file()),
            "llama.nextn_predict_layers is 3; expected fewer than the blocks");
  EXPECT_EQ(complaint(llama().entry("x", 13, "").file()), "the type of x is 13; expected 0 to 12");
  EXPECT_EQ(complaint(llama().entry("x", 7, "\2").file()), "x is 2; expected a boolean, 0 or 1");
  EXPECT_EQ(complaint(llama().entry("x", 9, Writer::bytes(std::uint32_t{9}) + Writer::bytes(std::uint64_t{1})).file()),
            "the element type of x is 9; expected numbers, booleans or strings");
  Writer heads = head().number("llama.block_count", 2).number("llama.embedding_length", 66);
  heads.number("llama.attention.head_count", 4);
  EXPECT_EQ(complaint(heads.file()),
            "llama.embedding_length is 66; expected a multiple of the 4 query heads, or llama.attention.key_length");
  heads.number("llama.attention.key_length", 8).number("llama.attention.head_count_kv", 3);
  EXPECT_EQ(complaint(heads.file()), "llama.attention.head_count_kv[0] is 3; expected a divisor of the 4 query heads");
  Writer lists = head().number("llama.block_count", 2).number("llama.embedding_length", 64);
  lists.numbers("llama.attention.head_count", {4, 4, 4});
  EXPECT_EQ(complaint(lists.file()), "llama.attention.head_count is a list of 3; expected one for each of 2 layers");
  Writer none = head()
                    .number("llama.block_count", 2)
                    .number("llama.embedding_length", 64)
                    .number("llama.attention.head_count", 4);
  EXPECT_EQ(complaint(none.number("llama.attention.head_count_kv", 0).file()),
            "llama.attention.head_count_kv is 0 in all layers; expected a layer with a KV cache");
}

TEST(BudgetGguf, FilesAreReadByPath) {
  const std::string path = testing::TempDir() + "gqa_budget_test.gguf", file = llama().file();
  std::ofstream(path, std::ios::binary) << file;
  EXPECT_EQ(read_gguf(path).name, "A small Llama");
  EXPECT_THROW(read_gguf(testing::TempDir() + "gqa_no_such_file.gguf"), ModelFileError);
  EXPECT_THROW(read_gguf(testing::TempDir()), ModelFileError);
}

TEST(BudgetGgufErrors, HostileLengthsAreComparedWithTheFile) {
  constexpr std::uint64_t huge = ~std::uint64_t{0};
  const auto count = [](std::uint64_t tensors, std::uint64_t entries) {
    return "GGUF" + Writer::bytes(std::uint32_t{3}) + Writer::bytes(tensors) + Writer::bytes(entries);
  };
  EXPECT_EQ(complaint(count(huge, 0)),
            "tensor_count is 18446744073709551615; expected as many as the file has room for");
  EXPECT_EQ(complaint(count(0, huge)),
            "metadata_kv_count is 18446744073709551615; expected as many as the file has room for");
  EXPECT_EQ(complaint(count(0, 1) + Writer::bytes(huge) + std::string(20, 'x')),
            "ends within the key of metadata entry 0: 18446744073709551615 bytes are needed, 20 are left");
  EXPECT_NE(
      complaint(count(0, 1) + Writer::bytes(std::uint64_t{70000}) + std::string(70000, 'x')).find("has 70000 bytes"),
      std::string::npos);
  for (const std::uint32_t type : {0u, 5u, 8u, 10u, 12u})  // arrays
    EXPECT_NE(complaint(llama().entry("x", 9, Writer::bytes(type) + Writer::bytes(huge)).file()).find("ends within x"),
              std::string::npos);
  EXPECT_NE(complaint(llama().entry("x", 8, Writer::bytes(huge)).file()).find("ends within x"), std::string::npos);
  EXPECT_NE(complaint(llama().tensor("x", std::vector<std::uint64_t>(9, 1)).file()).find("dimensions of x is 9"),
            std::string::npos);
  const NamedModel saturated = read(llama().tensor("x", {huge, huge}).file());
  EXPECT_THROW(static_cast<void>(gqa::count_parameters(saturated.shape)), gqa::ArgumentError);
}

TEST(BudgetGgufErrors, EveryCutIsNamed) {
  const std::string file = llama().tensor("token_embd.weight", {64, 50}).file();
  for (std::size_t length = 0; length < file.size(); ++length) {
    const std::string what = complaint(file.substr(0, length));
    EXPECT_TRUE(what.find("ends within") == 0 || what.find("as the file has room for") != std::string::npos)
        << length << ": " << what;
  }
}

TEST(BudgetGgufErrors, AnyChangedByteGivesAModelOrANamedError) {
  const std::string file =
      llama().numbers("llama.rope.sections", {1, 2, 3}).tensor("token_embd.weight", {64, 50}).file();
  Index models = 0, errors = 0;
  for (std::size_t at = 0; at < file.size(); ++at)
    for (const int change : {1, 0x80, 0xff}) {
      std::string changed = file;
      changed[at] = static_cast<char>(changed[at] ^ change);
      try {
        const NamedModel model = read(changed);
        static_cast<void>(gqa::kv_bytes_per_token(model.shape, gqa::KvPlan{}));
        ++models;
      } catch (const ModelFileError&) {
        ++errors;
      } catch (const gqa::ArgumentError&) {
        ++errors;
      }
    }
  EXPECT_GT(models, 100);
  EXPECT_GT(errors, 100);
}

}  // namespace
}  // namespace kv_budget
