// SPDX-License-Identifier: Apache-2.0
/// @file
/// One layer's cache of which queries see a sliding window: it keeps that and no more.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "chunk_room.hpp"
#include "recent_tokens.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gqa_torch {

/// Tokens of a windowed layer to be read, all sequences': those that were there when it was made, whatever becomes of the layer.
class HeldTokens {
 public:
  HeldTokens(HeldTokens&&) = default;
  HeldTokens& operator=(HeldTokens&&) = delete;
  ~HeldTokens() {
    if (!chunk_.empty()) room_->give_back(std::move(chunk_));
  }

  Index length() const { return sequences_.front().length() + (chunk_.empty() ? 0 : chunk_.front().length()); }
  /// The first position that is there.
  Index first_held() const { return sequences_.front().first_held(); }

  /// As gqa_torch::attend has it.
  /// @throws ArgumentError, too, where a query sees tokens that are not there any more
  at::Tensor attention(const at::Tensor& q, const Settings& settings) const {
    if (first_held() > 0) check_seen(q, settings);
    std::vector<gqa::KvCacheView> views;
    std::vector<std::vector<std::int32_t>> tables(sequences_.size());
    std::vector<gqa::KvCacheView> earlier(chunk_.empty() ? 0 : sequences_.size());
    for (std::size_t b = 0; b < sequences_.size(); ++b) {
      views.push_back(sequences_[b].view(tables[b]));
      if (chunk_.empty()) continue;
      const Index begin = sequences_[b].length();
      earlier[b] = std::exchange(views[b], chunk_[b].view());
      views[b].oldest = begin;  // the position of the chunk's first token
      views[b].length += begin;
      if (begin == 0) continue;
      views[b].earlier = &earlier[b];
      views[b].earlier_count = 1;
    }
    return attend(q, views, value_dim_, settings, first_held());
  }

 private:
  friend class WindowedKvCache;
  HeldTokens(std::vector<RecentTokens> sequences, Index window, Index value_dim)
      : sequences_(std::move(sequences)), window_(window), value_dim_(value_dim) {}

  void check_seen(const at::Tensor& q, const Settings& settings) const {
    check_tensor(q, "q", 4);
    const std::string gone =
        ", as tokens before position " + std::to_string(first_held()) + " are not kept without all_tokens=True";
    if (settings.causal && settings.window > 0) {
      if (length() - q.size(2) - settings.window + 1 >= first_held()) return;
      if (settings.window > window_)
        fail("window", std::to_string(settings.window), "1 to the layer's " + std::to_string(window_) + gone);
      fail("q.size(2)", std::to_string(q.size(2)),
           "at most " + std::to_string(length() - settings.window + 1 - first_held()) + gone);
    }
    if (!settings.mask)
      fail("window", std::to_string(settings.window), "1 to the layer's " + std::to_string(window_) + gone);
    settings.check(q.size(0), q.size(1), q.size(2), length());
    const at::Tensor mask = settings.mask->narrow(3, 0, first_held());
    const at::Tensor seen = mask.scalar_type() == at::kBool ? mask : mask.to(at::kFloat).lt(kHidden).logical_not();
    if (seen.any().item<bool>()) fail("mask", "visible there", "hidden" + gone);
  }

  static constexpr float kHidden = -2.3e38f;  ///< what is less hides, as -inf does
  std::vector<RecentTokens> sequences_;
  std::vector<gqa::ContiguousKvCache> chunk_;  ///< behind those, of each sequence; or empty
  std::shared_ptr<ChunkRoom> room_;            ///< whose that is
  Index window_;
  Index value_dim_;
};

/// Keeps the tokens that the next query sees, one less than the window, and what else is in their pages (at least 64 tokens).
/// Results are the bits of a cache that keeps all of them.
class WindowedKvCache {
 public:
  /// @param window  positions that a query sees, its own among them
  /// @param room  of all layers of a model's cache
  WindowedKvCache(CacheConfig config, Index window, std::shared_ptr<ChunkRoom> room)
      : config_(std::move(config)), window_(window), room_(std::move(room)) {
    config_.check();
    if (window_ < 1) fail("window", std::to_string(window_), "1 or more positions");
    if (config_.first_tokens != 0 || config_.newest_tokens != 0)
      fail("first_tokens and newest_tokens", "given with a window", "0");
  }
  WindowedKvCache(const WindowedKvCache&) = delete;
  WindowedKvCache& operator=(const WindowedKvCache&) = delete;
  ~WindowedKvCache() = default;

  /// Encodes tokens behind those held, as KvCache::append; then drops what no later query sees, unless `keep`.
  /// @return what was held together with these tokens, for their queries. Where these are more than a window, those of them that no later
  /// query sees are stored nowhere else, and their memory can be used again when that is destroyed.
  HeldTokens append(const at::Tensor& k, const at::Tensor& v, bool keep) {
    check_append(k, v, config_.max_tokens, length(), sequences());
    if (sequences_.empty()) open(k, v);
    const Index before = length(), after = before + k.size(2);
    const Index piece = RecentTokens::piece_tokens(config_.page_size);
    const Index from = std::max<Index>(after - window_ + 1, 0) / piece * piece;  // what is kept
    const Index begin = (before + 63) / 64 * 64;                                 // where a view's next part may begin
    const bool is_long = !keep && k.size(2) > window_ && from >= begin && after > begin;
    std::vector<gqa::ContiguousKvCache> chunk;
    if (is_long) {
      chunk = room_->take(config_.one_piece(k, v, after - begin), sequences());
      for (int64_t b = 0; b < sequences(); ++b)
        chunk[static_cast<std::size_t>(b)].append(rows(k, "k", b, begin - before), rows(v, "v", b, begin - before));
    } else {
      room_->clear();
    }

    const std::lock_guard lock(pages_->changing);
    const Index in_pages = is_long ? begin - before : k.size(2);
    Index needed = 0;
    for (const auto& sequence : sequences_) {
      needed += sequence.pages_to_append(in_pages);
      if (is_long) needed += (after - from + config_.page_size - 1) / config_.page_size;
    }
    expect_pages(*pages_, needed, config_.max_tokens, k.size(2), before, sequences());
    for (int64_t b = 0; b < sequences(); ++b)
      at(b).append(view_of(k, "k", b).slice(0, in_pages), view_of(v, "v", b).slice(0, in_pages));
    HeldTokens all = held();
    all.chunk_ = std::move(chunk);
    all.room_ = room_;
    if (!is_long) {
      if (!keep) drop_behind_window();
      return all;
    }
    for (int64_t b = 0; b < sequences(); ++b) {
      at(b).restart(from);
      at(b).append(rows(k, "k", b, from - before), rows(v, "v", b, from - before));
    }
    return all;
  }
  /// What is held, for reading. @throws ArgumentError before the first tokens
  HeldTokens held() const {
    if (sequences_.empty()) fail("the cache", "empty", "tokens in it");
    return {sequences_, window_, value_dim_};
  }
  /// Drops what no later query sees.
  void drop_behind_window() {
    const auto lock = lock_changing(pages_);
    for (auto& sequence : sequences_) sequence.drop_before(length() - window_ + 1);
  }

  /// @throws ArgumentError unless the tokens that the next query sees are all held then
  void truncate(Index to) {
    const Index least = first_held() == 0 ? 0 : first_held() + window_ - 1;
    if (to < least || to > length())
      fail("length", std::to_string(to),
           std::to_string(least) + " to " + std::to_string(length()) + ", for which a window is held");
    const auto lock = lock_changing(pages_);
    for (auto& sequence : sequences_) sequence.truncate(to);
  }
  /// As KvCache::select.
  void select(const std::vector<Index>& indices) {
    config_.expect_paged("beams, whose sequences share pages");
    check_indices(indices, sequences());
    const auto lock = lock_changing(pages_);
    std::vector<RecentTokens> chosen;
    for (const Index i : indices) chosen.push_back(at(i).fork());
    sequences_ = std::move(chosen);
  }
  /// As KvCache::copy.
  std::unique_ptr<WindowedKvCache> copy() const {
    if (sequences() > 0) config_.expect_paged("copies, which share pages");
    auto made = std::make_unique<WindowedKvCache>(config_, window_, room_);
    room_->clear();
    const auto lock = lock_changing(pages_);
    made->value_dim_ = value_dim_;
    made->pages_ = pages_;
    for (const auto& sequence : sequences_) made->sequences_.push_back(sequence.fork());
    return made;
  }
  void clear() {
    sequences_.clear();
    pages_.reset();
    room_->clear();
  }

  Index sequences() const { return static_cast<Index>(sequences_.size()); }
  Index length() const { return sequences_.empty() ? 0 : sequences_.front().length(); }
  Index first_held() const { return sequences_.empty() ? 0 : sequences_.front().first_held(); }
  /// Of the pages in use, by copies of the cache and what append returned, too.
  Index bytes_used() const { return pages_ ? pages_->bytes_used() : 0; }

 private:
  RecentTokens& at(int64_t b) { return sequences_[static_cast<std::size_t>(b)]; }
  static gqa::ConstTensorView rows(const at::Tensor& x, const char* name, int64_t b, Index first) {
    return view_of(x, name, b).slice(first, x.size(2) - first);
  }
  void open(const at::Tensor& k, const at::Tensor& v) {
    const auto pages = std::make_shared<Pages>(config_.pool(k, v), k.size(0));
    std::vector<RecentTokens> made;
    for (int64_t b = 0; b < k.size(0); ++b) made.emplace_back(pages, 0);
    std::vector<std::int32_t> table;
    use_small_pages(made.front().view(table));
    pages_ = pages;
    sequences_ = std::move(made);
    value_dim_ = v.size(3);
  }

  /// A pool has room for max_tokens, of which a window is used: a huge page at either end of it would be more than that.
  static void use_small_pages([[maybe_unused]] const gqa::KvCacheView& view) {
#if defined(__linux__) && defined(MADV_NOHUGEPAGE)
    const auto small = [&](const void* data, gqa::KvType type, const gqa::KvStrides& strides) {
      if (reinterpret_cast<std::uintptr_t>(data) % 4096 != 0) return;
      const Index bytes = type.stride_bytes(strides.page) * view.pool_pages;
      static_cast<void>(::madvise(const_cast<void*>(data), static_cast<std::size_t>(bytes), MADV_NOHUGEPAGE));
    };
    small(view.k, view.k_type, view.k_strides);
    small(view.v, view.v_type, view.v_strides);
#endif
  }

  CacheConfig config_;
  Index window_;
  std::shared_ptr<ChunkRoom> room_;
  Index value_dim_ = 0;
  std::shared_ptr<Pages> pages_;
  std::vector<RecentTokens> sequences_;
};

}  // namespace gqa_torch
