// SPDX-License-Identifier: Apache-2.0
/// @file
/// The Python module gqa_torch._C: KV caches of the library, one layer's for all sequences of a batch. Importing it registers the operators
/// of gqa_torch.cpp, too.

#include <torch/extension.h>

#include <memory>

#include "storage.hpp"
#include "window.hpp"

namespace gqa_torch {
namespace {

using at::Tensor;

/// All tokens of a layer.
class KvCache {
 public:
  explicit KvCache(CacheConfig config) : config_(std::move(config)) { config_.check(); }
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;
  ~KvCache() { clear(); }

  /// Encodes tokens behind those held. The first call decides how many sequences and heads there are, and how wide.
  /// @param k (batch, KV heads, tokens, D), any strides
  /// @param v (batch, KV heads, tokens, Dv)
  /// @throws ArgumentError, StorageExhausted: all sequences grow, or none
  void append(const Tensor& k, const Tensor& v) {
    check_append(k, v, config_.max_tokens, length(), sequences());
    if (sequences() == 0) open(k, v);
    const auto lock = lock_changing(shared_);
    Index needed = 0;
    for (const auto& sequence : pages_) needed += sequence.pages_to_append(k.size(2));
    if (shared_) expect_pages(*shared_, needed, config_.max_tokens, k.size(2), length(), sequences());
    for_each([&](auto& sequence, int64_t b) { sequence.append(view_of(k, "k", b), view_of(v, "v", b)); });
  }

  /// As attend has it.
  Tensor attention(const Tensor& q, const Settings& settings) {
    std::vector<gqa::KvCacheView> views;
    for_each([&](auto& sequence, int64_t) { views.push_back(sequence.view()); });
    return attend(q, views, value_dim_, settings);
  }

  void truncate(Index length) {
    const auto lock = lock_changing(shared_);
    for_each([&](auto& sequence, int64_t) { sequence.truncate(length); });
  }
  /// Sequence i ← sequence indices[i], for all i; any number of them. Pages are shared, and copied when they are written to.
  void select(const std::vector<Index>& indices) {
    config_.expect_paged("beams, whose sequences share pages");
    check_indices(indices, sequences());
    const auto lock = lock_changing(shared_);
    std::vector<gqa::PagedSequence> chosen;
    for (const Index i : indices) chosen.push_back(pages_[static_cast<std::size_t>(i)].fork());
    pages_ = std::move(chosen);
  }
  /// A cache with the same tokens, in the same pages until one of the two writes to them.
  std::unique_ptr<KvCache> copy() const {
    if (sequences() > 0) config_.expect_paged("copies, which share pages");
    auto made = std::make_unique<KvCache>(config_);
    const auto lock = lock_changing(shared_);
    made->value_dim_ = value_dim_;
    made->shared_ = shared_;
    for (const auto& sequence : pages_) made->pages_.push_back(sequence.fork());
    return made;
  }
  void clear() {
    {
      const auto lock = lock_changing(shared_);
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
    if (config_.paged) return shared_->bytes_used();
    Index bytes = 0;
    for (const auto& piece : pieces_) bytes += piece.bytes() / piece.capacity() * piece.length();
    return bytes;
  }

 private:
  void open(const Tensor& k, const Tensor& v) {
    if (config_.paged) {
      shared_ = std::make_shared<Pages>(config_.pool(k, v), k.size(0));
      for (int64_t b = 0; b < k.size(0); ++b) pages_.push_back(shared_->pool.sequence());
    } else {
      std::vector<gqa::ContiguousKvCache> made;
      for (int64_t b = 0; b < k.size(0); ++b) made.emplace_back(config_.one_piece(k, v, config_.max_tokens));
      pieces_ = std::move(made);
    }
    value_dim_ = v.size(3);
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
  using gqa_torch::ChunkRoom;
  using gqa_torch::HeldTokens;
  using gqa_torch::KvCache;
  using gqa_torch::OptionalTensor;
  using gqa_torch::WindowedKvCache;
  namespace py = pybind11;
  using Alone = py::call_guard<py::gil_scoped_release>;

  py::class_<CacheConfig>(module, "CacheConfig")
      .def(py::init([](bool paged, std::string codec, std::string value_codec, gqa::Index max_tokens,
                       gqa::Index page_size, gqa::Index rotation, gqa::Index first_tokens, gqa::Index newest_tokens) {
             return CacheConfig{paged,     std::move(codec), std::move(value_codec), max_tokens,
                                page_size, rotation,         first_tokens,           newest_tokens};
           }),
           py::kw_only(), py::arg("paged"), py::arg("codec"), py::arg("value_codec"), py::arg("max_tokens"),
           py::arg("page_size"), py::arg("rotation"), py::arg("first_tokens"), py::arg("newest_tokens"));

  const auto attention_of = [](auto& layer) {
    using Layer = typename std::remove_reference_t<decltype(layer)>::type;
    layer.def(
        "attention",
        [](Layer& held, const at::Tensor& q, const OptionalTensor& mask, bool causal, gqa::Index window,
           double soft_cap, const OptionalTensor& sinks, std::optional<double> scale, const OptionalTensor& starts) {
          return held.attention(q, {mask, causal, window, soft_cap, sinks, scale, starts, {}});
        },
        Alone(), py::arg("q"), py::arg("mask"), py::arg("causal"), py::arg("window"), py::arg("soft_cap"),
        py::arg("sinks"), py::arg("scale"), py::arg("starts"));
    layer.def_property_readonly("length", &Layer::length);
  };
  const auto cache_of = [](auto& layer) {
    using Layer = typename std::remove_reference_t<decltype(layer)>::type;
    layer
        .def(
            "__deepcopy__", [](const Layer& cache, const py::dict&) { return cache.copy(); }, py::arg("memo"))
        .def("truncate", &Layer::truncate)
        .def("select", &Layer::select)
        .def("clear", &Layer::clear)
        .def_property_readonly("sequences", &Layer::sequences)
        .def_property_readonly("bytes_used", &Layer::bytes_used);
  };

  py::class_<KvCache> all(module, "KvCache");
  all.def(py::init<CacheConfig>()).def("append", &KvCache::append, Alone(), py::arg("k"), py::arg("v"));
  cache_of(all);
  attention_of(all);

  py::class_<ChunkRoom, std::shared_ptr<ChunkRoom>>(module, "ChunkRoom").def(py::init<>());
  py::class_<WindowedKvCache> windowed(module, "WindowedKvCache");
  windowed
      .def(py::init<CacheConfig, gqa::Index, std::shared_ptr<ChunkRoom>>(), py::arg("config"), py::arg("window"),
           py::arg("room"))
      .def("append", &WindowedKvCache::append, Alone(), py::arg("k"), py::arg("v"), py::arg("keep"))
      .def("drop_behind_window", &WindowedKvCache::drop_behind_window)
      .def("held", &WindowedKvCache::held)
      .def_property_readonly("length", &WindowedKvCache::length)
      .def_property_readonly("first_held", &WindowedKvCache::first_held);
  cache_of(windowed);

  py::class_<HeldTokens> held(module, "HeldTokens");
  held.def_property_readonly("first_held", &HeldTokens::first_held);
  attention_of(held);
}
