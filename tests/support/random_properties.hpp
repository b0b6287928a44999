// SPDX-License-Identifier: Apache-2.0
// What must hold of any drawn call: its result is that of the definition, and has the same bits however the call is cut, stored and run.
#pragma once

#include <gtest/gtest-spi.h>

#include "random_call.hpp"
#include "random_definition.hpp"
#include "reference_check.hpp"

namespace gqa::test {

/// A drawn call's tensors in one storage, and calls of parts of it.
class StoredCall {
 public:
  StoredCall(const DrawnCall& drawn, const Place& place, const Place& other)
      : StoredCall(drawn, drawn.store(place, other)) {}
  /// In plain elements.
  explicit StoredCall(const DrawnCall& drawn) : StoredCall(drawn, drawn.store_plain()) {}
  StoredCall(const DrawnCall& drawn, DrawnStorage&& kv) : drawn_(drawn), kv_(std::move(kv)) {
    for (const Problem& p : drawn.problems) q_.emplace_back(p.q, drawn.types.q, drawn.q_layout);
  }

  /// All of it; in as much scratch as the functor asks for, if it is not to have its own.
  std::vector<Result> whole(const How& how, bool in_scratch = false) const {
    std::vector<Output> outputs;
    std::vector<Sequence> batch;
    for (std::size_t s = 0; s < q_.size(); ++s) {
      outputs.emplace_back(how.out, q_[s].view().tokens, drawn_.shape.query_heads, drawn_.shape.value_dim,
                           how.out_layout);
      batch.push_back(
          {q_[s].const_view(), kv_.view(s), outputs[s].view(), drawn_.sequences()[s].positions, outputs[s].lse()});
    }
    const ScopedVariant variant(drawn_.numbers, drawn_.combination);
    Options options = how.options();
    std::vector<std::byte> scratch;
    if (in_scratch) {
      scratch.resize(scratch_bytes(variant, attention_, batch, options));
      options.scratch = scratch;
    }
    call(variant, attention_, batch, options);
    std::vector<Result> results;
    for (const Output& output : outputs) results.push_back(output.result());
    return results;
  }

  /// A part of one sequence; `cut`: with a cache that ends with the part's last token.
  Result part(const Scope& scope, bool cut, const How& how) const {
    const View view(*this, scope, cut);
    Output output(how.out, view.q.tokens, view.q.heads, view.kv.value_dim, how.out_layout);
    const Sequence sequence{view.q, view.kv, output.view(), view.positions, output.lse()};
    call(ScopedVariant(drawn_.numbers, drawn_.combination, scope), attention_, {&sequence, 1}, how.options());
    return output.result();
  }

  /// A row of a result of `whole` against the definition, with the numbers of `plain`. The share of its bound, or a negative one if the bound
  /// says nothing.
  double share_of_bound(const RowContext& row, const Result& whole, const StoredCall& plain, std::string& worst) const;

  /// Whether a call computes with integers for a sequence, whose cache is one of `plain`, too.
  bool computes_with_integers(std::size_t s, const StoredCall& plain, const How& how) const {
    bool any = false;
    const KvCacheView& kv = kv_.view(s);
    for (Index i = 0; i <= kv.earlier_count; ++i)
      any = any || integers(kv.part(i), true) || integers(kv.part(i), false);
    return any && bf16_terms(q_[s].const_view(), plain.kv_.view(s), how) == 0;
  }

 private:
  struct View {
    ConstTensorView q;
    KvCacheView kv;
    std::vector<KvCacheView> earlier;
    std::vector<Index> positions;
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    View(const StoredCall& stored, const Scope& scope, bool cut);
  };

  const DrawnCall& drawn_;
  DrawnStorage kv_;
  std::vector<Tensor> q_;
  DrawnAttention attention_;
};

inline StoredCall::View::View(const StoredCall& stored, const Scope& scope, bool cut) {
  const auto s = static_cast<std::size_t>(scope.first_sequence);
  const DrawnSequence& sequence = stored.drawn_.sequences()[s];
  const Index count = scope.queries < 0 ? sequence.n_q : scope.queries;
  q = stored.q_[s].const_view().slice(scope.first_query, count);
  kv = stored.kv_.view(s);
  earlier.assign(kv.earlier, kv.earlier + kv.earlier_count);
  kv.earlier_count = 0;
  if (scope.head >= 0) {
    q.data = static_cast<const std::byte*>(q.data) + scope.head * q.strides.head * element_bytes(q.type);
    q.heads = 1;
    kv = kv.slice_heads(scope.head / stored.drawn_.group(), 1);
    for (KvCacheView& part : earlier) part = part.slice_heads(scope.head / stored.drawn_.group(), 1);
  }
  const Index length = sequence.n_kv - sequence.n_q + scope.first_query + count;
  if (cut && sequence.positions.empty() && length >= 0) {
    for (; !earlier.empty() && earlier.back().length >= length; earlier.pop_back()) kv = earlier.back();
    kv.length = length;
  } else if (count != sequence.n_q || !sequence.positions.empty()) {
    for (Index i = 0; i < count; ++i) positions.push_back(sequence.position(scope.first_query + i));
  }
  kv.earlier = earlier.data();
  kv.earlier_count = static_cast<Index>(earlier.size());
}

inline double StoredCall::share_of_bound(const RowContext& row, const Result& whole, const StoredCall& plain,
                                         std::string& worst) const {
  const VariantNumbers& numbers = drawn_.numbers;
  const Scope scope{row.sequence, row.query, 1, row.query_head};
  const View view(plain, scope, false), as_stored(*this, scope, false);
  How how = drawn_.how;
  if (computes_with_integers(static_cast<std::size_t>(row.sequence), plain, how)) how.integers = &as_stored.kv;
  Result one{1, 1, whole.dim, {}, {whole.lse_at(row.query, row.query_head)}};
  for (Index d = 0; d < whole.dim; ++d) one.out.push_back(whole.at(row.query, row.query_head, d));
  const Index positions[] = {row.position};
  OutputChange change;
  if (drawn_.has(Part::value_scale) || drawn_.has(Part::output_gate))
    change = [&](Index, Index, Index d) { return output_change(drawn_.parts(), numbers, row, d); };
  const auto compare = [&](const auto& written) {
    return compare_with_reference(view.q, view.kv, how, written, one, positions, change);
  };
  const WrittenMask mask{numbers, drawn_.parts(), row};
  const bool scores = std::any_of(drawn_.parts().begin(), drawn_.parts().end(),
                                  [](Part part) { return part >= Part::soft_cap && part <= Part::users_scalar_score; });
  const ErrorReport report = drawn_.has(Part::learned_sinks) ? compare(WrittenSink{mask})
                             : scores                        ? compare(WrittenScore{mask})
                                                             : compare(mask);
  if (report.largest_eta >= 0.5) return -1.0;
  worst = report.worst;
  return report.largest_share_of_bound;
}

/// How much was looked at.
struct PropertyCounts {
  Index rows = 0;              ///< held against the definition
  Index unjudged = 0;          ///< whose bound said nothing
  Index calls = 0;             ///< whose bits were compared with those of the whole call
  double largest_share = 0.0;  ///< of its bound, of a row in f32: rounded ones come as near as their rounding does
};

/// Holds a call to its properties. What to look at is drawn, too.
class PropertyCheck {
 public:
  PropertyCheck(const DrawnCall& drawn, Draws& draws, PropertyCounts& counts)
      : drawn_(drawn), draws_(draws), counts_(counts), stored_(drawn, drawn.place, drawn.other_place) {
    if (drawn.coded()) plain_.emplace(drawn);
  }

  /// What does not hold, or nothing.
  std::string broken() {
    testing::TestPartResultArray noted;  // what Output finds amiss
    const testing::ScopedFakeTestPartResultReporter reporter(
        testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &noted);
    try {
      check();
    } catch (const std::exception& error) {
      broken_ += std::string("thrown: ") + error.what();
    }
    for (int i = 0; i < noted.size(); ++i) broken_ += noted.GetTestPartResult(i).message();
    return broken_;
  }

 private:
  void check() {
    const How plain = drawn_.how;
    ShuffledExecutor shuffled{7, 3};
    ThreadsExecutor threads{2};
    How how = plain;
    if (drawn_.executor == 1) how.executor = shuffled;
    if (drawn_.executor == 2) how.executor = threads;
    whole_ = stored_.whole(how);
    check_definition();
    if (drawn_.executor != 0) compare_all("on one thread", stored_.whole(plain));
    // Of processors there are two kinds, by how they follow memory.
    const WithStreaming streaming(draws_.flag("streams are followed") ? detail::Streaming::followed
                                                                      : detail::Streaming::prefetched);
    compare_all("in other storage", StoredCall(drawn_, drawn_.other_place, drawn_.place).whole(plain, true));
    if (plain_.has_value()) {
      const std::vector<Result> same = plain_->whole(plain);
      for (std::size_t s = 0; s < same.size(); ++s)
        if (!stored_.computes_with_integers(s, *plain_, plain)) compare("in plain elements", whole_[s], same[s]);
    }
    check_parts(plain);
    if (has_f32_arithmetic_only(plain.path)) {
      const std::vector<Path> paths = f32_paths();
      How there = plain;
      there.path = paths[static_cast<std::size_t>(draws_.draw("other path", 0, static_cast<Index>(paths.size()) - 1))];
      const bool slow = there.path == Path::portable && drawn_.work() > 400'000;
      if (there.path != plain.path && !slow) compare_all(on(there.path).c_str(), stored_.whole(there));
    }
  }

  void check_definition() {
    for (std::size_t s = 0; s < whole_.size() && broken_.empty(); ++s) {
      if (!drawn_.may_be_rounded || whole_[s].tokens == 0) continue;
      for (int i = 0; i < 2 && broken_.empty(); ++i) {
        const Index token = draws_.draw("row's token", 0, whole_[s].tokens - 1);
        const Index head = draws_.draw("row's head", 0, drawn_.shape.query_heads - 1);
        const RowContext row{{drawn_.sequences()[s].position(token), token, static_cast<Index>(s)}, head};
        std::string worst;
        const double share = stored_.share_of_bound(row, whole_[s], plain_ ? *plain_ : stored_, worst);
        ++counts_.rows;
        counts_.unjudged += share < 0.0 ? 1 : 0;
        if (drawn_.types.out == ElementType::f32) counts_.largest_share = std::max(counts_.largest_share, share);
        if (!(share <= 1.0))
          broken_ +=
              describe("sequence", s, "token", token, "head", head, share, "times the bound of the definition:", worst);
      }
    }
  }

  /// Each sequence, chunks of it, and a row, alone.
  void check_parts(const How& how) {
    const bool tree = drawn_.has(Part::draft_tree);
    for (std::size_t s = 0; s < whole_.size() && broken_.empty(); ++s) {
      const auto sequence = static_cast<Index>(s);
      const Index tokens = whole_[s].tokens;
      if (whole_.size() > 1) compare("a sequence alone", whole_[s], stored_.part({sequence, 0, -1, -1}, false, how));
      const Index head = draws_.draw("head alone", 0, drawn_.shape.query_heads - 1);
      if (tree) {
        compare("a head alone", of_head(whole_[s], 0, tokens, head), stored_.part({sequence, 0, -1, head}, false, how));
        continue;
      }
      if (tokens == 0) continue;
      const Index token = draws_.draw("token alone", 0, tokens - 1);
      compare("a row alone", of_head(whole_[s], token, 1, head), stored_.part({sequence, token, 1, head}, false, how));
      if (tokens == 1) continue;
      const Index chunk = draws_.draw("chunk of query tokens", 1, std::min<Index>(tokens, 70));
      // Where a part is gone, products may be bf16 that were not.
      const bool may_cut = sees_nothing_ahead() && (drawn_.stored.size() == 1 || drawn_.types.q != ElementType::bf16);
      const bool cut = may_cut && draws_.flag("caches grow by chunks");
      Result chunks;
      Index calls = 0;
      Index first = tokens > 16 * chunk ? tokens - 16 * chunk : 0;  // not too many of them
      const Index begin = first;
      for (; first < tokens; first += chunk, ++calls)
        chunks.append(stored_.part({sequence, first, std::min(chunk, tokens - first), -1}, cut, how));
      compare("in chunks", whole_[s].slice(begin, tokens - begin), chunks);
    }
  }

  bool sees_nothing_ahead() const {
    for (const Part part :
         {Part::causal, Part::causal_window, Part::first_tokens_and_window, Part::chunked_local, Part::dilated_window})
      if (drawn_.has(part)) return true;
    return drawn_.has(Part::packed_documents) && drawn_.numbers.documents_causal;
  }

  static Result of_head(const Result& whole, Index first, Index count, Index head) {
    Result one{count, 1, whole.dim, {}, {}};
    for (Index t = first; t < first + count; ++t) {
      for (Index d = 0; d < whole.dim; ++d) one.out.push_back(whole.at(t, head, d));
      one.lse.push_back(whole.lse_at(t, head));
    }
    return one;
  }

  void compare(const char* what, const Result& expected, const Result& actual) {
    ++counts_.calls;
    const testing::AssertionResult same = same_bits(expected, actual);
    if (!same) broken_ += std::string(what) + ": " + same.message() + "\n";
  }
  void compare_all(const char* what, const std::vector<Result>& results) {
    for (std::size_t s = 0; s < whole_.size(); ++s) compare(what, whole_[s], results[s]);
  }

  const DrawnCall& drawn_;
  Draws& draws_;
  PropertyCounts& counts_;
  StoredCall stored_;
  std::optional<StoredCall> plain_;  // if caches are of other than plain elements
  std::vector<Result> whole_;
  std::string broken_;
};

}  // namespace gqa::test
