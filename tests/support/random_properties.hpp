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
  StoredCall(const DrawnCall& drawn, const Place& place) : drawn_(drawn), kv_(drawn.store(place)) {
    for (const Problem& p : drawn.problems) q_.emplace_back(p.q, drawn.types.q, drawn.q_layout);
  }

  /// All of it.
  std::vector<Result> whole(const How& how) const {
    std::vector<Output> outputs;
    std::vector<Sequence> batch;
    for (std::size_t s = 0; s < q_.size(); ++s) {
      outputs.emplace_back(how.out, q_[s].view().tokens, drawn_.shape.query_heads, drawn_.shape.value_dim,
                           how.out_layout);
      batch.push_back(
          {q_[s].const_view(), kv_.view(s), outputs[s].view(), drawn_.sequences()[s].positions, outputs[s].lse()});
    }
    call(ScopedVariant(drawn_.numbers, drawn_.combination), attention_, batch, how.options());
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

  /// A row of a result of `whole` against the definition. The share of its bound, or a negative one if the bound says nothing.
  double share_of_bound(const RowContext& row, const Result& whole, std::string& worst) const;

 private:
  struct View {
    ConstTensorView q;
    KvCacheView kv;
    std::vector<Index> positions;
    View(const StoredCall& stored, const Scope& scope, bool cut);
  };

  const DrawnCall& drawn_;
  StoredCaches kv_;
  std::vector<Tensor> q_;
  DynamicAttention attention_;
};

inline StoredCall::View::View(const StoredCall& stored, const Scope& scope, bool cut) {
  const auto s = static_cast<std::size_t>(scope.first_sequence);
  const DrawnSequence& sequence = stored.drawn_.sequences()[s];
  const Index count = scope.queries < 0 ? sequence.n_q : scope.queries;
  q = stored.q_[s].const_view().slice(scope.first_query, count);
  kv = stored.kv_.view(s);
  if (scope.head >= 0) {
    q.data = static_cast<const std::byte*>(q.data) + scope.head * q.strides.head * element_bytes(q.type);
    q.heads = 1;
    kv = kv.slice_heads(scope.head / stored.drawn_.group(), 1);
  }
  const Index length = sequence.n_kv - sequence.n_q + scope.first_query + count;
  if (cut && sequence.positions.empty() && length >= 0) {
    kv.length = length;
  } else if (count != sequence.n_q || !sequence.positions.empty()) {
    for (Index i = 0; i < count; ++i) positions.push_back(sequence.position(scope.first_query + i));
  }
}

inline double StoredCall::share_of_bound(const RowContext& row, const Result& whole, std::string& worst) const {
  const VariantNumbers& numbers = drawn_.numbers;
  const View view(*this, {row.sequence, row.query, 1, row.query_head}, false);
  Result one{1, 1, whole.dim, {}, {whole.lse_at(row.query, row.query_head)}};
  for (Index d = 0; d < whole.dim; ++d) one.out.push_back(whole.at(row.query, row.query_head, d));
  const Index positions[] = {row.position};
  OutputChange change;
  if (drawn_.has(Part::value_scale) || drawn_.has(Part::output_gate))
    change = [&](Index, Index, Index d) { return output_change(drawn_.parts(), numbers, row, d); };
  const auto compare = [&](const auto& written) {
    return compare_with_reference(view.q, view.kv, drawn_.how, written, one, positions, change);
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
      : drawn_(drawn), draws_(draws), counts_(counts), stored_(drawn, drawn.place) {}

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
    compare_all("in other storage", StoredCall(drawn_, drawn_.other_place).whole(plain));
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
        const double share = stored_.share_of_bound(row, whole_[s], worst);
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
      const bool cut = sees_nothing_ahead() && draws_.flag("caches grow by chunks");
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
  std::vector<Result> whole_;
  std::string broken_;
};

}  // namespace gqa::test
