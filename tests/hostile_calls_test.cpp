// SPDX-License-Identifier: Apache-2.0
// Calls with hostile arguments, drawn at random. A call that is right has some of its fields replaced; a judge (support/hostile_call.hpp) says
// what becomes of it:
//   wrong     it must throw ArgumentError, the same from scratch_bytes, and leave outputs and LSE untouched
//   right     it must give the bits of the same numbers in plain storage, and write nothing else
//   unknown   the views claim memory that the test does not have: scratch_bytes alone is asked, which reads no tensor
// The functor is the same for all of them, and must go on working. Sanitizers look at the rest.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

#include "support/hostile_call.hpp"
#include "support/hostile_fields.hpp"
#include "support/messages.hpp"

namespace gqa::test {
namespace {

constexpr Index kMin = std::numeric_limits<Index>::min();

// --- the same numbers in plain storage ---------------------------------------------------------------------------------

Result plain_result(const HostileCall& call, const DynamicAttention& attention) {
  const auto& [q_view, kv_view, out_view, at, lse] = call.sequence;
  Numbers q(q_view.tokens, q_view.heads, q_view.dim);
  const auto read = [](const void* data, ElementType type, Index offset) {
    return read_element(static_cast<const std::byte*>(data) + offset * element_bytes(type), type);
  };
  for (Index t = 0; t < q.tokens; ++t)
    for (Index h = 0; h < q.heads; ++h)
      for (Index d = 0; d < q.dim; ++d)
        q.at(t, h, d) =
            read(q_view.data, q_view.type, t * q_view.strides.token + h * q_view.strides.head + d * q_view.strides.dim);
  // Positions from the first that anybody sees on; what is before it is far too much in a ring that has gone round.
  Index first = kv_view.length;
  for (Index t = 0; t < q.tokens; ++t) {
    const PositionRange range = call.seen(t);
    if (range.begin < range.end) first = std::min(first, range.begin);
  }
  first = first / 512 * 512;
  LogicalCache cache{Numbers(kv_view.length - first, kv_view.kv_heads, kv_view.head_dim),
                     Numbers(kv_view.length - first, kv_view.kv_heads, kv_view.value_dim)};
  for (Index p = std::max(first, kv_view.first_position()); p < kv_view.length; ++p) {
    Index slot = p, page = 0;
    if (kv_view.storage == Storage::ring) slot = p % kv_view.capacity;
    if (kv_view.storage == Storage::paged) {
      slot = p % kv_view.page_size;
      page = kv_view.page_table[p / kv_view.page_size];
      if (page < 0 || page >= kv_view.pool_pages) continue;
    }
    const KvStrides &k = kv_view.k_strides, &v = kv_view.v_strides;
    for (Index h = 0; h < kv_view.kv_heads; ++h) {
      for (Index d = 0; d < kv_view.head_dim; ++d)
        cache.k.at(p - first, h, d) = read(kv_view.k, kv_view.k_type, page * k.page + slot * k.token + h * k.head + d);
      for (Index d = 0; d < kv_view.value_dim; ++d)
        cache.v.at(p - first, h, d) = read(kv_view.v, kv_view.v_type, page * v.page + slot * v.token + h * v.head + d);
    }
  }
  std::vector<Index> positions(static_cast<std::size_t>(q.tokens));
  for (Index t = 0; t < q.tokens; ++t) {
    const Index position = at.empty() ? kv_view.length - q.tokens + t : at[static_cast<std::size_t>(t)];
    positions[static_cast<std::size_t>(t)] = position < kMin + first ? kMin : position - first;
  }
  const Tensor q_plain(q, q_view.type);
  const StoredCaches kv_plain = store_cache(cache, kv_view.k_type, kv_view.v_type, {});
  Output out(out_view.type, q.tokens, q.heads, out_view.dim);
  Options options = call.options;
  options.executor = {};
  options.scratch = {};
  call.with_variant([&](const auto& variant) {
    attention({q_plain.const_view(), kv_plain.view(), out.view(), positions, out.lse()}, variant, options);
  });
  return out.result();
}

Result given_result(const HostileCall& call) {
  const TensorView& o = call.sequence.out;
  Result result{o.tokens, o.heads, o.dim, {}, {call.sequence.lse.begin(), call.sequence.lse.end()}};
  for (Index t = 0; t < o.tokens; ++t)
    for (Index h = 0; h < o.heads; ++h)
      for (Index d = 0; d < o.dim; ++d)
        result.out.push_back(
            read_element(static_cast<const std::byte*>(o.data) +
                             (t * o.strides.token + h * o.strides.head + d * o.strides.dim) * element_bytes(o.type),
                         o.type));
  return result;
}

/// Bytes of the output's memory that changed.
Index written_bytes(HostileCall& call) {
  const std::vector<std::byte>& bytes = call.out.tensor().bytes();
  return std::count_if(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{0x5a}; });
}

// --- drawing -------------------------------------------------------------------------------------------------------------

void spoil_cache(Random& random, HostileCall& call) { spoil_cache(random, call.sequence.kv, call.table); }
void spoil_rest(Random& random, HostileCall& call) {
  Sequence& s = call.sequence;
  const auto tokens = static_cast<std::size_t>(call.problem.shape.n_q);
  switch (random.below(8)) {
    case 0:
      call.positions.resize(tokens + (random.below(4) == 0 ? 1 : 0));
      for (Index& p : call.positions) p = hostile_number(random, s.kv.length);
      s.positions = call.positions;
      break;
    case 1: s.positions = {hostile_pointer(random, static_cast<const Index*>(nullptr)), tokens}; break;
    case 2:
      s.lse = random.below(3) == 0
                  ? std::span<float>()
                  : s.lse.first(s.lse.size() -
                                std::min<std::size_t>(s.lse.size(), static_cast<std::size_t>(random.below(3))));
      break;
    case 3: s.lse = {hostile_pointer(random, s.lse.data()), s.lse.size()}; break;
    case 4: call.window = hostile_number(random, 8); break;
    case 5: call.executor.claimed_concurrency = hostile_number(random, 3); break;
    case 6:
      if (random.below(2) == 0) call.options.products = static_cast<Products>(random.below(256));
      else call.options.path = static_cast<Path>(random.below(256));
      break;
    default: {
      constexpr float scales[] = {0.0f, -1.0f, NAN, INFINITY, -INFINITY, 1e-40f, 0.125f};
      call.options.scale = scales[random.below(7)];
    }
  }
}

void draw_calls(const Place& place, const Types& types, TensorLayout layout, std::uint64_t seed, int draws) {
  const DynamicAttention attention;
  const Shape shape{4, 2, 16, 24, 3, 20};
  Random random(seed);
  HostileCall good(shape, types, place, layout, 7);
  good.window = place.storage == Storage::ring ? 8 : 0;
  const auto run = [&](HostileCall& call) {
    call.with_variant([&](const auto& variant) { attention(call.sequence, variant, call.options); });
  };
  run(good);
  const Result always = given_result(good);
  int count[3] = {};
  for (int draw = 0; draw < draws; ++draw) {
    HostileCall call(shape, types, place, layout, 7);
    call.window = good.window;
    for (Index changes = 1 + random.below(3) * random.below(2); changes > 0; --changes) {
      switch (random.below(4)) {
        case 0: spoil_tensor(random, call.sequence.q); break;
        case 1: spoil_tensor(random, call.sequence.out); break;
        case 2: spoil_cache(random, call); break;
        default: spoil_rest(random, call);
      }
    }
    SCOPED_TRACE(describe("seed ", seed, "draw ", draw));
    const Verdict verdict = call.judge();
    ++count[static_cast<int>(verdict)];
    std::size_t bytes = 0;
    const auto ask = [&] {
      call.with_variant([&](const auto& variant) {
        bytes = attention.scratch_bytes({&call.sequence, 1}, variant, call.options);
      });
    };
    if (verdict == Verdict::unknown) {
      const KvCacheView& kv = call.sequence.kv;
      const bool reads =
          kv.storage != Storage::contiguous;  // pages and positions of very many queries, or a table that is not there
      if (!reads) static_cast<void>(message_of(ask));
      continue;
    }
    const std::string asked = message_of(ask);
    if (verdict == Verdict::right && asked == kNothingThrown) {
      call.scratch.resize(bytes + 3);
      if (random.below(2) == 0)
        call.options.scratch = std::span(call.scratch).subspan(static_cast<std::size_t>(random.below(4)), bytes);
    }
    const std::string said = message_of([&] { run(call); });
    ASSERT_EQ(said, asked) << "scratch_bytes says the same";
    ASSERT_EQ(said == kNothingThrown, verdict == Verdict::right) << said;
    if (verdict == Verdict::wrong) {
      ASSERT_TRUE(call.out.untouched()) << said;
      if (draw % 16 != 0) continue;
      HostileCall again(shape, types, place, layout, 7);
      again.window = good.window;
      run(again);
      ASSERT_TRUE(same_bits(always, given_result(again))) << "the functor goes on";
      continue;
    }
    Result expected = plain_result(call, attention);
    if (call.sequence.lse.empty()) expected.lse.clear();
    const Result actual = given_result(call);
    ASSERT_EQ(expected.lse.size(), actual.lse.size());
    if (expected.lse.empty()) expected.lse.assign(static_cast<std::size_t>(actual.tokens * actual.heads), 0.0f);
    Result compared = actual;
    compared.lse.resize(expected.lse.size());
    ASSERT_TRUE(same_bits(expected, compared));
    ASSERT_LE(written_bytes(call), actual.tokens * actual.heads * actual.dim * element_bytes(call.sequence.out.type));
  }
  EXPECT_GT(count[0], draws / 4) << "wrong";
  EXPECT_GT(count[1], draws / 10) << "right";
  EXPECT_GT(count[2], draws / 100) << "unknown";
}

class HostileCalls : public testing::TestWithParam<int> {};

TEST_P(HostileCalls, AreRefusedOrRight) {
  const Place places[] = {
      contiguous_place(), contiguous_place(CacheLayout::head_major, 24), ring_place(10),
      paged_place(8),     paged_place(7, CacheLayout::reversed),         ring_place(10, CacheLayout::interleaved)};
  const auto i = static_cast<std::size_t>(GetParam());
  const Types types =
      i % 2 == 0 ? Types{} : Types{ElementType::bf16, ElementType::bf16, ElementType::bf16, ElementType::f16};
  draw_calls(places[i], types, kTensorLayouts[i % 5], static_cast<std::uint64_t>(i) + 1, 2000);
}

INSTANTIATE_TEST_SUITE_P(Storage, HostileCalls, testing::Range(0, 6));

}  // namespace
}  // namespace gqa::test
