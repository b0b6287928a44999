// SPDX-License-Identifier: Apache-2.0
/// @file
/// A training run where it has got to, in a file:
///
///     8 bytes       "gqa-upt1"
///     uint64        bytes of the description
///     JSON          what the run is, its step, the held-out losses so far, parameters, and whether moments follow
///     f32 arrays    parameters; of a run that is not at its end: first and second moments
///     uint32        CRC-32 of all before it
///
/// Little endian. Random numbers are functions of seed and step, which the description has, so that there is no other state to keep.
#pragma once

#include <zlib.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "files.hpp"
#include "trainer.hpp"

namespace uptrain {

using Json = nlohmann::ordered_json;

/// Held-out loss after a step, in nats a token.
struct Evaluation {
  Index step = 0;
  double loss = 0;
};

/// A run in memory.
struct RunState {
  TrainingState training;
  std::vector<Evaluation> evaluations = {};
  bool finished = false;
};

namespace detail {

inline constexpr char kMagic[] = {'g', 'q', 'a', '-', 'u', 'p', 't', '1'};
inline constexpr std::size_t kStart = sizeof(kMagic) + sizeof(std::uint64_t);

static_assert(std::endian::native == std::endian::little, "checkpoints are written as numbers lie: little endian");

inline void append_bytes(std::vector<char>& to, const void* from, std::size_t bytes) {
  const char* const first = static_cast<const char*>(from);
  to.insert(to.end(), first, first + bytes);
}
inline void append_floats(std::vector<char>& to, const Eigen::VectorXf& from) {
  append_bytes(to, from.data(), static_cast<std::size_t>(from.size()) * sizeof(float));
}
inline std::uint32_t checksum(const char* bytes, std::size_t count) {
  return static_cast<std::uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(bytes), count));
}

/// The first member that two descriptions differ in, in words; empty if they are the same.
inline std::string difference(const Json& found, const Json& expected, const std::string& name = {}) {
  if (found == expected) return {};
  if (found.is_object() && expected.is_object()) {
    for (const auto& [key, value] : expected.items()) {
      const std::string inner = name.empty() ? key : name + "." + key;
      if (!found.contains(key)) return inner + " is missing";
      if (const std::string words = difference(found[key], value, inner); !words.empty()) return words;
    }
    return (name.empty() ? "it" : name) + " has members that are not known";
  }
  return name + " is " + found.dump() + "; expected " + expected.dump();
}

}  // namespace detail

/// Writes a run to `path`, whole or not at all. The moments of a finished run are left out: nobody needs them.
/// @param identity all that the run's bits depend on
inline void save_run(const std::string& path, const Json& identity, const RunState& run) {
  Json evaluations = Json::array();
  for (const Evaluation& each : run.evaluations) evaluations.push_back({{"step", each.step}, {"loss", each.loss}});
  const Json description{{"run", identity},
                         {"step", run.training.step},
                         {"evaluations", evaluations},
                         {"parameters", run.training.model.values.size()},
                         {"finished", run.finished}};
  const std::string text = description.dump();
  const auto length = static_cast<std::uint64_t>(text.size());
  std::vector<char> bytes;
  detail::append_bytes(bytes, detail::kMagic, sizeof(detail::kMagic));
  detail::append_bytes(bytes, &length, sizeof(length));
  detail::append_bytes(bytes, text.data(), text.size());
  detail::append_floats(bytes, run.training.model.values);
  if (!run.finished) {
    detail::append_floats(bytes, run.training.moments.first);
    detail::append_floats(bytes, run.training.moments.second);
  }
  const std::uint32_t sum = detail::checksum(bytes.data(), bytes.size());
  detail::append_bytes(bytes, &sum, sizeof(sum));
  replace_file(path, std::as_bytes(std::span(bytes)));
}

/// Reads what save_run wrote; nothing if there is no file.
/// @param shape    the run's model
/// @param identity what the run is now: a file of another one is refused
/// @throws std::runtime_error that names the file and what is wrong with it
inline std::optional<RunState> load_run(const std::string& path, const ModelShape& shape, const Json& identity) {
  if (!std::filesystem::exists(path)) return std::nullopt;
  const std::vector<char> bytes = read_file(path);
  std::uint64_t length = 0;
  if (bytes.size() < detail::kStart + sizeof(std::uint32_t))
    bad_file(path, "is " + std::to_string(bytes.size()) + " bytes; a checkpoint has more");
  if (std::memcmp(bytes.data(), detail::kMagic, sizeof(detail::kMagic)) != 0)
    bad_file(path, "does not start with \"gqa-upt1\": no checkpoint of this program");
  std::uint32_t stored = 0;
  const std::size_t summed = bytes.size() - sizeof(stored);
  std::memcpy(&stored, bytes.data() + summed, sizeof(stored));
  if (stored != detail::checksum(bytes.data(), summed))
    bad_file(path, "is damaged: its checksum is not that of its bytes. Delete it to train that run anew");
  std::memcpy(&length, bytes.data() + sizeof(detail::kMagic), sizeof(length));
  if (length > summed - detail::kStart) bad_file(path, "ends within its description");
  const char* const text = bytes.data() + detail::kStart;
  const Json description = Json::parse(text, text + length, nullptr, false);
  const auto has = [&](const char* key, bool (Json::*is)() const noexcept) {
    if (!description.is_object() || !description.contains(key) || !(description[key].*is)())
      bad_file(path, std::string("its description has no proper \"") + key + "\"");
  };
  has("run", &Json::is_object);
  has("step", &Json::is_number_unsigned);
  has("evaluations", &Json::is_array);
  has("parameters", &Json::is_number_unsigned);
  has("finished", &Json::is_boolean);
  if (const std::string words = detail::difference(description["run"], identity); !words.empty())
    bad_file(path, "is of another run: " + words + ". Choose another --folder, or the options it was made with");

  RunState run{TrainingState(Model{shape, Eigen::VectorXf(parameter_count(shape))})};
  run.finished = description["finished"].get<bool>();
  run.training.step = description["step"].get<Index>();
  run.training.moments.steps = run.training.step;
  for (const Json& each : description["evaluations"]) {
    if (!each.is_object() || !each.contains("step") || !each["step"].is_number_unsigned() || !each.contains("loss") ||
        !each["loss"].is_number())
      bad_file(path, "its description has an evaluation without step or loss");
    run.evaluations.push_back({each["step"].get<Index>(), each["loss"].get<double>()});
  }
  const auto parameters = static_cast<std::size_t>(run.training.model.values.size());
  const std::size_t expected =
      detail::kStart + static_cast<std::size_t>(length) + (run.finished ? 1 : 3) * parameters * sizeof(float);
  if (description["parameters"].get<std::size_t>() != parameters || summed != expected)
    bad_file(path,
             "has " + std::to_string(summed) + " bytes before its checksum; expected " + std::to_string(expected));
  const char* next = text + length;
  const auto read = [&](Eigen::VectorXf& values) {
    std::memcpy(values.data(), next, parameters * sizeof(float));
    next += parameters * sizeof(float);
  };
  read(run.training.model.values);
  if (!run.finished) {
    read(run.training.moments.first);
    read(run.training.moments.second);
  }
  return run;
}

}  // namespace uptrain
