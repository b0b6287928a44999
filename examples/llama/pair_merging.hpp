// SPDX-License-Identifier: Apache-2.0
/// @file
/// What byte-pair encoding and SentencePiece have in common: neighbouring pieces of a text become one, the best pair first.
#pragma once

#include <cstddef>
#include <optional>
#include <queue>
#include <string_view>
#include <vector>

namespace llama {

/// Merges neighbours until no pair has a priority: always the pair with the greatest one, of equals the leftmost.
/// @param pieces   of one string, in order, each beginning where the one before it ends
/// @param priority `std::optional<float>(std::string_view left, std::string_view right)`: empty where the two stay apart
/// @return the pieces that are left, in order. Time: n log n in the number of pieces, and that many calls of `priority`
template <class Priority>
std::vector<std::string_view> merge_pairs(const std::vector<std::string_view>& pieces, const Priority& priority) {
  constexpr auto none = static_cast<std::size_t>(-1);
  struct Piece {
    std::string_view text;  // empty once it has become a part of the one before it
    std::size_t previous;
    std::size_t next;
  };
  struct Pair {
    float priority;
    std::size_t left;
    std::size_t right;
    std::size_t bytes;  // of both as they were: a pair that has changed since is not merged
    bool operator<(const Pair& other) const {
      return priority < other.priority || (!(other.priority < priority) && left > other.left);
    }
  };
  std::vector<Piece> list;
  list.reserve(pieces.size());
  for (std::size_t i = 0; i < pieces.size(); ++i)
    list.push_back({pieces[i], i == 0 ? none : i - 1, i + 1 == pieces.size() ? none : i + 1});

  std::priority_queue<Pair> queue;
  const auto add = [&](std::size_t left, std::size_t right) {
    if (left == none || right == none) return;
    const std::string_view a = list[left].text;
    const std::string_view b = list[right].text;
    if (const std::optional<float> value = priority(a, b)) queue.push({*value, left, right, a.size() + b.size()});
  };
  for (std::size_t i = 1; i < list.size(); ++i) add(i - 1, i);
  while (!queue.empty()) {
    const Pair best = queue.top();
    queue.pop();
    Piece& left = list[best.left];
    Piece& right = list[best.right];
    if (left.text.empty() || right.text.empty() || left.text.size() + right.text.size() != best.bytes) continue;
    left.text = {left.text.data(), best.bytes};
    right.text = {};
    left.next = right.next;
    if (left.next != none) list[left.next].previous = best.left;
    add(left.previous, best.left);
    add(best.left, left.next);
  }

  std::vector<std::string_view> merged;
  for (const Piece& piece : list)
    if (!piece.text.empty()) merged.push_back(piece.text);
  return merged;
}

/// The characters of UTF-8 text, each as its bytes; a byte that begins none is one by itself.
inline std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> result;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto lead = static_cast<unsigned char>(text[begin]);
    const std::size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    std::size_t end = begin + 1;
    while (end < text.size() && end - begin < bytes && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) ++end;
    result.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return result;
}

}  // namespace llama
