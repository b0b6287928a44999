// SPDX-License-Identifier: Apache-2.0
#include "views.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "caches.hpp"
#include "cycles.hpp"

namespace gqa::python {

gqa::KvCacheView View::whole() const {
  if (state != nullptr && state->version != version)
    fail("kv", "a view of tokens that its cache has dropped or moved since", "the cache itself, or a new view()");
  gqa::KvCacheView view = last();
  view.earlier_count = static_cast<Index>(parts.size()) - 1;
  view.earlier = view.earlier_count > 0 ? parts.data() : nullptr;
  return view;
}

View snapshot(const gqa::KvCacheView& view, nb::object owner, std::shared_ptr<CacheState> state) {
  View made;
  made.version = state->version;
  made.owner = std::move(owner);
  made.state = std::move(state);
  for (Index i = 0; i <= view.earlier_count; ++i) {
    gqa::KvCacheView part = view.part(i);
    part.earlier = nullptr;
    part.earlier_count = 0;
    if (part.page_table != nullptr) {  // which a sequence may move
      made.tables.push_back(
          std::make_shared<const std::vector<std::int32_t>>(part.page_table, part.page_table + part.page_table_size));
      part.page_table = made.tables.back()->data();
    }
    made.parts.push_back(part);
  }
  return made;
}

namespace {

/// How many tokens, heads and pages an array of keys or values has, and where its rows lie.
struct Rows {
  std::shared_ptr<const Array> array;
  KvType type;
  Index pages = 1, tokens = 0, heads = 0, dim = 0;
  KvStrides strides{0, 0, 0};
  KvScales scales{};
};

struct Axes {
  bool paged;
  bool head_major;
  Index token() const { return (paged ? 1 : 0) + (head_major ? 1 : 0); }
  Index head() const { return (paged ? 1 : 0) + (head_major ? 0 : 1); }
  Index count() const { return paged ? 4 : 3; }
  std::string names(const char* last) const {
    const std::string pages = paged ? "pages, " : "";
    return "(" + pages + (head_major ? "KV heads, tokens, " : "tokens, KV heads, ") + last + ")";
  }
};

Axes axes_of(const std::string& layout, bool paged) {
  if (layout != "token_major" && layout != "head_major")
    fail("layout", "\"" + layout + "\"", "\"token_major\" or \"head_major\"");
  return {paged, layout == "head_major"};
}

/// A distance in bytes as one in elements of a codec.
Index in_elements(const Array& array, Index axis, KvType type) {
  const Index bytes = array.stride(axis) * array.item_bytes();
  if (array.extent(axis) > 1 && bytes % type.block_bytes() != 0)
    fail(array.name() + ".strides[" + std::to_string(axis) + "]", std::to_string(bytes) + " bytes",
         "a multiple of the " + std::to_string(type.block_bytes()) + " bytes of a block of " + format_name(type));
  return bytes / type.block_bytes() * type.block_elements();
}

/// @param format empty: plain elements, as the array has them; else a codec's name, and the array has bytes
/// @param dim    of codecs: the width of a row
Rows rows_of(nb::handle object, const std::string& name, const Axes& axes, const std::string& format, Index dim) {
  Rows rows{std::make_shared<Array>(object, name), {}};
  const Array& array = *rows.array;
  const KvType named =
      format.empty() ? KvType(ElementType::f32) : static_cast<KvType>(encoding_named(format, name + " type"));
  const bool coded = !format.empty() && !named.is_element();
  rows.type = coded ? named : KvType(array.element());
  if (!format.empty() && !coded && !(named == rows.type)) fail(name, array.dtype(), format);
  array.expect_axes(axes.count(), axes.names(coded ? "bytes of a row" : "dim").c_str());
  const Index last = axes.count() - 1;
  rows.tokens = array.extent(axes.token());
  rows.heads = array.extent(axes.head());
  rows.pages = axes.paged ? array.extent(0) : 1;
  rows.dim = array.extent(last);
  if (array.extent(last) > 1 && array.stride(last) != 1)
    fail(name + ".strides[" + std::to_string(last) + "]",
         std::to_string(array.stride(last) * array.item_bytes()) + " bytes", "rows whose elements lie side by side");
  if (coded) {
    const bool fp8 =
        array.dtype() == (format == "fp8_e4m3" ? "float8_e4m3fn" : "float8_e5m2") && format.rfind("fp8", 0) == 0;
    if (!fp8 && array.dtype() != "uint8" && array.dtype() != "int8")
      fail(name, array.dtype(), "bytes: uint8, int8, or float8 of the same kind, for rows of " + format);
    if (dim < 1)
      fail("head_dim", dim < 0 ? std::to_string(dim) : "not given", "the width of a row, which bytes do not say");
    rows.dim = dim;
    if (array.extent(last) != rows.type.row_bytes(dim))
      fail(name + ".shape", array.shape_text(),
           "rows of " + std::to_string(rows.type.row_bytes(dim)) + " bytes, as " + format +
               " has them for a width of " + std::to_string(dim));
  } else if (dim > 0 && dim != rows.dim) {
    fail(name + ".shape", array.shape_text(), "rows of a width of " + std::to_string(dim));
  }
  rows.strides = {in_elements(array, axes.token(), rows.type), in_elements(array, axes.head(), rows.type),
                  axes.paged ? in_elements(array, 0, rows.type) : 0};
  return rows;
}

/// Scales outside of rows: f32, one for each row, (…) without the rows' last axis; or for each element, with it.
void add_scales(Rows& rows, nb::handle object, const std::string& name, const Axes& axes, View& view) {
  if (object.is_none()) {
    if (rows.type.scale_bytes() != 0)
      fail(name, "None", "an array of float32: " + format_name(rows.type) + " has its scales outside of rows");
    return;
  }
  if (rows.type.scale_bytes() == 0)
    fail(name, "an array", "None: " + format_name(rows.type) + " has no scales outside of rows");
  const auto array = std::make_shared<Array>(object, name);
  array->expect_dtype("float32");
  const bool each = array->ndim() == axes.count();
  if (!each) array->expect_axes(axes.count() - 1, axes.names(" dim, or without it").c_str());
  const auto expect = [&](Index axis, Index extent) {
    if (array->extent(axis) != extent)
      fail(name + ".shape", array->shape_text(), std::to_string(extent) + " along axis " + std::to_string(axis));
  };
  expect(axes.token(), rows.tokens);
  expect(axes.head(), rows.heads);
  if (axes.paged) expect(0, rows.pages);
  if (each) expect(axes.count() - 1, rows.dim);
  rows.scales = KvScales(array->data(),
                         {array->stride(axes.token()), array->stride(axes.head()), axes.paged ? array->stride(0) : 0},
                         each ? array->stride(axes.count() - 1) : 0);
  view.arrays.push_back(array);
}

struct Formats {
  std::string layout;
  std::optional<std::string> k_type, v_type;
  Index head_dim, value_dim;
  nb::object k_scales, v_scales;
  Index k_rotation, v_rotation;
};

/// A part over two arrays, without its storage and length.
gqa::KvCacheView part_over(nb::handle keys, nb::handle values, const Axes& axes, const Formats& formats, View& view,
                           Rows& k, Rows& v) {
  k = rows_of(keys, axes.paged ? "k_pages" : "keys", axes, formats.k_type.value_or(""), formats.head_dim);
  v = rows_of(values, axes.paged ? "v_pages" : "values", axes, formats.v_type.value_or(formats.k_type.value_or("")),
              formats.value_dim > 0 ? formats.value_dim
              : formats.k_type      ? formats.head_dim
                                    : 0);
  const auto alike = [&](const char* what, Index of_k, Index of_v) {
    if (of_k != of_v)
      fail(v.array->name() + ".shape", v.array->shape_text(),
           "as many " + std::string(what) + " as " + k.array->name() + " has, " + std::to_string(of_k));
  };
  alike("tokens", k.tokens, v.tokens);
  alike("KV heads", k.heads, v.heads);
  alike("pages", k.pages, v.pages);
  add_scales(k, formats.k_scales, "k_scales", axes, view);
  add_scales(v, formats.v_scales, "v_scales", axes, view);
  view.arrays.push_back(k.array);
  view.arrays.push_back(v.array);
  gqa::KvCacheView part = gqa::KvCacheView::contiguous(k.array->data(), k.type, v.array->data(), v.type,
                                                       {0, k.heads, k.dim, v.dim}, k.strides, v.strides);
  part.k_scales = k.scales;
  part.v_scales = v.scales;
  part.k_rotation = formats.k_rotation;
  part.v_rotation = formats.v_rotation;
  return part;
}

/// What lies before a view, in order: views with a length that is a multiple of 64.
void add_earlier(View& view, nb::handle earlier) {
  if (earlier.is_none()) return;
  Index number = 0;
  std::vector<View> before;
  for (const nb::handle item : nb::borrow<nb::object>(earlier))
    before.push_back(view_of(item, "earlier[" + std::to_string(number++) + "]"));
  std::vector<gqa::KvCacheView> parts;
  for (View& one : before) {
    if (one.state != nullptr) fail("earlier", "a cache of its own", "views of arrays");
    for (std::size_t i = 0; i < one.parts.size(); ++i) parts.push_back(one.parts[i]);
    view.arrays.insert(view.arrays.end(), one.arrays.begin(), one.arrays.end());
  }
  parts.push_back(view.parts.back());
  view.parts = std::move(parts);
}

/// As calls want them.
void check_positions(const char* name, Index number) {
  if (number < 0 || number > Index{1} << 48) fail(name, std::to_string(number), "0 to 2^48");
}

View contiguous(nb::handle keys, nb::handle values, std::optional<Index> length, const Formats& formats, Index oldest,
                nb::handle earlier) {
  View view;
  Rows k, v;
  gqa::KvCacheView part = part_over(keys, values, axes_of(formats.layout, false), formats, view, k, v);
  Index begin = 0;
  check_positions("oldest", oldest);
  if (length) check_positions("length", *length);
  view.parts.push_back(part);
  add_earlier(view, earlier);
  if (view.parts.size() > 1) begin = view.parts[view.parts.size() - 2].length;
  // Slot 0 holds position `oldest`, or the first one behind the earlier parts.
  const Index first = std::max(begin, oldest);
  part.length = length.value_or(first + k.tokens);
  part.oldest = first;
  if (part.length < first || part.length - first > k.tokens)
    fail("length", std::to_string(part.length),
         std::to_string(first) + " to " + std::to_string(first + k.tokens) + ", the tokens of the arrays");
  view.parts.back() = part;
  return view;
}

View ring(nb::handle keys, nb::handle values, Index length, const Formats& formats, Index oldest) {
  View view;
  Rows k, v;
  gqa::KvCacheView part = part_over(keys, values, axes_of(formats.layout, false), formats, view, k, v);
  check_positions("length", length);
  check_positions("oldest", oldest);
  part.storage = Storage::ring;
  part.length = length;
  part.capacity = k.tokens;
  part.oldest = oldest;
  view.parts.push_back(part);
  return view;
}

View paged(nb::handle k_pages, nb::handle v_pages, nb::handle table, Index length, const Formats& formats,
           nb::handle earlier) {
  View view;
  Rows k, v;
  gqa::KvCacheView part = part_over(k_pages, v_pages, axes_of(formats.layout, true), formats, view, k, v);
  const auto entries = std::make_shared<Array>(table, "table");
  entries->expect_axes(1, "(pages of the sequence,)");
  entries->expect_dtype("int32");
  if (entries->extent(0) > 1 && entries->stride(0) != 1)
    fail("table.strides[0]", std::to_string(4 * entries->stride(0)) + " bytes", "4 bytes: entries side by side");
  view.arrays.push_back(entries);
  check_positions("length", length);
  part.storage = Storage::paged;
  part.length = length;
  part.page_size = k.tokens;
  part.pool_pages = k.pages;
  part.page_table = static_cast<const std::int32_t*>(entries->data());
  part.page_table_size = entries->extent(0);
  view.parts.push_back(part);
  add_earlier(view, earlier);
  return view;
}

Formats formats_of(std::string layout, std::optional<std::string> k_type, std::optional<std::string> v_type,
                   Index head_dim, Index value_dim, nb::object k_scales, nb::object v_scales, Index k_rotation,
                   Index v_rotation) {
  return {std::move(layout),   std::move(k_type),   std::move(v_type), head_dim,  value_dim,
          std::move(k_scales), std::move(v_scales), k_rotation,        v_rotation};
}

/// Calls refuse it from then on: what it shows may be freed.
void let_go(View& view) {
  if (view.state != nullptr) view.version = ~std::uint64_t{0};
  view.owner.reset();
}

const char* storage_name(Storage storage) {
  return storage == Storage::contiguous ? "contiguous" : storage == Storage::ring ? "ring" : "paged";
}

}  // namespace

View view_of(nb::handle object, const std::string& name) {
  View* view = nullptr;
  if (nb::try_cast<View*>(object, view, false) && view != nullptr) return *view;
  View of_cache;
  if (view_of_cache(object, of_cache)) return of_cache;
  if (nb::isinstance<nb::tuple>(object) && nb::len(object) == 2)
    return contiguous(nb::borrow<nb::tuple>(object)[0], nb::borrow<nb::tuple>(object)[1], std::nullopt,
                      formats_of("token_major", std::nullopt, std::nullopt, 0, 0, nb::none(), nb::none(), 0, 0), 0,
                      nb::none());
  fail(name, "a " + nb::cast<std::string>(nb::str(object.type().attr("__name__"))),
       "a KvCacheView, a cache, or a pair (keys, values) of arrays (tokens, KV heads, dim)");
}

void bind_views(nb::module_& module) {
  using namespace nb::literals;
  const auto layout = nb::arg("layout") = "token_major";
  nb::class_<View>(
      module, "KvCacheView",
      "One sequence's keys and values, where they lie: nothing is copied, and the arrays live as long as the view.\n\n"
      "Rows must be contiguous along the head dim; every other stride is free. Elements are float32, bfloat16 or "
      "float16; with a codec's name\n"
      "as `k_type` or `v_type` arrays hold bytes, a row of the codec each, and head_dim has to be given.",
      nb::type_slots(CycleSlots<View, &View::owner, let_go>::slots))
      .def_static(
          "contiguous",
          [](nb::object keys, nb::object values, std::optional<Index> length, std::string lay,
             std::optional<std::string> k_type, std::optional<std::string> v_type, Index head_dim, Index value_dim,
             nb::object k_scales, nb::object v_scales, Index k_rotation, Index v_rotation, Index oldest,
             nb::object earlier) {
            return contiguous(
                keys, values, length,
                formats_of(lay, k_type, v_type, head_dim, value_dim, k_scales, v_scales, k_rotation, v_rotation),
                oldest, earlier);
          },
          "keys"_a, "values"_a, "length"_a = nb::none(), nb::kw_only(), layout, "k_type"_a = nb::none(),
          "v_type"_a = nb::none(), "head_dim"_a = 0, "value_dim"_a = 0, "k_scales"_a = nb::none(),
          "v_scales"_a = nb::none(), "k_rotation"_a = 0, "v_rotation"_a = 0, "oldest"_a = 0, "earlier"_a = nb::none(),
          nb::sig("def contiguous(keys: gqa.typing.Array, values: gqa.typing.Array, length: int | None = None, *, "
                  "layout: str = 'token_major', "
                  "k_type: str | None = None, v_type: str | None = None, head_dim: int = 0, value_dim: int = 0, "
                  "k_scales: gqa.typing.Array | None = None, v_scales: gqa.typing.Array | None = None, k_rotation: int "
                  "= 0, v_rotation: int = 0, "
                  "oldest: int = 0, earlier: typing.Sequence[KvCacheView] | None = None) -> KvCacheView"),
          "Tokens side by side, or at any stride.\n\n"
          "keys: (tokens, KV heads, D), or with layout=\"head_major\" (KV heads, tokens, D); values likewise, (…, "
          "Dv).\n"
          "length: tokens in the sequence so far; all of them unless given.\n"
          "k_scales, v_scales: of codecs with scales outside of rows, float32, the arrays' shape without the last "
          "axis; strides may be 0.\n"
          "oldest: the position that the first row holds.\n"
          "earlier: views of the parts of the sequence before this one, each a multiple of 64 tokens long.")
      .def_static(
          "ring",
          [](nb::object keys, nb::object values, Index length, std::string lay, std::optional<std::string> k_type,
             std::optional<std::string> v_type, Index head_dim, Index value_dim, nb::object k_scales,
             nb::object v_scales, Index k_rotation, Index v_rotation, Index oldest) {
            return ring(
                keys, values, length,
                formats_of(lay, k_type, v_type, head_dim, value_dim, k_scales, v_scales, k_rotation, v_rotation),
                oldest);
          },
          "keys"_a, "values"_a, "length"_a, nb::kw_only(), layout, "k_type"_a = nb::none(), "v_type"_a = nb::none(),
          "head_dim"_a = 0, "value_dim"_a = 0, "k_scales"_a = nb::none(), "v_scales"_a = nb::none(), "k_rotation"_a = 0,
          "v_rotation"_a = 0, "oldest"_a = 0,
          nb::sig(
              "def ring(keys: gqa.typing.Array, values: gqa.typing.Array, length: int, *, layout: str = 'token_major', "
              "k_type: str | None = None, v_type: str | None = None, head_dim: int = 0, value_dim: int = 0, "
              "k_scales: gqa.typing.Array | None = None, v_scales: gqa.typing.Array | None = None, k_rotation: int = "
              "0, v_rotation: int = 0, "
              "oldest: int = 0) -> KvCacheView"),
          "A sliding window: position p lies in slot p mod the arrays' tokens. Shapes as for contiguous().\n\n"
          "length: tokens of the sequence so far, those that have been overwritten among them.\n"
          "oldest: positions before it are gone, too.")
      .def_static(
          "paged",
          [](nb::object k_pages, nb::object v_pages, nb::object table, Index length, std::string lay,
             std::optional<std::string> k_type, std::optional<std::string> v_type, Index head_dim, Index value_dim,
             nb::object k_scales, nb::object v_scales, Index k_rotation, Index v_rotation, nb::object earlier) {
            return paged(
                k_pages, v_pages, table, length,
                formats_of(lay, k_type, v_type, head_dim, value_dim, k_scales, v_scales, k_rotation, v_rotation),
                earlier);
          },
          "k_pages"_a, "v_pages"_a, "table"_a, "length"_a, nb::kw_only(), layout, "k_type"_a = nb::none(),
          "v_type"_a = nb::none(), "head_dim"_a = 0, "value_dim"_a = 0, "k_scales"_a = nb::none(),
          "v_scales"_a = nb::none(), "k_rotation"_a = 0, "v_rotation"_a = 0, "earlier"_a = nb::none(),
          nb::sig("def paged(k_pages: gqa.typing.Array, v_pages: gqa.typing.Array, table: gqa.typing.Array, length: "
                  "int, *, layout: str = 'token_major', "
                  "k_type: str | None = None, v_type: str | None = None, head_dim: int = 0, value_dim: int = 0, "
                  "k_scales: gqa.typing.Array | None = None, v_scales: gqa.typing.Array | None = None, k_rotation: int "
                  "= 0, v_rotation: int = 0, "
                  "earlier: typing.Sequence[KvCacheView] | None = None) -> KvCacheView"),
          "Pages anywhere in a pool.\n\n"
          "k_pages: (pages, tokens of a page, KV heads, D), or with layout=\"head_major\" (pages, KV heads, tokens of "
          "a page, D); v_pages likewise.\n"
          "table: int32, the pages of the sequence in order; read at each call, not copied.\n"
          "length: tokens in the sequence so far.")
      .def_prop_ro(
          "length", [](const View& view) { return view.last().length; }, "Tokens of the sequence so far.")
      .def("__len__", [](const View& view) { return view.last().length; })
      .def_prop_ro("kv_heads", [](const View& view) { return view.last().kv_heads; })
      .def_prop_ro("head_dim", [](const View& view) { return view.last().head_dim; })
      .def_prop_ro("value_dim", [](const View& view) { return view.last().value_dim; })
      .def_prop_ro(
          "k_type", [](const View& view) { return format_name(view.last().k_type); },
          "How keys are stored: \"f32\", \"int8\", …")
      .def_prop_ro("v_type", [](const View& view) { return format_name(view.last().v_type); })
      .def_prop_ro(
          "storage", [](const View& view) { return storage_name(view.last().storage); },
          "\"contiguous\", \"ring\" or \"paged\".")
      .def_prop_ro(
          "first_position", [](const View& view) { return view.parts.front().first_position_of_part(); },
          "The oldest position still there.")
      .def_prop_ro(
          "k_address", [](const View& view) { return reinterpret_cast<std::uintptr_t>(view.last().k); },
          "Where keys begin in memory.")
      .def_prop_ro(
          "v_address", [](const View& view) { return reinterpret_cast<std::uintptr_t>(view.last().v); },
          "Where values begin in memory.")
      .def("__repr__", [](const View& view) {
        const gqa::KvCacheView& last = view.last();
        return "KvCacheView(" + std::string(storage_name(last.storage)) + ", length=" + std::to_string(last.length) +
               ", kv_heads=" + std::to_string(last.kv_heads) + ", head_dim=" + std::to_string(last.head_dim) +
               ", k_type=" + format_name(last.k_type) + ")";
      });
}

}  // namespace gqa::python
