// SPDX-License-Identifier: Apache-2.0
// Sequences whose positions are stored in several parts, of types and storages of their own: attention over them has the bits of one cache
// that holds the same numbers. And what is refused of a list of parts before any work. Caches that make such views: kv_plain_test.cpp.
#include "support/parts.hpp"

#include "support/messages.hpp"

namespace gqa::test {
namespace {

class Parts : public PerPath {
 protected:
  template <class V = Causal>
  Result attend(const ConstTensorView& q, const KvCacheView& kv, const V& variant = {},
                Products products = Products::as_stored, ExecutorRef executor = {}) const {
    How how{.path = path(), .executor = executor, .products = products};
    return test::attend(q, kv, how, variant, {}, PartsAttention());
  }
  Tensor queries(const Case& c, ElementType type, Random& random) const {
    Numbers q(c.n_q, c.group * c.kv_heads, c.head_dim);
    for (float& x : q.values) x = random.normal();
    return Tensor(q, type);
  }
};

constexpr Case kCases[] = {{4, 2, kPartDim, kPartDim, 1, 1500}, {1, 3, kPartDim, kPartDim, 3, 200},
                           {5, 1, kPartDim, kPartDim, 1, 700},  {3, 2, kPartDim, kPartDim, 40, 330},
                           {4, 1, kPartDim, kPartDim, 2, 129},  {2, 2, kPartDim, kPartDim, 1, 64}};

TEST_P(Parts, AreTheF32CacheOfWhatTheirRowsStandFor) {
  Random random(41);
  ThreadsExecutor threads{3};
  for (const Case& c : kCases)
    for (int seed = 0; seed < 6; ++seed) {
      SCOPED_TRACE(describe(c, seed));
      const DrawnParts drawn(c, part_formats(), random);
      const Tensor q = queries(c, ElementType::f32, random);
      for (const Products products : kEveryProducts) {
        if (products != Products::as_stored && has_f32_arithmetic_only(path())) continue;
        const Result expected = attend(q.const_view(), drawn.f32(), Causal{}, products);
        ASSERT_TRUE(same_bits(expected, attend(q.const_view(), drawn.view(), Causal{}, products, threads)));
      }
      const CausalWindow window{190};
      const WithStreaming followed(seed % 2 == 0 ? detail::Streaming::prefetched : detail::Streaming::followed);
      ASSERT_TRUE(same_bits(attend(q.const_view(), drawn.f32(), window), attend(q.const_view(), drawn.view(), window)));
    }
}

// bf16 products unasked where every row is bf16; one part of another type, and all is f32 arithmetic.
TEST_P(Parts, AgreeOnTheArithmetic) {
  Random random(42);
  const Case c{4, 2, kPartDim, kPartDim, 2, 400};
  const Tensor q = queries(c, ElementType::bf16, random);
  for (int seed = 0; seed < 8; ++seed) {
    const DrawnParts plain(c, {ElementType::bf16}, random);
    ContiguousKvCache whole(config_of(c, ElementType::bf16, ElementType::bf16, KvLayout::head_major, c.length));
    const KvCacheView f32 = plain.f32();
    whole.append(
        ConstTensorView(f32.k, ElementType::f32, c.length, c.kv_heads, kPartDim, {kPartDim, c.length * kPartDim, 1}),
        ConstTensorView(f32.v, ElementType::f32, c.length, c.kv_heads, kPartDim, {kPartDim, c.length * kPartDim, 1}));
    ASSERT_TRUE(same_bits(attend(q.const_view(), whole.view()), attend(q.const_view(), plain.view())));
    const DrawnParts mixed(c, {ElementType::bf16, Q8_0{}}, random);
    bool one_type = true;
    for (const KvCacheView& part : mixed.parts())
      one_type = one_type && part.k_type == ElementType::bf16 && part.v_type == ElementType::bf16;
    if (one_type) continue;
    ASSERT_TRUE(same_bits(attend(q.const_view(), mixed.f32()), attend(q.const_view(), mixed.view())));
  }
}

TEST_P(Parts, GoWithOthersInABatch) {
  Random random(43);
  const Case cases[] = {
      {4, 2, kPartDim, kPartDim, 1, 900}, {4, 2, kPartDim, kPartDim, 30, 300}, {4, 2, kPartDim, kPartDim, 2, 70}};
  std::vector<std::unique_ptr<DrawnParts>> drawn;
  std::vector<Tensor> q;
  std::vector<std::unique_ptr<Output>> outputs;
  std::vector<Sequence> batch;
  for (int i = 0; i < 9; ++i) {
    const Case& c = cases[i % 3];
    drawn.push_back(std::make_unique<DrawnParts>(c, part_formats(), random));
    q.push_back(queries(c, ElementType::f32, random));
    outputs.push_back(std::make_unique<Output>(ElementType::f32, c.n_q, 8, kPartDim));
  }
  for (std::size_t i = 0; i < 9; ++i)
    batch.push_back({q[i].const_view(),
                     i % 4 == 1 ? drawn[i]->f32() : drawn[i]->view(),
                     outputs[i]->view(),
                     {},
                     outputs[i]->lse()});
  Options options = How{.path = path(), .products = Products::as_stored}.options();
  ThreadsExecutor threads{4};
  options.executor = threads;
  const PartsAttention attention;
  std::vector<std::byte> scratch(attention.scratch_bytes(batch, options));
  options.scratch = scratch;
  attention(batch, options);
  for (std::size_t i = 0; i < 9; ++i)
    EXPECT_TRUE(same_bits(attend(q[i].const_view(), drawn[i]->f32()), outputs[i]->result())) << i;
}

// Caches that make parts of themselves. Appended in chunks or at once, contiguous or in pages, on any threads: one result.
TEST_P(Parts, OfOwningCachesAreTheF32CacheOfWhatTheirRowsStandFor) {
  Random random(45);
  const Case c{4, 2, kPartDim, kPartDim, 3, 700};
  const Rows rows(c, random);
  const Tensor q = queries(c, ElementType::f32, random);
  const ConstTensorView k(rows.k.data(), c.length, c.kv_heads, kPartDim);
  const ConstTensorView v(rows.v.data(), c.length, c.kv_heads, kPartDim);
  KvCacheConfig config = config_of(c, Q8_0{}, Fp8E4M3{}, KvLayout::head_major, c.length);
  KvPoolConfig pool_config = pool_of(c, Q8_0{}, Fp8E4M3{}, KvLayout::token_major, 16);
  config.first_tokens = pool_config.first_tokens = 128;
  config.newest_tokens = pool_config.newest_tokens = 64;
  ContiguousKvCache at_once(config), one_by_one(config);
  PagedKvPool pool(pool_config);
  PagedSequence in_pages = pool.sequence();
  ThreadsExecutor threads{3};
  for (Index length = 0; length < c.length;) {
    const Index chunk = std::min(c.length - length, 1 + random.below(150));
    in_pages.append(k.slice(length, chunk), v.slice(length, chunk));
    for (Index t = length; t < length + chunk; ++t) one_by_one.append(k.slice(t, 1), v.slice(t, 1));
    length += chunk;
    at_once.clear();
    at_once.append(k.slice(0, length), v.slice(0, length));
    if (length < c.n_q) continue;
    const KvCacheView view = at_once.view();
    ContiguousKvCache f32(config_of(c, ElementType::f32, ElementType::f32, KvLayout::head_major, c.length));
    f32.append(k.slice(0, length), v.slice(0, length));
    for (const bool keys : {true, false})
      for (Index t = 0; t < length; ++t)
        for (Index head = 0; head < c.kv_heads; ++head) {
          const KvCacheView& part = view.part(view.part_of(t));
          const KvEncoding coded = keys ? KvEncoding(Q8_0{}) : KvEncoding(Fp8E4M3{});
          decode(part.k_type == ElementType::bf16 ? KvEncoding(ElementType::bf16) : coded, row_at(part, keys, t, head),
                 kPartDim, detail::typed<float>(row_at(f32.view(), keys, t, head).row));
        }
    const Result expected = attend(q.const_view(), f32.view());
    ASSERT_TRUE(same_bits(expected, attend(q.const_view(), view))) << length;
    ASSERT_TRUE(same_bits(expected, attend(q.const_view(), one_by_one.view()))) << length;
    ASSERT_TRUE(same_bits(expected, attend(q.const_view(), in_pages.view(), Causal{}, Products::as_stored, threads)))
        << length;
  }
}

TEST_P(Parts, AgreeWithTheReference) {
  Random random(44);
  const Case c{2, 2, kPartDim, kPartDim, 3, 300};
  const DrawnParts drawn(c, {ElementType::f32, ElementType::bf16}, random);
  const Tensor q = queries(c, ElementType::f32, random);
  const ReferenceResult of_parts = reference_attention(q.const_view(), drawn.view());
  const ReferenceResult of_one = reference_attention(q.const_view(), drawn.f32());
  EXPECT_EQ(of_parts.out, of_one.out);
  EXPECT_TRUE(within_bound(q.const_view(), drawn.f32(), How{.path = path(), .products = Products::as_stored}, Causal{},
                           attend(q.const_view(), drawn.view())));
}

INSTANTIATE_TEST_SUITE_P(Paths, Parts, Parts::cases(), Parts::name);

// --- what is refused ---------------------------------------------------------------------------------------------------

/// Three parts, the last of which is the view: [0, 64) and [64, 192) and [192, 250), f32 rows, all in one piece of memory.
struct List {
  std::vector<float> rows = std::vector<float>(250 * 2 * kPartDim, 0.5f);
  std::vector<float> q = std::vector<float>(4 * kPartDim, 0.5f);
  std::vector<float> out = std::vector<float>(4 * kPartDim, 7.0f);
  std::vector<float> scales = std::vector<float>(250 * 2, 1.0f);
  std::vector<std::int32_t> table{0, 1, 2, 3};
  KvCacheView parts[3];

  List() {
    for (int i = 0; i < 3; ++i) parts[i] = KvCacheView::contiguous(rows.data(), rows.data(), {250, 2, kPartDim});
    parts[0].length = 64;
    parts[1].length = 192;
    parts[2].earlier = parts;
    parts[2].earlier_count = 2;
  }
  void page(KvCacheView& part) {
    part.storage = Storage::paged;
    part.page_size = 64;
    part.pool_pages = 3;
    part.page_table = table.data();
    part.page_table_size = 4;
    part.k_strides.page = part.v_strides.page = 64 * 2 * kPartDim;
  }
  std::string says(bool in_batch = false) {
    const PartsAttention attention;
    const Sequence sequence{ConstTensorView(q.data(), 1, 4, kPartDim), parts[2],
                            TensorView(out.data(), 1, 4, kPartDim)};
    const KvCacheView whole = KvCacheView::contiguous(rows.data(), rows.data(), {250, 2, kPartDim});
    std::vector<float> more(4 * kPartDim, 7.0f);
    const Sequence batch[] = {{sequence.q, whole, TensorView(more.data(), 1, 4, kPartDim)}, sequence};
    const std::string message = message_of([&] {
      if (in_batch) attention(batch);
      else attention(sequence);
    });
    if (message != kNothingThrown) {
      EXPECT_EQ(out, std::vector<float>(4 * kPartDim, 7.0f)) << "outputs are untouched";
    }
    return message;
  }
};
template <class Spoil>
std::string refusal(const Spoil& spoil, bool in_batch = false) {
  List list;
  spoil(list);
  return list.says(in_batch);
}

TEST(PartsErrors, NameThePart) {
  EXPECT_EQ(refusal([](List&) {}), kNothingThrown);
  EXPECT_EQ(refusal([](List& l) { l.parts[2].earlier_count = -1; }), "gqa: kv.earlier_count is -1; expected 0 to 63");
  EXPECT_EQ(refusal([](List& l) { l.parts[2].earlier_count = 64; }), "gqa: kv.earlier_count is 64; expected 0 to 63");
  EXPECT_EQ(refusal([](List& l) { l.parts[2].earlier = nullptr; }),
            "gqa: kv.earlier is null; expected a pointer to 2 views");
  EXPECT_EQ(refusal([](List& l) { l.parts[1].earlier_count = 1; }),
            "gqa: kv.earlier[1].earlier_count is 1; expected 0: one list has all parts");
  const std::string ends =
      "; expected where the part ends: a multiple of 64, more than the part before and less than kv.length";
  for (const Index length : {Index{0}, Index{-64}, Index{65}, Index{256}})
    EXPECT_EQ(refusal([&](List& l) { l.parts[0].length = length; }),
              "gqa: kv.earlier[0].length is " + std::to_string(length) + ends);
  EXPECT_EQ(refusal([](List& l) { l.parts[1].length = 64; }), "gqa: kv.earlier[1].length is 64" + ends);
  EXPECT_EQ(refusal([](List& l) { l.parts[2].length = 192; }), "gqa: kv.earlier[1].length is 192" + ends);
  EXPECT_EQ(refusal([](List& l) { l.parts[0].kv_heads = 1; }),
            "gqa: kv.earlier[0].kv_heads is 1; expected kv.kv_heads = 2");
  EXPECT_EQ(refusal([](List& l) { l.parts[1].head_dim = 32; }),
            "gqa: kv.earlier[1].head_dim is 32; expected kv.head_dim = 64");
  EXPECT_EQ(refusal([](List& l) { l.parts[1].value_dim = 32; }),
            "gqa: kv.earlier[1].value_dim is 32; expected kv.value_dim = 64");
  EXPECT_EQ(refusal([](List& l) { l.parts[1].k = nullptr; }),
            "gqa: kv.earlier[1].k is null; expected a pointer to f32 elements");
  EXPECT_EQ(refusal([](List& l) { l.parts[0].v_strides.token = 0; }),
            "gqa: kv.earlier[0].v_strides.token is 0; expected the distance from a token's row to the next token's");
  EXPECT_EQ(
      refusal([](List& l) { l.parts[0].k_type = ElementType::f16; }),
      "gqa: kv.earlier[0].k_type is f16; expected f32 or bf16 or q8_0 or fp8_e4m3, as the functor's CacheOf says");
  EXPECT_EQ(refusal([](List& l) { l.parts[1].v_type = Fp8E4M3::type; }),
            "gqa: kv.earlier[1].v_scales.data is null; expected a pointer to the scales of rows of fp8_e4m3");
  EXPECT_EQ(refusal([](List& l) { l.parts[1].v_type = Q8_0::type, l.parts[1].v_strides.token = 100; }),
            "gqa: kv.earlier[1].v_strides.token is 100; expected whole blocks of 32 elements");
  EXPECT_EQ(refusal([](List& l) { l.parts[0].k = nullptr; }, true),
            "gqa: batch[1].kv.earlier[0].k is null; expected a pointer to f32 elements");
}

TEST(PartsErrors, NameWhatIsNotThere) {
  EXPECT_EQ(refusal([](List& l) { l.parts[1].oldest = 65; }),
            "gqa: kv.earlier[1].oldest is 65; expected position 64, which a query sees, or before");
  EXPECT_EQ(refusal([](List& l) { l.parts[1].oldest = 193; }),
            "gqa: kv.earlier[1].oldest is 193; expected 0 to kv.length, 192");
  EXPECT_EQ(refusal([](List& l) { l.parts[2].oldest = 193; }),
            "gqa: kv.oldest is 193; expected position 192, which a query sees, or before");
  EXPECT_EQ(refusal([](List& l) { l.parts[2].oldest = 192; }), kNothingThrown);
  EXPECT_EQ(refusal([](List& l) { l.parts[1].storage = Storage::ring, l.parts[1].capacity = 128; }), kNothingThrown);
  EXPECT_EQ(refusal([](List& l) { l.parts[1].storage = Storage::ring, l.parts[1].capacity = 127; }),
            "gqa: kv.earlier[1].capacity is 127; expected room for position 64, which a query sees: at least length - "
            "position = 128");
  EXPECT_EQ(refusal([](List& l) {
              l.page(l.parts[1]), l.table = {77, 1, 0, 77};
            }),
            kNothingThrown)
      << "pages of other parts' positions are not looked at";
  EXPECT_EQ(refusal([](List& l) {
              l.page(l.parts[1]), l.table = {0, 1, 77, 3};
            }),
            "gqa: kv.earlier[1].page_table[2] is 77; expected a page in [0, 3), less than pool_pages");
}

TEST(PartsErrors, OutputsLieInNoPart) {
  List list;
  std::vector<float> apart(250 * 2 * kPartDim, 0.5f);
  const Sequence sequence{ConstTensorView(list.q.data(), 1, 4, kPartDim), list.parts[2],
                          TensorView(apart.data() + 1000, 1, 4, kPartDim)};
  const auto says = [&] { return message_of([&] { PartsAttention()(sequence); }); };
  EXPECT_EQ(says(), kNothingThrown);
  list.parts[0].v = apart.data();
  EXPECT_EQ(says(),
            "gqa: out is in the memory of kv.earlier[0].v; expected memory of its own, which no input and no other "
            "output lies in");
  list.parts[0].v = list.rows.data();
  Sequence in_list = sequence;
  in_list.out.data = list.parts;
  EXPECT_EQ(message_of([&] { PartsAttention()(in_list); }),
            "gqa: out is in the memory of kv.earlier; expected memory of its own, which no input and no other output "
            "lies in");
  EXPECT_EQ(message_of([&] { static_cast<void>(list.parts[2].slice_heads(0, 1)); }),
            "gqa: earlier_count is 2; expected 0: each part is sliced, and the list made of the slices");
}

}  // namespace
}  // namespace gqa::test
