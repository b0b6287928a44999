// SPDX-License-Identifier: Apache-2.0
// Where addresses have 32 bits: numbers that an Index can say and a size cannot. Cut off they would be small ones that fit; each is refused.
#include <cstdio>
#include <vector>

#include "gqa/gqa.hpp"
#include "gqa/kv_cache.hpp"

namespace {

using gqa::Index;

bool wrong = false;

template <class Call>
void refused(const char* what, const Call& call) {
  try {
    call();
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", what, error.what());
    return;
  }
  std::printf("%s: is taken\n", what);
  wrong = true;
}

constexpr Index kDim = 64;
const std::vector<float> floats(64 * kDim);

// A decode step over `length` tokens whose rows lie so far apart.
void attend(Index length, Index token_stride) {
  std::vector<float> out(kDim);
  gqa::KvCacheView kv =
      gqa::KvCacheView::contiguous(floats.data(), gqa::ElementType::f32, floats.data(), gqa::ElementType::f32,
                                   {.length = length, .kv_heads = 1, .head_dim = kDim, .value_dim = kDim});
  kv.k_strides.token = kv.v_strides.token = token_stride;
  const gqa::DynamicAttention attention;
  attention(gqa::Sequence{.q = gqa::ConstTensorView(floats.data(), 1, 1, kDim),
                          .kv = kv,
                          .out = gqa::TensorView(out.data(), 1, 1, kDim)},
            gqa::Causal{});
}

}  // namespace

int main() {
  static_assert(sizeof(void*) == 4 && sizeof(Index) == 8);
  attend(64, kDim);  // this is taken
  refused("a stride of 2^32 bytes and a little", [] { attend(5, (Index{1} << 30) + kDim); });
  refused("a stride of -2^33 bytes", [] { attend(2, -(Index{1} << 31)); });
  refused("a stride of 2^40 elements", [] { attend(2, Index{1} << 40); });
  refused("2^32 bytes of rows", [] { attend((Index{1} << 24) + 1, kDim); });
  refused("2^31 bytes of rows", [] { attend((Index{1} << 23) + 1, kDim); });
  refused("a span for 2^32 elements",
          [] { static_cast<void>(gqa::ConstTensorView(std::span(floats), Index{1} << 26, 1, kDim)); });
  refused("a slice behind 2^40 elements", [] {
    static_cast<void>(gqa::ConstTensorView(floats.data(), Index{1} << 40, 1, kDim).slice(Index{1} << 34, 1));
  });
  for (const Index tokens : {Index{1} << 20, Index{1} << 21, Index{1} << 30})
    refused("a cache of 2^31 bytes or more",
            [=] { const gqa::ContiguousKvCache cache({.kv_heads = 8, .head_dim = 128, .capacity = tokens + 1}); });
  refused("a page table of 2^32 bytes", [] {
    const std::vector<std::int32_t> pages(1);
    gqa::KvCacheView kv;
    std::vector<float> out(kDim);
    kv = gqa::KvCacheView::contiguous(floats.data(), gqa::ElementType::f32, floats.data(), gqa::ElementType::f32,
                                      {.length = 5, .kv_heads = 1, .head_dim = kDim, .value_dim = kDim});
    kv.storage = gqa::Storage::paged;
    kv.page_size = kv.pool_pages = 8;
    kv.page_table = pages.data();
    kv.page_table_size = Index{1} << 30;
    kv.k_strides.page = kv.v_strides.page = 8 * kDim;
    const gqa::DynamicAttention attention;
    attention(gqa::Sequence{.q = gqa::ConstTensorView(floats.data(), 1, 1, kDim),
                            .kv = kv,
                            .out = gqa::TensorView(out.data(), 1, 1, kDim)});
  });
  return wrong ? 1 : 0;
}
