// SPDX-License-Identifier: Apache-2.0
/// @file
/// Text that has been split into tokens, from a file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint.hpp"
#include "network.hpp"

namespace checkpoint {

/// Sequences of tokens: [[1, 2, …], …], or an object with such lists, `part` among them. At most so many
/// tokens. @throws std::runtime_error that names the file and what is wrong with it
inline Sequences read_tokens(const std::string& path, const std::string& part, Index most) {
  nlohmann::json json = read_json(path);
  if (json.is_object()) {
    if (!json.contains(part)) bad_file(path, "has no " + part);
    json = nlohmann::json(json[part]);
  }
  Sequences made;
  Index tokens = 0;
  if (!json.is_array()) bad_file(path, "is no list of sequences");
  for (const nlohmann::json& sequence : json) {
    if (!sequence.is_array()) bad_file(path, "sequence " + std::to_string(made.size()) + " is no list of tokens");
    made.emplace_back();
    for (const nlohmann::json& token : sequence) {
      if (!token.is_number_integer()) bad_file(path, "token " + token.dump() + " is no whole number");
      if (tokens < most) made.back().push_back(token.get<Token>());
      ++tokens;
    }
    if (made.back().empty()) made.pop_back();
  }
  if (made.empty()) bad_file(path, "has no tokens");
  return made;
}

}  // namespace checkpoint
