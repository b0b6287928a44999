// SPDX-License-Identifier: Apache-2.0
#include "caches.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <exception>
#include <optional>

#include "cycles.hpp"
#include "gil.hpp"
#include "rope.hpp"

namespace gqa::python {

namespace {

/// A cache of one sequence, and who uses it.
template <class Cache>
struct Owned {
  Cache cache;
  std::shared_ptr<CacheState> state = std::make_shared<CacheState>();
  bool always_stale = false;  ///< append() makes older views stale, whatever it moves
  nb::object pool{};          ///< of a paged sequence
};
using Contiguous = Owned<ContiguousKvCache>;
using Ring = Owned<RingKvCache>;
using Paged = Owned<PagedSequence>;

/// A change of a cache, while this lives. One that fails has changed nothing, so that older views stay as good as they were.
class Changing {
 public:
  Changing(CacheState& state, bool makes_stale) : state_(state), makes_stale_(makes_stale) {
    if (state.readers > 0)
      fail("cache", "in use by a call of another thread", "a cache that no call reads while it changes");
    if (state.changing) fail("cache", "being changed by another thread", "a cache that one thread changes at a time");
    state.changing = true;
  }
  Changing(const Changing&) = delete;
  Changing& operator=(const Changing&) = delete;
  ~Changing() {
    state_.changing = false;
    if (makes_stale_ && std::uncaught_exceptions() == raised_) ++state_.version;
  }
  void makes_stale() { makes_stale_ = true; }

 private:
  CacheState& state_;
  bool makes_stale_;
  int raised_ = std::uncaught_exceptions();
};

constexpr const char* kKeyAxes = "(tokens, KV heads, head dim)";
constexpr const char* kValueAxes = "(tokens, KV heads, value dim)";

/// The GIL is let go where nothing else is shared: pages of a pool are.
template <class C>
constexpr bool kSharesNothing = !std::is_same_v<C, Paged>;

/// Something that is another one once tokens that were the last ones, `length` in all, have been moved or dropped by append().
Index place_of_last(const ContiguousKvCache&, Index) { return 0; }
Index place_of_last(const RingKvCache& cache, Index) { return cache.first_position(); }
Index place_of_last(const PagedSequence& cache, Index length) {  // a page that is shared is copied
  return length == 0 ? 0 : Index{cache.pages()[static_cast<std::size_t>((length - 1) / cache.view().page_size)]};
}

template <class C>
void append(C& self, nb::object k, nb::object v, const Rope* rope, nb::object positions, const Norm* norm) {
  const Array keys(k, "k"), values(v, "v");
  const ConstTensorView k_rows = tensor(keys, kKeyAxes), v_rows = tensor(values, kValueAxes);
  std::optional<std::vector<Index>> given;
  if (!positions.is_none()) given = indices(positions, "positions");
  if (given && rope == nullptr) fail("positions", "given", "None without a rope");
  Changing changing(*self.state, self.always_stale);
  const Index length = self.cache.length(), before = place_of_last(self.cache, length);
  const auto add = [&] {
    with_hook(rope, given ? &*given : nullptr, norm,
              [&](const auto&... hook) { self.cache.append(k_rows, v_rows, hook...); });
  };
  if constexpr (kSharesNothing<C>) {
    const GilReleased released;
    add();
  } else {
    add();
  }
  if (place_of_last(self.cache, length) != before) changing.makes_stale();
}

/// What an object of a class of ours holds. @throws TypeError if nothing: __new__ alone makes such
template <class C>
C& made(nb::handle object) {
  if (!nb::inst_ready(object))
    throw nb::type_error(
        ("gqa: the " + nb::cast<std::string>(nb::type_name(object.type())) + " has not been initialised").c_str());
  return *nb::inst_ptr<C>(object);
}

template <class C>
View view(nb::handle object) {
  C& self = made<C>(object);
  if (self.state->changing) fail("kv", "a cache that another thread is changing", "one that rests");
  return snapshot(self.cache.view(), nb::borrow<nb::object>(object), self.state);
}

template <class C, class... More>
void bind_shared(nb::class_<C, More...>& bound) {
  using namespace nb::literals;
  bound
      .def("append", &append<C>, "k"_a, "v"_a, nb::kw_only(), "rope"_a = nb::none(), "positions"_a = nb::none(),
           "norm"_a = nb::none(),
           nb::sig("def append(self, k: gqa.typing.Array, v: gqa.typing.Array, *, rope: Rope | None = None, "
                   "positions: typing.Sequence[int] | None = None, norm: RmsNorm | None = None) -> None"),
           "Appends tokens: k (tokens, KV heads, D), v (tokens, KV heads, Dv), of any element type and strides, "
           "rounded to what is stored.\n\n"
           "rope: keys are turned by their positions on their way in; positions: by these instead. norm: keys are "
           "normalised before.")
      .def(
          "truncate",
          [](C& self, Index length) {
            const Changing changing(*self.state, true);
            self.cache.truncate(length);
          },
          "length"_a, "Keeps the first `length` tokens and drops the others.")
      .def(
          "keep",
          [](C& self, Index first, nb::object tokens) {
            const std::vector<Index> listed = indices(tokens, "tokens");
            const Changing changing(*self.state, true);
            self.cache.keep(first, listed);
          },
          "first"_a, "tokens"_a,
          nb::sig("def keep(self, first: int, tokens: typing.Sequence[int] | gqa.typing.Array) -> None"),
          "Of the tokens from position `first` on keeps those listed, counted from `first`, in ascending order, and "
          "drops the others.")
      .def(
          "erase",
          [](C& self, Index first, Index last) {
            const Changing changing(*self.state, true);
            self.cache.erase(first, last);
          },
          "first"_a, "last"_a, "Drops the tokens of positions [first, last); those behind them take their positions.")
      .def(
          "change_keys",
          [](C& self, Index first, Index last, const Rope& rope, Index shift) {
            const RopeShift hook = rope.shift(shift);
            const Changing changing(*self.state, true);
            self.cache.change_keys(first, last, hook);
          },
          "first"_a, "last"_a, "rope"_a, "shift"_a,
          "Moves the keys of positions [first, last), which `rope` has turned, by `shift` positions: what follows "
          "erase() in a context shift.")
      .def(
          "clear",
          [](C& self) {
            const Changing changing(*self.state, true);
            self.cache.clear();
          },
          "Drops all tokens.")
      .def(
          "view", [](nb::handle_t<C> self) { return view<C>(self); }, nb::sig("def view(self) -> KvCacheView"),
          "The tokens held now. It keeps the cache alive, and is refused by calls once one of them has been dropped or "
          "moved.")
      .def_prop_ro(
          "length", [](const C& self) { return self.cache.length(); }, "Tokens held; the next token's position.")
      .def("__len__", [](const C& self) { return self.cache.length(); });
}

KvCacheConfig config_of(Index kv_heads, Index head_dim, Index capacity, Index value_dim, const std::string& k_type,
                        const std::optional<std::string>& v_type, const std::string& layout, Index k_rotation,
                        Index v_rotation, Index first_tokens, Index newest_tokens, const std::string& plain_type) {
  KvCacheConfig config;
  config.kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.value_dim = value_dim;
  config.k_type = encoding_named(k_type, "k_type");
  if (v_type) config.v_type = encoding_named(*v_type, "v_type");
  config.k_rotation = k_rotation;
  config.v_rotation = v_rotation;
  config.capacity = capacity;
  if (layout != "token_major" && layout != "head_major")
    fail("layout", "\"" + layout + "\"", "\"token_major\" or \"head_major\"");
  config.layout = layout == "head_major" ? KvLayout::head_major : KvLayout::token_major;
  config.first_tokens = first_tokens;
  config.newest_tokens = newest_tokens;
  config.plain_type = element_named(plain_type, "plain_type");
  return config;
}

template <class C>
bool take_view(nb::handle object, View& made) {
  if (!nb::isinstance<C>(object)) return false;
  made = view<C>(object);
  return true;
}

constexpr const char* kStorageDoc =
    "\n\nk_type, v_type: how keys and values are stored: \"f32\", \"bf16\", \"f16\", \"int8\", \"int4\", \"q8_0\", "
    "\"q5_1\", \"q5_0\", \"q4_0\", \"iq4_nl\",\n"
    "\"q8_kv\", \"fp8_e4m3\", \"fp8_e5m2\" or \"mxfp4\"; v_type is k_type unless given.\n"
    "k_rotation, v_rotation: rows are rotated by Hadamard matrices of that size before they are stored.\n"
    "first_tokens, newest_tokens: so many are kept as plain elements of plain_type besides, and read as those.";

template <class C>
void bind_one_piece(nb::module_& module, const char* name, const char* doc) {
  using namespace nb::literals;
  nb::class_<C> bound(module, name, doc);
  bound
      .def(
          "__init__",
          [](C* self, Index kv_heads, Index head_dim, Index capacity, Index value_dim, std::string k_type,
             std::optional<std::string> v_type, std::string layout, Index k_rotation, Index v_rotation,
             Index first_tokens, Index newest_tokens, std::string plain_type) {
            const bool changes_rows = first_tokens > 0 || newest_tokens > 0;
            new (self) C{
                .cache = decltype(C::cache)(config_of(kv_heads, head_dim, capacity, value_dim, k_type, v_type, layout,
                                                      k_rotation, v_rotation, first_tokens, newest_tokens, plain_type)),
                .always_stale = changes_rows};
          },
          "kv_heads"_a, "head_dim"_a, "capacity"_a, nb::kw_only(), "value_dim"_a = 0, "k_type"_a = "f32",
          "v_type"_a = nb::none(), "layout"_a = "head_major", "k_rotation"_a = 0, "v_rotation"_a = 0,
          "first_tokens"_a = 0, "newest_tokens"_a = 0, "plain_type"_a = "bf16")
      .def_prop_ro(
          "capacity", [](const C& self) { return self.cache.capacity(); }, "Tokens that there is room for.")
      .def_prop_ro(
          "bytes", [](const C& self) { return self.cache.bytes(); }, "Bytes of key and value memory, used or not.");
  if constexpr (std::is_same_v<C, Ring>)
    bound.def_prop_ro(
        "first_position", [](const C& self) { return self.cache.first_position(); }, "The oldest position held.");
  bind_shared(bound);
}

struct Pool {
  PagedKvPool pool;
  bool always_stale;  ///< of its sequences
};

void let_go(Paged& sequence) { sequence.pool.reset(); }  // the library's own pool lives as long as its sequences

Paged sequence_of(PagedSequence sequence, bool always_stale, nb::object pool) {
  return {.cache = std::move(sequence), .always_stale = always_stale, .pool = std::move(pool)};
}

void bind_pool(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Paged> sequence(module, "PagedSequence",
                             "One sequence whose tokens lie in pages of a PagedKvPool: made by sequence() and fork().",
                             nb::type_slots(CycleSlots<Paged, &Paged::pool, let_go>::slots));
  sequence
      .def(
          "fork",
          [](const Paged& self, std::optional<Index> tokens) {
            return sequence_of(self.cache.fork(tokens.value_or(self.cache.length())), self.always_stale, self.pool);
          },
          "tokens"_a = nb::none(), nb::sig("def fork(self, tokens: int | None = None) -> PagedSequence"),
          "A sequence that begins with the first `tokens` tokens of this one (all, unless given), in the same pages: "
          "copied when one of the two writes.")
      .def(
          "reserve",
          [](Paged& self, Index tokens) {
            const Changing changing(*self.state, false);
            self.cache.reserve(tokens);
          },
          "tokens"_a, "Makes room in the page table for so many tokens in all, without taking pages.")
      .def(
          "release",
          [](Paged& self) {
            const Changing changing(*self.state, true);
            self.cache.release();
          },
          "Gives all pages back and leaves the pool.")
      .def(
          "pages_to_append", [](const Paged& self, Index tokens) { return self.cache.pages_to_append(tokens); },
          "tokens"_a, "Pages that append() would take for so many more tokens.")
      .def_prop_ro(
          "pages",
          [](const Paged& self) {
            nb::list pages;
            for (const std::int32_t page : self.cache.pages()) pages.append(page);
            return pages;
          },
          nb::sig("def pages(self) -> list[int]"), "Physical pages of the tokens held, in order.");
  bind_shared(sequence);

  nb::class_<Pool>(
      module, "PagedKvPool",
      (std::string("A fixed number of pages of page_size tokens, from which any number of sequences are served.") +
       kStorageDoc)
          .c_str())
      .def(
          "__init__",
          [](Pool* self, Index kv_heads, Index head_dim, Index pages, Index page_size, Index value_dim,
             std::string k_type, std::optional<std::string> v_type, std::string layout, Index k_rotation,
             Index v_rotation, Index first_tokens, Index newest_tokens, std::string plain_type) {
            const KvCacheConfig one = config_of(kv_heads, head_dim, 0, value_dim, k_type, v_type, layout, k_rotation,
                                                v_rotation, first_tokens, newest_tokens, plain_type);
            new (self) Pool{PagedKvPool({.kv_heads = kv_heads,
                                         .head_dim = head_dim,
                                         .value_dim = value_dim,
                                         .k_type = one.k_type,
                                         .v_type = one.v_type,
                                         .k_rotation = k_rotation,
                                         .v_rotation = v_rotation,
                                         .page_size = page_size,
                                         .pages = pages,
                                         .layout = one.layout,
                                         .first_tokens = first_tokens,
                                         .newest_tokens = newest_tokens,
                                         .plain_type = one.plain_type}),
                            first_tokens > 0 || newest_tokens > 0};
          },
          "kv_heads"_a, "head_dim"_a, "pages"_a, nb::kw_only(), "page_size"_a = 64, "value_dim"_a = 0,
          "k_type"_a = "f32", "v_type"_a = nb::none(), "layout"_a = "head_major", "k_rotation"_a = 0,
          "v_rotation"_a = 0, "first_tokens"_a = 0, "newest_tokens"_a = 0, "plain_type"_a = "bf16")
      .def(
          "sequence",
          [](nb::handle_t<Pool> self) {
            Pool& pool = made<Pool>(self);
            return sequence_of(pool.pool.sequence(), pool.always_stale, nb::borrow<nb::object>(self));
          },
          nb::sig("def sequence(self) -> PagedSequence"), "A sequence without tokens and pages.")
      .def_prop_ro(
          "pages", [](const Pool& self) { return self.pool.pages(); }, "Pages in all.")
      .def_prop_ro(
          "free_pages", [](const Pool& self) { return self.pool.free_pages(); }, "Pages that no sequence uses.")
      .def_prop_ro(
          "page_size", [](const Pool& self) { return self.pool.page_size(); }, "Tokens in a page.")
      .def(
          "reference_count", [](const Pool& self, Index page) { return self.pool.reference_count(page); }, "page"_a,
          "Sequences that use a physical page.")
      .def_prop_ro(
          "bytes", [](const Pool& self) { return self.pool.bytes(); }, "Bytes of key and value memory, used or not.");
}

}  // namespace

bool view_of_cache(nb::handle object, View& made) {
  return take_view<Contiguous>(object, made) || take_view<Ring>(object, made) || take_view<Paged>(object, made);
}

void bind_caches(nb::module_& module) {
  bind_one_piece<Contiguous>(
      module, "ContiguousKvCache",
      (std::string("One sequence in one piece of memory, up to a capacity in tokens.") + kStorageDoc).c_str());
  bind_one_piece<Ring>(
      module, "RingKvCache",
      (std::string("The last `capacity` tokens of one sequence; older ones are overwritten, positions stay absolute.") +
       kStorageDoc)
          .c_str());
  bind_pool(module);
}

}  // namespace gqa::python
