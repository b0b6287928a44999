// SPDX-License-Identifier: Apache-2.0
/// @file
/// The Python module gqa_torch._C: a KV cache of the library, one layer's for all sequences of a batch. Importing it registers the operators
/// of gqa_torch.cpp, too.

#include <torch/extension.h>

#include <memory>
#include <mutex>

#include "call.hpp"
#include "gqa/kv_cache.hpp"

namespace gqa_torch {
namespace {

using at::Tensor;

/// Of what a cache may store: those that kernels.cpp compiles.
using StoredTypes = gqa::CacheOf<float, gqa::bf16, gqa::f16, gqa::Int8, gqa::Int4, gqa::Q8_0>;

gqa::KvEncoding encoding_of(const std::string& name, const char* argument) {
  if (name == "float32") return gqa::ElementType::f32;
  if (name == "bfloat16") return gqa::ElementType::bf16;
  if (name == "float16") return gqa::ElementType::f16;
  if (name == "int8") return gqa::Int8{};
  if (name == "int4") return gqa::Int4{};
  if (name == "q8_0") return gqa::Q8_0{};
  fail(argument, "'" + name + "'", "'float32', 'bfloat16', 'float16', 'int8', 'int4' or 'q8_0'");
}

struct CacheConfig {
  bool paged = true;
  std::string codec;        ///< of keys
  std::string value_codec;  ///< of values
  Index max_tokens = 0;     ///< of a sequence
  Index page_size = 64;
  Index rotation = 0;       ///< of keys and values, a power of two; 0: none
  Index first_tokens = 0;   ///< kept as bf16, too
  Index newest_tokens = 0;  ///< likewise
};

/// A pool of pages, which copies of a cache share. Of the calls that change who has which page, only one may run at a time.
struct Pages {
  gqa::PagedKvPool pool;
  Index room_for;  ///< sequences of max_tokens each
  std::mutex changing;

  Pages(const gqa::KvPoolConfig& config, Index sequences) : pool(config), room_for(sequences) {}
};

class KvCache {
 public:
  explicit KvCache(CacheConfig config) : config_(std::move(config)) {
    encoding_of(config_.codec, "codec");
    encoding_of(config_.value_codec, "value_codec");
    expect_count(config_.max_tokens, "max_tokens");
    expect_count(config_.page_size, "page_size");
  }
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;
  ~KvCache() { clear(); }

  /// Encodes tokens behind those held. The first call decides how many sequences and heads there are, and how wide.
  /// @param k (batch, KV heads, tokens, D), any strides
  /// @param v (batch, KV heads, tokens, Dv)
  /// @throws ArgumentError, StorageExhausted: all sequences grow, or none
  void append(const Tensor& k, const Tensor& v) {
    check_tensor(k, "k", 4);
    check_tensor(v, "v", 4);
    if (k.size(0) < 1) fail("k.size(0)", std::to_string(k.size(0)), "1 or more sequences");
    expect_size(v, "v", 0, k.size(0), "k.size(0)");
    expect_size(v, "v", 1, k.size(1), "k.size(1)");
    expect_size(v, "v", 2, k.size(2), "k.size(2)");
    element_type(k, "k");
    element_type(v, "v");
    if (k.size(2) > config_.max_tokens - length())
      exhausted("max_tokens is " + std::to_string(config_.max_tokens), k.size(2),
                std::max<Index>(sequences(), k.size(0)));
    if (sequences() == 0) open(k, v);
    expect_size(k, "k", 0, sequences(), "the cache's sequences");
    const auto lock = changing();
    Index needed = 0;
    for (const auto& sequence : pages_) needed += sequence.pages_to_append(k.size(2));
    if (shared_ && needed > shared_->pool.free_pages())
      exhausted("the pool, of " + std::to_string(config_.max_tokens) + " tokens for each of " +
                    std::to_string(shared_->room_for) + " sequences, has " +
                    std::to_string(shared_->pool.free_pages()) + " pages free",
                k.size(2), sequences());
    for_each([&](auto& sequence, int64_t b) { sequence.append(view_of(k, "k", b), view_of(v, "v", b)); });
  }

  /// Attention of the cache's last n_q tokens over it, read as it is stored: nothing is decoded into a tensor.
  /// @param q (batch, query heads, n_q, D)
  /// @return (batch, query heads, n_q, Dv) of q's type, laid out (batch, n_q, query heads, Dv)
  Tensor attention(const Tensor& q, const OptionalTensor& mask, bool causal, Index window, double soft_cap,
                   const OptionalTensor& sinks, std::optional<double> scale, const OptionalTensor& starts) {
    static const gqa::GroupedQueryAttention<gqa::dynamic, gqa::dynamic, gqa::dynamic, gqa::dynamic, StoredTypes>
        attention;
    check_tensor(q, "q", 4);
    expect_size(q, "q", 0, sequences(), "the cache's sequences");
    const Settings settings{mask, causal, window, soft_cap, sinks, scale, starts, {}};
    settings.check(q.size(0), q.size(1), q.size(2), length());
    const Tensor out = at::empty({q.size(0), q.size(2), q.size(1), value_dim_}, q.options()).transpose(1, 2);
    std::vector<gqa::Sequence> batch;
    for_each([&](auto& sequence, int64_t b) {
      batch.push_back({view_of(q, "q", b), sequence.view(), view_of<gqa::TensorView>(out, "out", b)});
    });
    const Tensor logits = sinks ? sinks->to(at::kFloat).contiguous() : Tensor();
    const Visible visible{causal, window, sinks ? logits.data_ptr<float>() : nullptr,
                          starts ? starts->data_ptr<int64_t>() : nullptr};
    TorchExecutor executor;
    with_variant(settings, visible,
                 [&](const auto& variant) { attention(batch, variant, settings.options(executor)); });
    return out;
  }

  void truncate(Index length) {
    const auto lock = changing();
    for_each([&](auto& sequence, int64_t) { sequence.truncate(length); });
  }
  /// Sequence i ← sequence indices[i], for all i; any number of them. Pages are shared, and copied when they are written to.
  void select(const std::vector<Index>& indices) {
    if (!config_.paged) fail("kind", "'contiguous'", "'paged' for beams, whose sequences share pages");
    for (const Index i : indices)
      if (i < 0 || i >= sequences())
        fail("indices", std::to_string(i), "0 to " + std::to_string(sequences() - 1) + ", a sequence of the cache");
    const auto lock = changing();
    std::vector<gqa::PagedSequence> chosen;
    for (const Index i : indices) chosen.push_back(pages_[static_cast<std::size_t>(i)].fork());
    pages_ = std::move(chosen);
  }
  /// A cache with the same tokens, in the same pages until one of the two writes to them.
  std::unique_ptr<KvCache> copy() const {
    if (!pieces_.empty()) fail("kind", "'contiguous'", "'paged' for copies, which share pages");
    auto made = std::make_unique<KvCache>(config_);
    const auto lock = changing();
    made->value_dim_ = value_dim_;
    made->shared_ = shared_;
    for (const auto& sequence : pages_) made->pages_.push_back(sequence.fork());
    return made;
  }
  void clear() {
    {
      const auto lock = changing();
      pages_.clear();
    }
    pieces_.clear();
    shared_.reset();
  }
  Index sequences() const { return static_cast<Index>(config_.paged ? pages_.size() : pieces_.size()); }
  Index length() const {
    return sequences() == 0 ? 0 : config_.paged ? pages_.front().length() : pieces_.front().length();
  }
  /// Bytes that hold tokens: of the pages in use, by copies of the cache too, or of the tokens' share of the memory.
  Index bytes_used() const {
    if (sequences() == 0) return 0;
    if (config_.paged) {
      const gqa::PagedKvPool& pool = shared_->pool;
      const auto lock = changing();
      return pool.bytes() / pool.pages() * (pool.pages() - pool.free_pages());
    }
    Index bytes = 0;
    for (const auto& piece : pieces_) bytes += piece.bytes() / piece.capacity() * piece.length();
    return bytes;
  }

 private:
  static void expect_count(Index value, const char* name) {
    constexpr Index most = std::numeric_limits<std::int32_t>::max();
    if (value < 1 || value > most) fail(name, std::to_string(value), "1 to " + std::to_string(most));
  }
  [[noreturn]] void exhausted(const std::string& what, Index tokens, Index of_sequences) const {
    throw gqa::StorageExhausted("gqa: " + what + "; expected room for " + std::to_string(tokens) +
                                " tokens more than the " + std::to_string(length()) + " held by each of " +
                                std::to_string(of_sequences) + " sequences");
  }
  std::unique_lock<std::mutex> changing() const {
    return shared_ ? std::unique_lock(shared_->changing) : std::unique_lock<std::mutex>();
  }
  void open(const Tensor& k, const Tensor& v) {
    const gqa::KvEncoding k_type = encoding_of(config_.codec, "codec");
    const gqa::KvEncoding v_type = encoding_of(config_.value_codec, "value_codec");
    if (!config_.paged) {
      std::vector<gqa::ContiguousKvCache> made;
      for (int64_t b = 0; b < k.size(0); ++b)
        made.emplace_back(gqa::KvCacheConfig{.kv_heads = k.size(1),
                                             .head_dim = k.size(3),
                                             .value_dim = v.size(3),
                                             .k_type = k_type,
                                             .v_type = v_type,
                                             .k_rotation = config_.rotation,
                                             .v_rotation = config_.rotation,
                                             .capacity = config_.max_tokens,
                                             .first_tokens = config_.first_tokens,
                                             .newest_tokens = config_.newest_tokens});
      pieces_ = std::move(made);
      value_dim_ = v.size(3);
      return;
    }
    // One page more than a sequence fills: of sequences that share their last page each asks for a copy before it writes, the last one too.
    const Index a_sequence = (config_.max_tokens + config_.page_size - 1) / config_.page_size + 1;
    shared_ = std::make_shared<Pages>(gqa::KvPoolConfig{.kv_heads = k.size(1),
                                                        .head_dim = k.size(3),
                                                        .value_dim = v.size(3),
                                                        .k_type = k_type,
                                                        .v_type = v_type,
                                                        .k_rotation = config_.rotation,
                                                        .v_rotation = config_.rotation,
                                                        .page_size = config_.page_size,
                                                        .pages = k.size(0) * a_sequence,
                                                        .first_tokens = config_.first_tokens,
                                                        .newest_tokens = config_.newest_tokens},
                                      k.size(0));
    value_dim_ = v.size(3);
    for (int64_t b = 0; b < k.size(0); ++b) pages_.push_back(shared_->pool.sequence());
  }
  template <class Work>
  void for_each(const Work& work) {
    int64_t b = 0;
    for (auto& sequence : pages_) work(sequence, b++);
    for (auto& sequence : pieces_) work(sequence, b++);
  }

  CacheConfig config_;
  Index value_dim_ = 0;
  std::shared_ptr<Pages> shared_;  ///< outlives pages_
  std::vector<gqa::PagedSequence> pages_;
  std::vector<gqa::ContiguousKvCache> pieces_;
};

}  // namespace
}  // namespace gqa_torch

PYBIND11_MODULE(_C, module) {
  using gqa_torch::CacheConfig;
  using gqa_torch::KvCache;
  namespace py = pybind11;
  using Alone = py::call_guard<py::gil_scoped_release>;
  py::class_<KvCache>(module, "KvCache")
      .def(py::init([](bool paged, std::string codec, std::string value_codec, gqa::Index max_tokens,
                       gqa::Index page_size, gqa::Index rotation, gqa::Index first_tokens, gqa::Index newest_tokens) {
             return std::make_unique<KvCache>(CacheConfig{paged, std::move(codec), std::move(value_codec), max_tokens,
                                                          page_size, rotation, first_tokens, newest_tokens});
           }),
           py::kw_only(), py::arg("paged"), py::arg("codec"), py::arg("value_codec"), py::arg("max_tokens"),
           py::arg("page_size"), py::arg("rotation"), py::arg("first_tokens"), py::arg("newest_tokens"))
      .def("append", &KvCache::append, Alone(), py::arg("k"), py::arg("v"))
      .def("attention", &KvCache::attention, Alone(), py::arg("q"), py::arg("mask"), py::arg("causal"),
           py::arg("window"), py::arg("soft_cap"), py::arg("sinks"), py::arg("scale"), py::arg("starts"))
      .def(
          "__deepcopy__", [](const KvCache& cache, const py::dict&) { return cache.copy(); }, py::arg("memo"))
      .def("truncate", &KvCache::truncate)
      .def("select", &KvCache::select)
      .def("clear", &KvCache::clear)
      .def_property_readonly("sequences", &KvCache::sequences)
      .def_property_readonly("length", &KvCache::length)
      .def_property_readonly("bytes_used", &KvCache::bytes_used);
}
