// SPDX-License-Identifier: Apache-2.0
/// @file
/// The tokens of one sequence from some position on: what a layer with a sliding window needs.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "storage.hpp"

namespace gqa_torch {

/// A sequence in pieces of some pages each, of which those at the front are dropped. Positions stay what they are, so that results are the bits
/// of the whole sequence.
///
/// A copy shares the pieces and is for reading; it goes on showing what was there when it was made. fork() makes a sequence to append to.
/// Calls that change which pages are used (all but view and the numbers) need Pages::changing, which the destructor locks itself.
class RecentTokens {
 public:
  RecentTokens(std::shared_ptr<Pages> pages, Index position) : pages_(std::move(pages)) { restart(position); }

  Index length() const { return length_; }  ///< the next token's position
  Index first_held() const { return first_; }
  /// Pieces begin at multiples of that: whole pages, at least 64 tokens.
  static Index piece_tokens(Index page_size) { return (63 + page_size) / page_size * page_size; }

  /// Pages that appending takes.
  Index pages_to_append(Index tokens) const {
    const Index into_last = std::min(tokens, room_in_last());
    return pieces_.back()->tokens.pages_to_append(into_last) + (tokens - into_last + page_size() - 1) / page_size();
  }
  /// There are that many.
  void append(const gqa::ConstTensorView& k, const gqa::ConstTensorView& v) {
    Index done = 0;
    do {  // also of no tokens, to be checked
      if (done < k.tokens && room_in_last() == 0) add_piece();
      const Index tokens = std::min(k.tokens - done, room_in_last());
      pieces_.back()->tokens.append(k.slice(done, tokens), v.slice(done, tokens));
      length_ += tokens;
      done += tokens;
    } while (done < k.tokens);
  }
  /// Keeps the tokens before position `length`, which is held or the next one. Copies go on showing those that are dropped here.
  void truncate(Index length) {
    while (pieces_.size() > 1 && begin_of_last() >= length) pieces_.pop_back();
    if (length < length_)
      pieces_.back() = std::make_shared<Piece>(pages_, pieces_.back()->tokens.fork(length - begin_of_last()));
    length_ = length;
  }
  /// Drops pieces that lie before a position.
  void drop_before(Index position) {
    const Index pieces = std::clamp<Index>((position - first_) / size_, 0, count() - 1);
    pieces_.erase(pieces_.begin(), pieces_.begin() + pieces);
    first_ += pieces * size_;
  }
  /// Drops everything; the next token has this position, a multiple of piece_tokens.
  void restart(Index position) {
    size_ = piece_tokens(page_size());
    pieces_.clear();
    add_piece();
    first_ = length_ = position;
  }
  /// Another sequence with the same tokens, in the same pages until one of the two writes to them.
  RecentTokens fork() const {
    RecentTokens made = *this;
    made.pieces_.back() = std::make_shared<Piece>(pages_, pieces_.back()->tokens.fork());
    return made;
  }

  /// The tokens held. `table` is the view's page table; there are no pages in it for tokens that were dropped.
  gqa::KvCacheView view(std::vector<std::int32_t>& table) const {
    gqa::KvCacheView view = pieces_.back()->tokens.view();
    table.assign(static_cast<std::size_t>(first_ / page_size()), -1);
    for (const auto& piece : pieces_) {
      const auto pages = piece->tokens.pages();
      table.insert(table.end(), pages.begin(), pages.end());
    }
    view.length = length_;
    view.page_table = table.data();
    view.page_table_size = static_cast<Index>(table.size());
    return view;
  }

 private:
  /// Gives its pages back when the last who shares it is gone.
  struct Piece {
    std::shared_ptr<Pages> pages;  ///< outlives tokens
    gqa::PagedSequence tokens;

    Piece(std::shared_ptr<Pages> of, gqa::PagedSequence&& sequence)
        : pages(std::move(of)), tokens(std::move(sequence)) {}
    Piece(const Piece&) = delete;
    Piece& operator=(const Piece&) = delete;
    ~Piece() {
      const std::lock_guard lock(pages->changing);
      tokens.release();
    }
  };

  Index count() const { return static_cast<Index>(pieces_.size()); }
  Index page_size() const { return pages_->pool.page_size(); }
  Index begin_of_last() const { return first_ + (count() - 1) * size_; }
  Index room_in_last() const { return size_ - (length_ - begin_of_last()); }
  void add_piece() { pieces_.push_back(std::make_shared<Piece>(pages_, pages_->pool.sequence())); }

  std::shared_ptr<Pages> pages_;
  std::vector<std::shared_ptr<Piece>> pieces_;  ///< one at least; all but the last are full
  Index size_ = 0;                              ///< tokens of a full piece
  Index first_ = 0;                             ///< position of the first piece's first token
  Index length_ = 0;
};

}  // namespace gqa_torch
