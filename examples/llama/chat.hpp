// SPDX-License-Identifier: Apache-2.0
/// @file
/// Messages as models that were trained on conversations have them.
#pragma once

#include <stdexcept>
#include <string>

#include "config.hpp"

namespace llama {

/// A message, and the beginning of the answer.
/// @throws std::invalid_argument if the model has no such form
inline std::string chat_turn(ChatForm form, const std::string& message) {
  switch (form) {
    case ChatForm::chatml: return "<|im_start|>user\n" + message + "<|im_end|>\n<|im_start|>assistant\n";
    case ChatForm::gemma: return "<start_of_turn>user\n" + message + "<end_of_turn>\n<start_of_turn>model\n";
    case ChatForm::llama3:
      return "<|start_header_id|>user<|end_header_id|>\n\n" + message +
             "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    default: throw std::invalid_argument("--chat: the model's vocabulary has no tokens for turns of a conversation");
  }
}

/// What stands between an answer and the next message. @param ended  the answer has its end token
inline std::string between_turns(ChatForm form, bool ended) {
  if (form == ChatForm::llama3) return ended ? "" : "<|eot_id|>";
  if (ended) return "\n";
  return form == ChatForm::chatml ? "<|im_end|>\n" : "<end_of_turn>\n";
}

}  // namespace llama
