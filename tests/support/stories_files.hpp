// SPDX-License-Identifier: Apache-2.0
// The files of a real model, TinyStories 260K: stories260K.bin, tok512.bin and stories260K.expected.txt. They are not part of the
// repository: their folder comes in the environment variable GQA_STORIES_DIR, or as a macro of that name.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace gqa::test {

inline std::string stories_folder() {
  if (const char* set = std::getenv("GQA_STORIES_DIR"); set != nullptr && *set != '\0') return set;
#if defined(GQA_STORIES_DIR)
  return GQA_STORIES_DIR;
#else
  return {};
#endif
}

/// What greedy decoding must print, as published with the model; without newlines at the end.
inline std::string published_story() {
  std::ifstream file(stories_folder() + "/stories260K.expected.txt", std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

/// The model as examples/llama/convert.py writes it, made once by this process. Empty where files or Python are missing, or the script fails,
/// which then says why.
inline const std::string& converted_stories() {
  struct Made {
    std::string path;
    Made() {
      const std::string from = stories_folder();
      for (const char* name : {"stories260K.bin", "tok512.bin"})
        if (from.empty() || !std::filesystem::exists(from + "/" + name)) return;
      const std::string script = std::string(__FILE__) + "/../../../examples/llama/convert.py";
      path = testing::TempDir() + "gqa_stories_" + std::to_string(::getpid()) + ".safetensors";
      const std::string command = "python3 '" + std::filesystem::path(script).lexically_normal().string() + "' '" +
                                  from + "/stories260K.bin' '" + from + "/tok512.bin' '" + path + "'";
      if (std::system(command.c_str()) != 0) path.clear();
    }
    ~Made() {
      if (!path.empty()) std::filesystem::remove(path);
    }
  };
  static const Made made;
  return made.path;
}

}  // namespace gqa::test

/// Skips where the files are absent.
#define SKIP_WITHOUT_STORIES()                                                                                     \
  for (const char* name : {"stories260K.bin", "tok512.bin", "stories260K.expected.txt"})                           \
    if (gqa::test::stories_folder().empty() || !std::filesystem::exists(gqa::test::stories_folder() + "/" + name)) \
      GTEST_SKIP() << "no " << name << " in GQA_STORIES_DIR = \"" << gqa::test::stories_folder()                   \
                   << "\": the real model was not run";                                                            \
  if (std::system("python3 --version > /dev/null") != 0) GTEST_SKIP() << "no python3: the real model was not run"
