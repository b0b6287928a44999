// SPDX-License-Identifier: Apache-2.0
/// @file
/// Views of caches that keep alive what they show.
#pragma once

#include <cstdint>
#include <memory>

#include "formats.hpp"

namespace gqa::python {

/// Who uses an owning cache, so that no thread changes one that a call reads, and no call reads what has been dropped. Under the GIL.
struct CacheState {
  Index readers = 0;          ///< calls that are running
  bool changing = false;      ///< a change is running without the GIL
  std::uint64_t version = 0;  ///< how often tokens that a view may show have been dropped or moved
};

/// What a KvCacheView of Python's is: the library's view, and what it refers to.
struct View {
  /// The library's views of the parts, in ascending order; the last one is the view itself. Its `earlier` is set by whole().
  std::vector<gqa::KvCacheView> parts;
  std::vector<std::shared_ptr<const std::vector<std::int32_t>>> tables{};  ///< page tables that are not an array's
  std::vector<std::shared_ptr<const Array>> arrays{};                      ///< kept alive
  nb::object owner{};                   ///< likewise: the cache that it was taken from
  std::shared_ptr<CacheState> state{};  ///< of that
  std::uint64_t version = 0;

  const gqa::KvCacheView& last() const { return parts.back(); }
  /// The view as calls want it; refers to this object. @throws ArgumentError if tokens that it shows are gone
  gqa::KvCacheView whole() const;
};

/// Of a cache's own view.
View snapshot(const gqa::KvCacheView& view, nb::object owner, std::shared_ptr<CacheState> state);

/// What calls take as a cache: a View, an owning cache, or a pair (keys, values) of arrays (tokens, KV heads, dim).
/// @param name what errors call it
View view_of(nb::handle object, const std::string& name);

/// Marks the caches behind views as read for as long as this lives. Made and destroyed under the GIL.
class Reading {
 public:
  Reading() = default;
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;
  ~Reading() {
    for (const std::shared_ptr<CacheState>& state : states_) --state->readers;
  }
  void add(const View& view) {
    if (view.state == nullptr) return;
    if (view.state->changing) fail("kv", "a cache that another thread is changing", "one that rests");
    ++view.state->readers;
    states_.push_back(view.state);
  }

 private:
  std::vector<std::shared_ptr<CacheState>> states_{};
};

void bind_views(nb::module_& module);

}  // namespace gqa::python
