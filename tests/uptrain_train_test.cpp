// SPDX-License-Identifier: Apache-2.0
// examples/uptrain: its gradients with the library's attention beside double precision, training that learns, the same bits for any number of
// threads and after any interruption, what is held out, and what is refused.
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <limits>

#include "../examples/uptrain/report.hpp"
#include "gqa/thread_pool.hpp"
#include "support/uptrain_double.hpp"

namespace uptrain::test {
namespace {

std::string fresh_folder() {
  const std::string folder =
      testing::TempDir() + "gqa_uptrain_" + testing::UnitTest::GetInstance()->current_test_info()->name();
  std::filesystem::remove_all(folder);
  return folder;
}

/// What `call` throws, in words.
template <class Call>
std::string complaint(const Call& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing thrown";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Rounding errors of f32 pass through at most this many dependent operations: each layer's norms, products over dim, hidden, a head's width
/// and the tokens that a query sees, forward and back; and the classifier's. To first order a gradient is then off by that many units of
/// rounding of the sum of magnitudes that its elements are made of; heavy cancellation aside that is of its own length.
TEST(UptrainTrain, GradientIsThatOfDoublePrecision) {
  for (const Index kv_heads : {4, 2, 1}) {
    SCOPED_TRACE(kv_heads);
    ModelShape shape = kTinyShape;
    shape.kv_heads = kv_heads;
    const Model model = initial_model(shape, 11);
    const ModelOf<double> exact{shape, model.values.cast<double>()};
    const std::vector<std::uint8_t> bytes = word_bytes(37, 12);
    const Tokens tokens{3, 12, std::span(bytes).first(36), std::span(bytes).last(36)};
    Activations<float> kept;
    Activations<double> exact_kept;
    Model gradient{shape, Eigen::VectorXf(model.values.size())};
    ModelOf<double> exact_gradient{shape, VectorOf<double>(model.values.size())};
    const Attention attention(shape);
    const double loss = forward(model, attention, tokens, kept, 1.0f);
    backward(model, attention, tokens, kept, gradient);
    const DoubleAttention double_attention(shape);
    const double exact_loss = forward(exact, double_attention, tokens, exact_kept, 1.0);
    backward(exact, double_attention, tokens, exact_kept, exact_gradient);

    const Index layer = 6 * shape.dim + 3 * shape.hidden + 2 * shape.head_dim() + 2 * shape.context;
    const auto operations = static_cast<double>(2 * (shape.layers * layer + shape.dim + shape.vocabulary));
    const double unit = static_cast<double>(std::numeric_limits<float>::epsilon()) / 2;
    EXPECT_NEAR(loss, exact_loss, operations * unit * exact_loss);
    for (const TensorPlace& place : tensor_places(shape)) {
      const VectorOf<double> expected = exact_gradient.values.segment(place.offset, place.size());
      const VectorOf<double> error = gradient.values.segment(place.offset, place.size()).cast<double>() - expected;
      EXPECT_LE(error.norm(), operations * unit * expected.norm()) << place.name;
      EXPECT_GT(expected.norm(), 0) << place.name;
    }
  }
}

TEST(UptrainTrain, LearnsAFewBytesByHeart) {
  const Text text(word_bytes(5000, 21), kTinyShape.context);
  const Batch batch = training_batch(text, 22, 0, 4);
  gqa::SerialExecutor serial;
  Trainer trainer(kTinyShape, serial);
  TrainingState state(initial_model(kTinyShape, 23));
  const Recipe recipe{.rate = 1e-2, .final_rate = 1e-3, .warm_up = 10, .steps = 300, .weight_decay = 0};
  double first = 0, last = 0;
  for (Index i = 0; i < recipe.steps; ++i) {
    last = trainer.step(state, recipe, batch);
    if (i == 0) first = last;
  }
  EXPECT_NEAR(first, std::log(256.0), 1.0);
  EXPECT_LT(last, 0.5);  // what is left: the first bytes of sequences, which nothing foretells
  EXPECT_LT(trainer.evaluate(state.model, batch), last + 0.1);
}

TEST(UptrainTrain, AnyNumberOfThreadsGivesTheSameBits) {
  const Text text(word_bytes(5000, 31), kTinyShape.context);
  const Recipe recipe{.rate = 1e-2, .final_rate = 1e-3, .warm_up = 2, .steps = 6};
  const Batch held_out(text, text.held_out_starts(7));
  std::optional<TrainingState> expected;
  double expected_loss = 0;
  for (const int threads : {1, 2, 3}) {
    const gqa::ThreadPoolExecutor executor(threads);
    Trainer trainer(kTinyShape, executor);
    TrainingState state(initial_model(kTinyShape, 32));
    for (Index i = 0; i < recipe.steps; ++i) trainer.step(state, recipe, training_batch(text, 33, i, 9));
    const double loss = trainer.evaluate(state.model, held_out);
    if (!expected) {
      expected = state;
      expected_loss = loss;
      EXPECT_FALSE(state.model.values == initial_model(kTinyShape, 32).values);
    }
    EXPECT_TRUE(state.model.values == expected->model.values) << threads;
    EXPECT_TRUE(state.moments.first == expected->moments.first && state.moments.second == expected->moments.second)
        << threads;
    EXPECT_EQ(loss, expected_loss) << threads;
  }
}

TEST(UptrainTrain, LearningRateRisesAndFalls) {
  const Recipe recipe{.rate = 2.0, .final_rate = 0.5, .warm_up = 4, .steps = 104};
  EXPECT_DOUBLE_EQ(rate_at(recipe, 0), 0.5);
  EXPECT_DOUBLE_EQ(rate_at(recipe, 3), 2.0);
  EXPECT_DOUBLE_EQ(rate_at(recipe, 4), 2.0);
  EXPECT_DOUBLE_EQ(rate_at(recipe, 54), 1.25);
  EXPECT_DOUBLE_EQ(rate_at(recipe, 104), 0.5);
}

TEST(UptrainTrain, AdamWIsWhatThePaperSays) {
  const Recipe recipe{.rate = 0.1, .final_rate = 0.1, .warm_up = 0, .steps = 2, .weight_decay = 0.5, .clip = 1e9};
  Model model = initial_model(kTinyShape, 41);
  Moments moments = Moments::none(model.values.size());
  const VectorOf<double> start = model.values.cast<double>();
  VectorOf<double> expected = start, m = 0 * start, v = 0 * start;
  Eigen::VectorXf sum;
  gqa::SerialExecutor serial;
  for (int step = 1; step <= 2; ++step) {
    std::vector<Model> gradients(
        3, Model{kTinyShape, initial_model(kTinyShape, static_cast<std::uint64_t>(50 + step)).values});
    const VectorOf<double> g = 3 * gradients[0].values.cast<double>();
    const double length =
        adamw_step(recipe, step - 1, parameter_pieces(kTinyShape), gradients, model, moments, serial, sum);
    EXPECT_NEAR(length, g.norm(), 1e-6 * g.norm());
    m = 0.9 * m + 0.1 * g;
    v = 0.95 * v + 0.05 * g.cwiseProduct(g);
    for (const TensorPlace& place : tensor_places(kTinyShape))
      for (Index i = place.offset; i < place.offset + place.size(); ++i)
        expected[i] = expected[i] * (place.is_matrix ? 1 - 0.1 * 0.5 : 1.0) -
                      0.1 * (m[i] / (1 - std::pow(0.9, step))) / (std::sqrt(v[i] / (1 - std::pow(0.95, step))) + 1e-8);
  }
  const VectorOf<double> error = model.values.cast<double>() - expected;
  // A step is 0.1 times a quotient below 2, in about twenty roundings; the parameters themselves are below 2.
  EXPECT_LE(error.cwiseAbs().maxCoeff(), 2 * 20 * 0x1p-24 * 2);
}

TEST(UptrainText, NoWindowOfTrainingTouchesWhatIsHeldOut) {
  const Text text(word_bytes(9000, 61), kTinyShape.context);
  std::vector<int> held_out(9000, 0), seen(9000, 0);
  for (const Stretch& each : text.held_out())
    for (Index i = each.first; i < each.last; ++i) held_out[static_cast<std::size_t>(i)] = 1;
  for (const Index start : text.held_out_starts(1 << 20))
    for (Index i = start; i < start + text.window_bytes(); ++i) {
      EXPECT_EQ(held_out[static_cast<std::size_t>(i)], 1);
      EXPECT_EQ(seen[static_cast<std::size_t>(i)]++, 0) << "held-out windows overlap";
    }
  for (Index step = 0; step < 4000; ++step) {
    const Index start = text.training_start(62, step, step % 5);
    for (Index i = start; i < start + text.window_bytes(); ++i) {
      ASSERT_EQ(held_out[static_cast<std::size_t>(i)], 0) << "step " << step;
      seen[static_cast<std::size_t>(i)] = 2;
    }
  }
  Index trained = 0;
  for (const Stretch& each : text.training())
    for (Index i = each.first; i < each.last; ++i) trained += seen[static_cast<std::size_t>(i)] == 2;
  EXPECT_GT(trained, 8000) << "some of the training part is never drawn";
  EXPECT_EQ(text.training_start(62, 17, 3), text.training_start(62, 17, 3));
  EXPECT_NE(text.training_start(62, 17, 3), text.training_start(63, 17, 3));
  EXPECT_EQ(text.held_out_starts(5).size(), 5u);
}

TEST(UptrainText, WhatCannotBeReadIsNamed) {
  EXPECT_TRUE(contains(complaint([] { read_text("/no/such/text"); }), "/no/such/text: No such file"));
  EXPECT_TRUE(contains(complaint([] { Text(word_bytes(600, 1), 12); }),
                       "the text is 600 bytes; expected at least 650 for sequences of 12"));
  const std::string folder = fresh_folder();
  std::filesystem::create_directories(folder);
  const std::vector<std::uint8_t> bytes = word_bytes(3000, 71);
  const std::string packed = folder + "/text.gz";
  const gzFile file = gzopen(packed.c_str(), "wb");
  gzwrite(file, bytes.data(), 3000);
  gzclose(file);
  EXPECT_EQ(read_text(packed), bytes);
  std::filesystem::resize_file(packed, std::filesystem::file_size(packed) / 2);
  EXPECT_TRUE(contains(complaint([&] { read_text(packed); }), packed));
}

/// A whole experiment of the smallest size.
Settings tiny_settings() {
  Settings settings;
  settings.shape = kTinyShape;
  settings.shape.kv_heads = settings.shape.query_heads;
  settings.recipe = {.rate = 1e-2, .final_rate = 1e-3, .warm_up = 2, .steps = 20};
  settings.batch = 4;
  settings.kv_heads = {2, 1};
  settings.methods = {Method::mean, Method::aligned};
  settings.budgets = {5, 10};
  settings.held_out = 8;
  settings.calibration = 4;
  settings.checkpoint_every = 3;
  return settings;
}

std::vector<Result> run(const Settings& settings, const Text& text, const std::string& folder,
                        gqa::ExecutorRef executor, Index stop_after = 0) {
  const std::atomic<bool> never{false};
  const FolderLock lock(folder);
  return Experiment(settings, text, folder, executor, never, stop_after)();
}

TEST(UptrainExperiment, InterruptedAnywhereItEndsWithTheSameBits) {
  const Settings settings = tiny_settings();
  const Text text(word_bytes(9000, 81), kTinyShape.context);
  const std::string folder = fresh_folder();
  gqa::SerialExecutor serial;
  const gqa::ThreadPoolExecutor two(2);
  const std::vector<Result> undisturbed = run(settings, text, folder + "/undisturbed", serial);
  ASSERT_EQ(undisturbed.size(), plans(settings).size());

  for (const Index steps : {1, 7}) {
    const std::string other = folder + "/every" + std::to_string(steps);
    std::vector<Result> results;
    int interruptions = 0;
    for (; results.empty(); ++interruptions) {
      try {
        results = run(settings, text, other, interruptions % 2 == 0 ? gqa::ExecutorRef(two) : gqa::ExecutorRef(serial),
                      steps);
      } catch (const Interrupted&) {
      }
    }
    EXPECT_GT(interruptions, 5);
    for (const Plan& plan : plans(settings)) {
      const std::string file = "/" + plan.name() + ".checkpoint";
      EXPECT_EQ(read_file(folder + "/undisturbed" + file), read_file(other + file)) << file;
    }
    for (std::size_t i = 0; i < results.size(); ++i)
      for (std::size_t j = 0; j < results[i].evaluations.size(); ++j)
        EXPECT_EQ(results[i].evaluations[j].loss, undisturbed[i].evaluations[j].loss);
  }
}

TEST(UptrainExperiment, LossesThatDoNotFitTheStepsAreRefused) {
  const Settings settings = tiny_settings();
  const Text text(word_bytes(9000, 83), kTinyShape.context);
  const std::string folder = fresh_folder();
  gqa::SerialExecutor serial;
  run(settings, text, folder, serial);
  const Plan plan = plans(settings).back();
  const std::string path = folder + "/" + plan.name() + ".checkpoint";
  const std::vector<char> bytes = read_file(path);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data() + 8, sizeof(length));
  const Json identity =
      Json::parse(bytes.begin() + 16, bytes.begin() + 16 + static_cast<std::ptrdiff_t>(length))["run"];
  const std::optional<RunState> whole = load_run(path, plan.shape, identity);
  ASSERT_TRUE(whole.has_value());
  RunState spoilt = *whole;
  spoilt.evaluations.pop_back();
  save_run(path, identity, spoilt);
  EXPECT_TRUE(contains(complaint([&] { run(settings, text, folder, serial); }), path + ": has not the losses"));
  spoilt = *whole;
  spoilt.training.step = 3;
  save_run(path, identity, spoilt);
  EXPECT_TRUE(
      contains(complaint([&] { run(settings, text, folder, serial); }), path + ": has done 3 steps; the run has 2"));
}

TEST(UptrainExperiment, RunsStartFromTheMultiHeadModel) {
  const Settings settings = tiny_settings();
  const Text text(word_bytes(9000, 82), kTinyShape.context);
  gqa::SerialExecutor serial;
  const std::vector<Result> results = run(settings, text, fresh_folder(), serial);
  const double multi_head = results[0].evaluations.back().loss;
  EXPECT_LT(multi_head, 3.5);  // ln 256 is 5.5
  int converted = 0;
  for (const Result& each : results) {
    if (each.plan.origin == Origin::continued) {
      EXPECT_EQ(each.evaluations.front().loss, multi_head);
    }
    if (each.plan.origin != Origin::converted) continue;
    ++converted;
    EXPECT_NE(each.evaluations.front().loss, multi_head);
    EXPECT_NE(each.evaluations.front().loss, each.evaluations.back().loss);
    ASSERT_EQ(each.evaluations.size(), 3u);  // 0, 1 and 2 of 20 steps
  }
  EXPECT_EQ(converted, 4);
  const Report report(settings, results, {{4, 1e-3}, {2, 5e-4}, {1, 2e-4}}, 100);
  const std::string csv = report.csv();
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 3 + 3 + 4 * 3);
  EXPECT_TRUE(contains(csv, "\n1,2,aligned,10,2,"));
}

/// Equal KV heads within a group: every method gives the same function back.
TEST(UptrainConversion, HeadsThatAreEqualLoseNothing) {
  ModelShape shape = kTinyShape;
  shape.kv_heads = 4;
  Model model = initial_model(shape, 91);
  ModelViews<float> views = model.views();
  const Index width = shape.head_dim();
  for (LayerViews<float>& layer : views.layers)
    for (const Index first : {shape.dim, shape.dim + 2 * width, shape.dim + 4 * width, shape.dim + 6 * width})
      layer.qkv.middleRows(first + width, width) = layer.qkv.middleRows(first, width);
  const Text text(word_bytes(5000, 92), shape.context);
  const Batch batch = training_batch(text, 93, 0, 4);
  gqa::SerialExecutor serial;
  const double expected = Trainer(shape, serial).evaluate(model, batch);
  for (const Method method : {Method::mean, Method::first, Method::random}) {
    const Model grouped = convert(model, 2, method, 94, batch);
    EXPECT_EQ(grouped.values.size(), parameter_count(grouped.shape));
    EXPECT_EQ(Trainer(grouped.shape, serial).evaluate(grouped, batch), expected);
  }
}

TEST(UptrainReport, GapAndSpread) {
  EXPECT_DOUBLE_EQ(gap_closed(3.0, 2.25, 2.0).value(), 0.75);
  EXPECT_DOUBLE_EQ(gap_closed(3.0, 3.5, 2.0).value(), -0.5);
  EXPECT_FALSE(gap_closed(2.0, 1.5, 2.0).has_value());
  EXPECT_DOUBLE_EQ(spread_of({1, 2, 6}).mean, 3);
  EXPECT_DOUBLE_EQ(spread_of({1, 2, 6}).deviation.value(), std::sqrt(7.0));
  EXPECT_FALSE(spread_of({4}).deviation.has_value());
}

class UptrainCheckpoint : public testing::Test {
 protected:
  UptrainCheckpoint() : run_{TrainingState(initial_model(kTinyShape, 101))} {
    std::filesystem::create_directories(folder_);
    run_.training.step = run_.training.moments.steps = 5;
    run_.training.moments.first.setRandom();
    run_.training.moments.second.setRandom();
    run_.evaluations = {{0, 0.1}, {5, 1.0 / 3.0}};
    save_run(path_, identity_, run_);
  }
  std::string refusal(const Json& identity) {
    return complaint([&] { load_run(path_, kTinyShape, identity); });
  }
  void write(const std::vector<char>& bytes) {
    std::ofstream(path_, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  /// With a checksum that is right, whatever the bytes say.
  void write_sealed(std::vector<char> bytes) {
    bytes.resize(bytes.size() - 4);
    const std::uint32_t sum = detail::checksum(bytes.data(), bytes.size());
    detail::append_bytes(bytes, &sum, 4);
    write(bytes);
  }

  std::string folder_ = fresh_folder(), path_ = folder_ + "/run.checkpoint";
  Json identity_{{"name", "a run"}, {"recipe", {{"rate", 0.1}, {"steps", 20}}}};
  RunState run_;
};

TEST_F(UptrainCheckpoint, EveryBitComesBack) {
  const std::optional<RunState> back = load_run(path_, kTinyShape, identity_);
  ASSERT_TRUE(back.has_value());
  EXPECT_TRUE(back->training.model.values == run_.training.model.values);
  EXPECT_TRUE(back->training.moments.first == run_.training.moments.first);
  EXPECT_TRUE(back->training.moments.second == run_.training.moments.second);
  EXPECT_EQ(back->training.step, 5);
  EXPECT_EQ(back->evaluations[1].loss, 1.0 / 3.0);
  EXPECT_FALSE(back->finished);
  EXPECT_FALSE(load_run(folder_ + "/none", kTinyShape, identity_).has_value());
  EXPECT_FALSE(std::filesystem::exists(path_ + ".part"));
}

TEST_F(UptrainCheckpoint, AnotherRunIsRefusedByWhatDiffers) {
  Json other = identity_;
  other["recipe"]["steps"] = 30;
  EXPECT_TRUE(contains(refusal(other), path_ + ": is of another run: recipe.steps is 20; expected 30"));
  other = identity_;
  other["batch"] = 4;
  EXPECT_TRUE(contains(refusal(other), "batch is missing"));
}

TEST_F(UptrainCheckpoint, DamageIsNamed) {
  const std::vector<char> whole = read_file(path_);
  for (const std::size_t at : {std::size_t{8}, std::size_t{40}, whole.size() / 2, whole.size() - 1}) {
    std::vector<char> spoilt = whole;
    spoilt[at] = static_cast<char>(spoilt[at] ^ 4);
    write(spoilt);
    EXPECT_TRUE(contains(refusal(identity_), path_ + ": is damaged")) << at;
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{19}}) {
    write({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)});
    EXPECT_TRUE(contains(refusal(identity_), "is " + std::to_string(size) + " bytes")) << size;
  }
  write({whole.begin(), whole.end() - 100});
  EXPECT_TRUE(contains(refusal(identity_), "is damaged"));
  std::vector<char> foreign = whole;
  foreign[0] = 'x';
  write(foreign);
  EXPECT_TRUE(contains(refusal(identity_), "no checkpoint of this program"));
}

TEST_F(UptrainCheckpoint, DescriptionsThatLieAreNamed) {
  std::vector<char> bytes = read_file(path_);
  bytes[14] = 1;  // the description's length, by 2⁴⁸
  write_sealed(bytes);
  EXPECT_TRUE(contains(refusal(identity_), "ends within its description"));
  bytes[14] = 0;
  std::string text(bytes.begin(), bytes.end());
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    write_sealed({changed.begin(), changed.end()});
    return refusal(identity_);
  };
  EXPECT_TRUE(contains(with("\"step\":5,\"eval", "\"step\":x,\"eval"), "no proper \"run\""));
  EXPECT_TRUE(contains(with("\"finished\":false", "\"finished\":1    "), "no proper \"finished\""));
  EXPECT_TRUE(contains(with("\"finished\":false", "\"finished\": true"), "bytes before its checksum; expected"));
  EXPECT_TRUE(contains(with("\"loss\":0.1", "\"lots\":0.1"), "an evaluation without step or loss"));
}

TEST_F(UptrainCheckpoint, AFolderIsUsedByOneProcessAtATime) {
  const FolderLock first(folder_);
  EXPECT_TRUE(contains(complaint([&] { FolderLock second(folder_); }), "is in use by another process"));
}

}  // namespace
}  // namespace uptrain::test
