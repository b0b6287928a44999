// SPDX-License-Identifier: Apache-2.0
// The paths that this machine runs, and a record of those that it does not.
//
// A program compiled with GQA_DETAIL_EMULATED_AMX tests Path::amx and no other, on the processor's tiles or the emulator's; where it is 2,
// only if the environment has GQA_TEST_AMX_ALONE.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "gqa/cpu.hpp"
#include "gqa/element.hpp"
#include "gqa/options.hpp"

#if defined(GQA_DETAIL_EMULATED_AMX)
#include "amx_emulator.hpp"
#endif

namespace gqa {
inline void PrintTo(Path path, std::ostream* out) { *out << path_name(path); }
inline void PrintTo(ElementType type, std::ostream* out) { *out << element_name(type); }
}  // namespace gqa

namespace gqa::test {

using detail::kEveryPath;
inline constexpr ElementType kEveryType[] = {ElementType::f32, ElementType::bf16, ElementType::f16};

inline constexpr Products kEveryProducts[] = {Products::as_stored, Products::bf16, Products::bf16_terms};

inline const char* products_name(Products products) {
  constexpr const char* names[] = {"as stored", "bf16", "bf16 terms"};
  return names[static_cast<int>(products)];
}

/// Whether this process tests Path::amx and no other.
inline bool tests_amx_alone() {
#if defined(GQA_DETAIL_EMULATED_AMX)
  static const bool alone = GQA_DETAIL_EMULATED_AMX == 1 || std::getenv("GQA_TEST_AMX_ALONE") != nullptr;
  return alone;
#else
  return false;
#endif
}

/// What calls are made with where a test does not say: what a user gets; where Path::amx is tested alone, what lets every type take
/// its tiles.
inline Products usual_products() { return tests_amx_alone() ? Products::bf16_terms : Products::as_stored; }

/// Every path that this process can run.
inline const std::vector<Path>& available_paths() {
  static const std::vector<Path> found = [] {
    std::vector<Path> paths;
    for (const Path path : kEveryPath)
      if (path_available(path)) paths.push_back(path);
    return paths;
  }();
  return found;
}

/// The paths that have a test each: those that this process can run; or Path::amx alone, and that even where nobody provides tiles, so
/// that there is a test to say so.
inline std::vector<Path> tested_paths() { return tests_amx_alone() ? std::vector<Path>{Path::amx} : available_paths(); }

/// Why a test of a tested path may not run.
inline constexpr const char* kNoTiles = "this machine has neither AMX nor AVX-512 with bf16 to emulate it with";

/// Says which paths this machine does not have: printed once a program, and recorded as a property of the test that asks.
inline void report_paths_not_run() {
  static const std::string missing = [] {
    std::string words;
    for (const Path path : kEveryPath)
      if (!path_available(path)) words += (words.empty() ? "" : " ") + std::string(path_name(path));
    if (!words.empty()) std::printf("[  NOT RUN ] paths that this machine does not have: %s\n", words.c_str());
    return words;
  }();
  testing::Test::RecordProperty("paths_not_run", missing);
}

/// While it lives, calls read memory in this way; it must change no bit.
class WithStreaming {
 public:
  explicit WithStreaming(detail::Streaming streaming) : before_(detail::streaming_in_use().exchange(streaming)) {}
  ~WithStreaming() { detail::streaming_in_use() = before_; }
  WithStreaming(const WithStreaming&) = delete;
  WithStreaming& operator=(const WithStreaming&) = delete;

 private:
  detail::Streaming before_;
};

/// True for the paths whose arithmetic is f32 for every type: they agree with each other bit for bit.
inline bool has_f32_arithmetic_only(Path path) { return detail::path_arithmetic(path) == detail::Arithmetic::f32; }

/// The available ones of those.
inline std::vector<Path> f32_paths() {
  std::vector<Path> paths;
  for (const Path path : available_paths())
    if (has_f32_arithmetic_only(path)) paths.push_back(path);
  return paths;
}

/// The fastest f32 path here: for tests whose point is not the path.
inline Path best_f32_path() { return f32_paths().back(); }

/// A test for each available path and each element type.
class PerPathAndType : public testing::TestWithParam<std::tuple<Path, ElementType>> {
 public:
  static auto cases() { return testing::Combine(testing::ValuesIn(tested_paths()), testing::ValuesIn(kEveryType)); }
  static std::string name(const testing::TestParamInfo<ParamType>& info) {
    return std::string(path_name(std::get<0>(info.param))) + "_" + element_name(std::get<1>(info.param));
  }

 protected:
  void SetUp() override {
    report_paths_not_run();
    if (!path_available(path())) GTEST_SKIP() << kNoTiles;
  }
  Path path() const { return std::get<0>(GetParam()); }
  ElementType type() const { return std::get<1>(GetParam()); }
};

/// A test for each available path.
class PerPath : public testing::TestWithParam<Path> {
 public:
  static auto cases() { return testing::ValuesIn(tested_paths()); }
  static std::string name(const testing::TestParamInfo<Path>& info) { return path_name(info.param); }

 protected:
  void SetUp() override {
    report_paths_not_run();
    if (!path_available(path())) GTEST_SKIP() << kNoTiles;
  }
  Path path() const { return GetParam(); }
};

}  // namespace gqa::test
