// SPDX-License-Identifier: Apache-2.0
/// @file
/// The runs, their order, and what each starts from: a multi-head model; the same with fewer KV heads by each method, trained on for a few
/// percent of its steps; and models that had so few KV heads from the start.
#pragma once

#include <atomic>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint.hpp"
#include "conversion.hpp"
#include "progress.hpp"

namespace uptrain {

/// What the user chose. Of `shape` the KV heads are those of multi-head attention.
struct Settings {
  ModelShape shape{.layers = 3};
  Index seeds = 1;
  std::uint64_t first_seed = 1;
  Recipe recipe{.steps = 800};
  Index batch = 8;                       ///< sequences a step
  double uptraining_rate = 1e-3;         ///< learning rate that uptraining begins with; falls to a tenth
  std::vector<Index> kv_heads{4, 2, 1};  ///< to convert to
  std::vector<Method> methods{Method::mean, Method::first, Method::random, Method::aligned};
  std::vector<double> budgets{1, 2, 5, 10};  ///< percent of recipe.steps, ascending
  Index held_out = 128;                      ///< windows that losses are measured on
  Index calibration = 32;                    ///< sequences of the training part
  Index checkpoint_every = 200;              ///< steps
};

/// What a model is before the first step of its run.
enum class Origin { scratch, converted, continued };

/// One run.
struct Plan {
  std::uint64_t seed = 0;
  Origin origin = Origin::scratch;
  Method method = Method::mean;  ///< of a conversion
  ModelShape shape;
  Recipe recipe;
  Index first_batch = 0;           ///< number of the first step's batch
  std::vector<Index> evaluations;  ///< steps after which held-out loss is measured, ascending

  std::string origin_name() const {
    if (origin == Origin::scratch) return "scratch";
    if (origin == Origin::continued) return "continued";
    for (const NamedMethod& each : kMethods)
      if (each.method == method) return each.name;
    return {};
  }
  std::string name() const {
    return "seed" + std::to_string(seed) + "-kv" + std::to_string(shape.kv_heads) + "-" + origin_name();
  }
};

/// What a run left.
struct Result {
  Plan plan;
  std::vector<Evaluation> evaluations;
  Model model;
};

/// Steps of a budget in percent, 1 or more.
inline Index budget_steps(const Settings& settings, double percent) {
  return std::max<Index>(1,
                         static_cast<Index>(std::lround(percent / 100 * static_cast<double>(settings.recipe.steps))));
}

/// All runs in their order: what others start from comes first.
inline std::vector<Plan> plans(const Settings& settings) {
  std::vector<Plan> all;
  Recipe uptraining = settings.recipe;
  uptraining.rate = settings.uptraining_rate;
  uptraining.final_rate = settings.uptraining_rate / 10;
  uptraining.warm_up = 0;
  std::vector<Index> budgets{0};
  for (const double percent : settings.budgets)
    if (const Index steps = budget_steps(settings, percent); steps > budgets.back()) budgets.push_back(steps);
  uptraining.steps = budgets.back();
  for (Index i = 0; i < settings.seeds; ++i) {
    Plan plan;
    plan.seed = settings.first_seed + static_cast<std::uint64_t>(i);
    plan.shape = settings.shape;
    plan.recipe = settings.recipe;
    plan.evaluations = {settings.recipe.steps};
    all.push_back(plan);
    for (const Index kv_heads : settings.kv_heads) {
      plan.shape.kv_heads = kv_heads;
      all.push_back(plan);
    }
    plan.recipe = uptraining;
    plan.first_batch = settings.recipe.steps;
    plan.evaluations = budgets;
    plan.shape = settings.shape;
    plan.origin = Origin::continued;
    all.push_back(plan);
    plan.origin = Origin::converted;
    for (const Index kv_heads : settings.kv_heads)
      for (const Method method : settings.methods) {
        plan.shape.kv_heads = kv_heads;
        plan.method = method;
        all.push_back(plan);
      }
  }
  return all;
}

/// Asked to stop: everything done is in checkpoints.
class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("stopped; the same command goes on from here") {}
};

/// Runs plans, or what is left of them.
class Experiment {
 public:
  /// @param folder of checkpoints    @param stop set by anybody: ends after the present step
  /// @param stop_after steps of this process after which it stops; 0: never
  Experiment(const Settings& settings, const Text& text, std::string folder, gqa::ExecutorRef executor,
             const std::atomic<bool>& stop, Index stop_after = 0)
      : settings_(settings),
        text_(text),
        folder_(std::move(folder)),
        executor_(executor),
        stop_(stop),
        stop_after_(stop_after),
        held_out_(text, text.held_out_starts(settings.held_out)),
        progress_(total_work()) {}

  /// All results, in the order of plans(settings). @throws Interrupted
  std::vector<Result> operator()() {
    std::vector<Result> results;
    std::size_t multi_head = 0;  // of the present seed
    for (const Plan& plan : plans(settings_)) {
      RunState run = train(plan, [&] {
        if (plan.origin == Origin::scratch) return initial_model(plan.shape, plan.seed);
        const Model& trained = results[multi_head].model;
        if (plan.origin == Origin::continued) return trained;
        return convert(trained, plan.shape.kv_heads, plan.method, plan.seed, calibration(plan));
      });
      if (plan.origin == Origin::scratch && plan.shape == settings_.shape) multi_head = results.size();
      results.push_back({plan, std::move(run.evaluations), std::move(run.training.model)});
    }
    progress_.clear();
    return results;
  }

 private:
  /// All that a run's bits depend on, the program and the machine's instruction set aside.
  Json identity(const Plan& plan) const {
    const ModelShape& shape = plan.shape;
    const Recipe& recipe = plan.recipe;
    Json identity{{"name", plan.name()},
                  {"shape",
                   {{"dim", shape.dim},
                    {"hidden", shape.hidden},
                    {"layers", shape.layers},
                    {"query heads", shape.query_heads},
                    {"KV heads", shape.kv_heads},
                    {"vocabulary", shape.vocabulary},
                    {"context", shape.context}}},
                  {"recipe",
                   {{"rate", recipe.rate},
                    {"final rate", recipe.final_rate},
                    {"warm-up", recipe.warm_up},
                    {"steps", recipe.steps},
                    {"weight decay", recipe.weight_decay},
                    {"clip", recipe.clip}}},
                  {"batch", settings_.batch},
                  {"evaluations", plan.evaluations},
                  {"held-out windows", held_out_.sequences},
                  {"text", {{"bytes", text_.size()}, {"checksum", text_.checksum()}}}};
    if (plan.origin != Origin::scratch) {
      Plan start = plan;  // what it starts from
      start.origin = Origin::scratch;
      start.shape = settings_.shape;
      start.recipe = settings_.recipe;
      start.evaluations = {settings_.recipe.steps};
      identity["start"] = this->identity(start);
    }
    if (plan.origin == Origin::converted && is_calibrated(plan.method)) identity["calibration"] = settings_.calibration;
    return identity;
  }

  /// Sequences of the training part that no step of any budget is given.
  Batch calibration(const Plan& plan) const {
    return training_batch(text_, plan.seed, plan.first_batch + plan.recipe.steps, settings_.calibration);
  }

  template <class Start>
  RunState train(const Plan& plan, const Start& start) {
    const std::string path = folder_ + "/" + plan.name() + ".checkpoint";
    const Json what = identity(plan);
    std::optional<RunState> found = load_run(path, plan.shape, what);
    RunState run = found ? std::move(*found) : RunState{TrainingState(start())};
    TrainingState& state = run.training;
    check_progress(plan, run, path);
    progress_.skip(work_of_steps(state.step) + work_of_evaluations(run.evaluations.size()));
    if (run.finished) return run;

    Trainer trainer(plan.shape, executor_);
    double loss = 0;
    for (;;) {
      const std::size_t evaluated = run.evaluations.size();
      if (evaluated < plan.evaluations.size() && plan.evaluations[evaluated] == state.step) {
        run.evaluations.push_back({state.step, trainer.evaluate(state.model, held_out_)});
        progress_.advance(work_of_evaluations(1), words(plan, "held out", run.evaluations.back().loss));
      }
      if (state.step == plan.recipe.steps) break;
      loss = trainer.step(state, plan.recipe,
                          training_batch(text_, plan.seed, plan.first_batch + state.step, settings_.batch));
      if (!std::isfinite(loss))
        throw std::runtime_error(plan.name() + ": the loss of step " + std::to_string(state.step) +
                                 " is not finite; a lower learning rate may help");
      progress_.advance(work_of_steps(1), words(plan, "step " + std::to_string(state.step), loss));
      const bool stopping = stop_.load() || ++steps_ == stop_after_;
      if (stopping || (state.step % settings_.checkpoint_every == 0 && state.step < plan.recipe.steps))
        save_run(path, what, run);
      if (stopping) throw Interrupted();
    }
    run.finished = true;
    save_run(path, what, run);
    return run;
  }

  /// @throws std::runtime_error unless a run has got as far as its losses say
  static void check_progress(const Plan& plan, const RunState& run, const std::string& path) {
    const Index step = run.training.step;
    if (step > plan.recipe.steps)
      bad_file(path, "has done " + std::to_string(step) + " steps; the run has " + std::to_string(plan.recipe.steps));
    for (std::size_t i = 0; i < plan.evaluations.size(); ++i) {
      const bool measured = i < run.evaluations.size(), due = run.finished || plan.evaluations[i] < step;
      if (measured ? run.evaluations[i].step != plan.evaluations[i] || run.evaluations[i].step > step : due)
        bad_file(path, "has not the losses that it should have after " + std::to_string(step) + " steps");
    }
  }

  static std::string words(const Plan& plan, const std::string& what, double loss) {
    char number[32];
    std::snprintf(number, sizeof number, "%.3f", loss / std::log(2.0));
    return plan.name() + " " + what + ": " + number + " bits/byte";
  }

  /// Work is counted in tokens of training; a forward pass alone is a third.
  double work_of_steps(Index steps) const {
    return static_cast<double>(steps * settings_.batch * settings_.shape.context);
  }
  double work_of_evaluations(std::size_t count) const {
    return static_cast<double>(count) * static_cast<double>(held_out_.inputs.size()) / 3;
  }
  double total_work() const {
    double sum = 0;
    for (const Plan& plan : plans(settings_))
      sum += work_of_steps(plan.recipe.steps) + work_of_evaluations(plan.evaluations.size());
    return sum;
  }

  Settings settings_;
  const Text& text_;
  std::string folder_;
  gqa::ExecutorRef executor_;
  const std::atomic<bool>& stop_;
  Index stop_after_, steps_ = 0;
  Batch held_out_;
  Progress progress_;
};

}  // namespace uptrain
