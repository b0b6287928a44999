// SPDX-License-Identifier: Apache-2.0
// The functor: arrays in and out, one sequence or a batch.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <map>

#include "attention.hpp"
#include "executor.hpp"
#include "gil.hpp"
#include "variant.hpp"

namespace gqa::python {

Path path_named(const std::string& name) {
  std::string names;
  for (const Path path : detail::kEveryPath) {
    if (name == path_name(path)) return path;
    names += std::string(names.empty() ? "" : ", ") + path_name(path);
  }
  fail("path", "\"" + name + "\"", "one of " + names);
}

namespace {

Products products_named(const std::string& name) {
  if (name == "as_stored") return Products::as_stored;
  if (name == "bf16") return Products::bf16;
  if (name == "bf16_terms") return Products::bf16_terms;
  fail("products", "\"" + name + "\"", "\"as_stored\", \"bf16\" or \"bf16_terms\"");
}

/// What a call is given by keyword; what it leaves out is the functor's.
struct Wishes {
  nb::object scale, threads, path, products;
};

class Attention {
 public:
  Attention(HeadShape shape, Wishes wishes) : functor_(shape), wishes_(std::move(wishes)) {
    static_cast<void>(options({nb::none(), nb::none(), nb::none(), nb::none()}));  // so that a wrong one is named here
  }

  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

  const Functor& functor() const { return functor_; }

  Options options(const Wishes& call) {
    Options options;
    const auto wish = [](const nb::object& mine, const nb::object& functors) {
      return mine.is_none() ? functors : mine;
    };
    const nb::object scale = wish(call.scale, wishes_.scale), path = wish(call.path, wishes_.path);
    const nb::object products = wish(call.products, wishes_.products), threads = wish(call.threads, wishes_.threads);
    float factor = 0;
    if (!scale.is_none() && !nb::try_cast<float>(scale, factor))
      fail("scale", nb::cast<std::string>(nb::repr(scale)), "a number, or None");
    if (!scale.is_none()) options.scale = factor;
    const auto word = [](const nb::object& given, const char* name) { return text(given, name, "a name, or None"); };
    if (!path.is_none()) options.path = path_named(word(path, "path"));
    if (!products.is_none()) options.products = products_named(word(products, "products"));
    Threads* pool = nullptr;
    int count = 0;
    if (threads.is_none()) return options;
    if (nb::try_cast<Threads*>(threads, pool, false) && pool != nullptr) {
      options.executor = *pool;
    } else if (nb::try_cast<int>(threads, count)) {
      if (count == 1) return options;
      std::unique_ptr<Threads>& mine = pools_[count];
      if (mine == nullptr) mine = std::make_unique<Threads>(count);
      options.executor = *mine;
    } else {
      fail("threads", nb::cast<std::string>(nb::repr(threads)), "a number, or a gqa.ThreadPool");
    }
    return options;
  }

 private:
  Functor functor_;
  Wishes wishes_;
  std::map<int, std::unique_ptr<Threads>> pools_{};
};

/// An extent of every call's, or None.
int extent_of(std::optional<int> given, const char* name) {
  if (given && *given < 1) fail(name, std::to_string(*given), "1 or more, or None");
  return given.value_or(dynamic);
}

/// Whether an array's elements are all that its memory has; more, where they share it.
bool fills(const Array& array, const std::pair<std::uintptr_t, std::uintptr_t>& reach) {
  Index bytes = array.item_bytes();
  for (Index axis = 0; axis < array.ndim(); ++axis) bytes *= array.extent(axis);
  return static_cast<std::uintptr_t>(bytes) >= reach.second - reach.first;
}

constexpr const char* kQueryAxes = "(tokens, query heads, head dim)";
constexpr const char* kOutAxes = "(tokens, query heads, value dim)";

/// One call: what it is given, kept alive, and what it returns.
struct Batch {
  std::vector<Array> arrays{}, written{};
  std::vector<View> views{};
  std::vector<std::vector<Index>> positions{};
  std::vector<Sequence> sequences{};
  nb::list outs{}, lses{};
  bool has_lse = false;
  Reading reading{};

  explicit Batch(std::size_t count) {
    views.reserve(count);  // sequences refer to their parts
    positions.reserve(count);
  }

  /// @param names what errors call the arguments: "" or "[3]"
  void add(const ConstTensorView& q, const Array& q_array, nb::handle q_object, nb::handle kv, nb::handle out,
           const TensorView* out_given, nb::handle lse, nb::handle of_tokens, const std::string& number) {
    views.push_back(view_of(kv, "kv" + number));
    reading.add(views.back());
    Sequence sequence{.q = q, .kv = views.back().whole(), .out = {}};
    if (out_given != nullptr) {
      sequence.out = *out_given;
    } else {
      const nb::object made = out.is_none()
                                  ? new_array(q_object, q_array.dtype(), {q.tokens, q.heads, sequence.kv.value_dim})
                                  : nb::borrow<nb::object>(out);
      written.emplace_back(made, "out" + number, true);
      sequence.out = output(written.back(), kOutAxes);
      outs.append(made);
    }
    add_lse(sequence, q_object, lse, number);
    if (!of_tokens.is_none()) {
      positions.push_back(indices(of_tokens, "positions" + number));
      sequence.positions = positions.back();
    }
    sequences.push_back(sequence);
  }

  /// @param lse True, or an array of f32 (tokens, query heads); or None or False, of which None comes back
  void add_lse(Sequence& sequence, nb::handle q_object, nb::handle lse, const std::string& number) {
    const bool asked = nb::isinstance<nb::bool_>(lse);
    if (lse.is_none() || (asked && !nb::cast<bool>(lse))) return lses.append(nb::none());
    has_lse = true;
    const nb::object made =
        asked ? new_float_array(q_object, {sequence.q.tokens, sequence.q.heads}) : nb::borrow<nb::object>(lse);
    const Array array(made, "lse" + number, true);
    array.expect_dtype("float32");
    array.expect_axes(2, "(tokens, query heads)");
    if (array.extent(0) != sequence.q.tokens || array.extent(1) != sequence.q.heads)
      fail(array.name() + ".shape", array.shape_text(),
           "(" + std::to_string(sequence.q.tokens) + ", " + std::to_string(sequence.q.heads) + ")");
    if ((array.extent(1) > 1 && array.stride(1) != 1) || (array.extent(0) > 1 && array.stride(0) != array.extent(1)))
      fail(array.name(), "strided", "an array without gaps, (tokens, query heads)");
    sequence.lse = {static_cast<float*>(array.data()), static_cast<std::size_t>(array.extent(0) * array.extent(1))};
    written.push_back(array);
    lses.append(made);
  }

  /// @throws ArgumentError if an output lies in an array of the variant's: the library does not know of all that a variant reads. Arrays
  /// with gaps, as in a packed (token, q | gate | out), may lie in each other's.
  void check_written(const Variant& variant) const {
    std::uintptr_t first = ~std::uintptr_t{0}, last = 0;
    for (const std::shared_ptr<const Array>& read : variant.arrays) {
      first = std::min(first, read->reach().first);
      last = std::max(last, read->reach().second);
    }
    for (const Array& output : written) {
      const auto mine = output.reach();
      if (mine.first >= last || mine.second <= first) continue;
      for (const std::shared_ptr<const Array>& read : variant.arrays) {
        const auto its = read->reach();
        const bool meet =
            mine.first < its.second && its.first < mine.second && mine.first < mine.second && its.first < its.second;
        if (meet && (mine.first == its.first || fills(output, mine) || fills(*read, its)))
          fail(output.name(), "in the memory of the variant's " + read->name(), "memory of its own");
      }
    }
  }

  void run(Attention& attention, nb::handle variant, const Wishes& wishes, CallControl* control) {
    const Variant parts = variant_of(variant);
    const HeadShape shape = attention.functor().shape();
    const Index query_heads = shape.query_heads > 0 ? shape.query_heads : sequences.empty() ? 0 : sequences[0].q.heads;
    const Index kv_heads = shape.kv_heads > 0 ? shape.kv_heads : sequences.empty() ? 0 : sequences[0].kv.kv_heads;
    const BoundVariant call = bound(parts, query_heads, kv_heads);
    check_written(parts);
    Options options = attention.options(wishes);
    options.control = control;
    const GilReleased released;
    attend(attention.functor(), sequences, call, options);
  }
};

nb::object call_one(Attention& attention, nb::object q, nb::object kv, nb::object variant, nb::object out,
                    nb::object lse, nb::object positions, nb::object scale, nb::object threads, nb::object path,
                    nb::object products, CallControl* control) {
  Batch batch(1);
  const Array queries(q, "q");
  batch.add(tensor(queries, kQueryAxes), queries, q, kv, out, nullptr, lse, positions, "");
  batch.run(attention, variant, {scale, threads, path, products}, control);
  if (!batch.has_lse) return batch.outs[0];
  return nb::make_tuple(batch.outs[0], batch.lses[0]);
}

/// The i-th of a list, or nothing.
nb::object item(nb::handle list, std::size_t i, std::size_t count, const char* name) {
  if (list.is_none() || nb::isinstance<nb::bool_>(list)) return nb::borrow<nb::object>(list);
  if (!nb::isinstance<nb::list>(list) && !nb::isinstance<nb::tuple>(list))
    fail(name, "a " + nb::cast<std::string>(nb::str(list.type().attr("__name__"))),
         "a list, an item for each sequence");
  if (nb::len(list) != count)
    fail(std::string("len(") + name + ")", std::to_string(nb::len(list)), "the sequences, " + std::to_string(count));
  return nb::borrow<nb::object>(list[i]);
}

nb::object call_batch(Attention& attention, nb::object q, nb::object kv, nb::object variant, nb::object tokens,
                      nb::object out, nb::object lse, nb::object positions, nb::object scale, nb::object threads,
                      nb::object path, nb::object products, CallControl* control) {
  if (!nb::isinstance<nb::list>(kv) && !nb::isinstance<nb::tuple>(kv))
    fail("kv", "no list", "a list of caches, one for each sequence");
  const std::size_t count = nb::len(kv);
  Batch batch(count);
  const auto number = [](std::size_t i) { return "[" + std::to_string(i) + "]"; };
  nb::object packed_out = nb::none();
  if (tokens.is_none()) {
    for (std::size_t i = 0; i < count; ++i) {
      const nb::object one = item(q, i, count, "q");
      batch.arrays.emplace_back(one, "q" + number(i));
      const Array& queries = batch.arrays.back();
      batch.add(tensor(queries, kQueryAxes), queries, one, nb::borrow<nb::object>(kv[i]), item(out, i, count, "out"),
                nullptr, item(lse, i, count, "lse"), item(positions, i, count, "positions"), number(i));
    }
  } else {  // one array for all sequences
    const std::vector<Index> of_each = indices(tokens, "tokens");
    if (of_each.size() != count)
      fail("len(tokens)", std::to_string(of_each.size()), "the sequences, " + std::to_string(count));
    const Array queries(q, "q");
    const ConstTensorView all = tensor(queries, kQueryAxes);
    Index sum = 0;
    for (const Index n : of_each) {
      if (n < 0 || n > all.tokens)
        fail("tokens", std::to_string(n), "0 to the tokens of q, " + std::to_string(all.tokens));
      sum += n;
    }
    if (sum != all.tokens) fail("sum(tokens)", std::to_string(sum), "the tokens of q, " + std::to_string(all.tokens));
    packed_out = out;
    if (out.is_none())
      packed_out = new_array(
          q, queries.dtype(),
          {all.tokens, all.heads, count == 0 ? all.dim : view_of(kv[std::size_t{0}], "kv[0]").last().value_dim});
    const Array outputs(packed_out, "out", true);
    const TensorView all_outs = output(outputs, kOutAxes);
    if (all_outs.tokens != all.tokens)
      fail("out.shape", outputs.shape_text(), std::to_string(all.tokens) + " tokens, as q has");
    batch.arrays.push_back(queries);
    batch.written.push_back(outputs);
    Index first = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const TensorView mine = all_outs.slice(first, of_each[i]);
      batch.add(all.slice(first, of_each[i]), queries, q, nb::borrow<nb::object>(kv[i]), nb::none(), &mine,
                item(lse, i, count, "lse"), item(positions, i, count, "positions"), number(i));
      first += of_each[i];
    }
  }
  batch.run(attention, variant, {scale, threads, path, products}, control);
  const nb::object outs = packed_out.is_none() ? nb::object(batch.outs) : packed_out;
  if (!batch.has_lse) return outs;
  return nb::make_tuple(outs, batch.lses);
}

}  // namespace

void bind_attention(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Threads>(
      module, "ThreadPool",
      "Threads that calls run on, the caller's among them; any number of functors and calls may share one.")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("threads", [](const Threads& pool) { return pool.concurrency(); })
      .def_prop_ro_static(
          "kind", [](nb::handle) { return std::string(kThreadsOf); }, "Whose threads these are.");

  nb::class_<CallControl>(
      module, "CallControl",
      "What other threads see of a call while it runs, and how they stop it: gqa.Stopped is raised by the call then.")
      .def(nb::init<>())
      .def(
          "stop", [](CallControl& control) { control.stop = true; },
          "Ends the call soon. Not reset: a call that finds it set ends at once.")
      .def("reset", [](CallControl& control) { control.stop = false; })
      .def_prop_ro(
          "done", [](const CallControl& control) { return control.done.load(); }, "Parts of the work that are done.")
      .def_prop_ro(
          "total", [](const CallControl& control) { return control.total.load(); },
          "Parts in all; 0 before the call works.");

#define GQA_PYTHON_OPTIONS                                                                                         \
  "scale: float | None = None, threads: int | ThreadPool | None = None, path: str | None = None, products: str | " \
  "None = None"
  nb::class_<Attention>(
      module, "Attention",
      "Attention in which query_heads share kv_heads: query head h reads KV head h // (query_heads // kv_heads).\n"
      "kv_heads = query_heads is multi-head, kv_heads = 1 multi-query attention. An extent of None comes from each "
      "call.\n\n"
      "scale: multiplies q·k; 1 / sqrt(head_dim) unless given. threads: a number, or a ThreadPool; 1 unless given.\n"
      "path: an instruction set of gqa.paths(); products: \"as_stored\", \"bf16\" or \"bf16_terms\". Each may be given "
      "to a call instead.\n\n"
      "A result is the same bits whatever else is in a batch, with any threads, chunks, pages and storage. Calls let "
      "go of the GIL, and\n"
      "may run at the same time.")
      .def(
          "__init__",
          [](Attention* self, std::optional<int> query_heads, std::optional<int> kv_heads, std::optional<int> head_dim,
             std::optional<int> value_dim, nb::object scale, nb::object threads, nb::object path, nb::object products) {
            new (self)
                Attention({extent_of(query_heads, "query_heads"), extent_of(kv_heads, "kv_heads"),
                           extent_of(head_dim, "head_dim"), extent_of(value_dim ? value_dim : head_dim, "value_dim")},
                          {scale, threads, path, products});
          },
          "query_heads"_a = nb::none(), "kv_heads"_a = nb::none(), "head_dim"_a = nb::none(),
          "value_dim"_a = nb::none(), nb::kw_only(), "scale"_a = nb::none(), "threads"_a = nb::none(),
          "path"_a = nb::none(), "products"_a = nb::none(),
          nb::sig("def __init__(self, query_heads: int | None = None, kv_heads: int | None = None, head_dim: int | "
                  "None = None, "
                  "value_dim: int | None = None, *, " GQA_PYTHON_OPTIONS ") -> None"))
      .def("__call__", &call_one, "q"_a, "kv"_a, "variant"_a = "causal", nb::kw_only(), "out"_a = nb::none(),
           "lse"_a = nb::none(), "positions"_a = nb::none(), "scale"_a = nb::none(), "threads"_a = nb::none(),
           "path"_a = nb::none(), "products"_a = nb::none(), "control"_a = nb::none(),
           nb::sig("def __call__(self, q: gqa.typing.Array, kv: gqa.typing.Cache, variant: gqa.typing.VariantLike = "
                   "'causal', *, "
                   "out: gqa.typing.Array | None = None, lse: bool | gqa.typing.Array | None = None, "
                   "positions: typing.Sequence[int] | gqa.typing.Array | None = None, " GQA_PYTHON_OPTIONS
                   ", control: CallControl | None = None) -> typing.Any"),
           "One sequence: out (tokens, query heads, Dv), or (out, lse) if the log-sum-exp of scores is asked for.\n\n"
           "q: (tokens, query heads, D), the last tokens of the sequence; prefill, a chunk, or a decode step by their "
           "number.\n"
           "kv: a cache, a KvCacheView, or a pair (keys, values) of arrays (tokens, KV heads, D or Dv); the queries' "
           "own tokens are in it.\n"
           "variant: \"causal\", \"full\", what gqa.causal_window(…) and the like make, or a list of parts.\n"
           "out: where results go, of any element type and strides; a new array like q unless given.\n"
           "lse: True, or an array of float32 (tokens, query heads). positions: those of q, where they are not the "
           "last ones.\n"
           "Raises gqa.Error, which names what is wrong; out is untouched then.")
      .def("batch", &call_batch, "q"_a, "kv"_a, "variant"_a = "causal", nb::kw_only(), "tokens"_a = nb::none(),
           "out"_a = nb::none(), "lse"_a = nb::none(), "positions"_a = nb::none(), "scale"_a = nb::none(),
           "threads"_a = nb::none(), "path"_a = nb::none(), "products"_a = nb::none(), "control"_a = nb::none(),
           nb::sig("def batch(self, q: gqa.typing.Array | typing.Sequence[gqa.typing.Array], kv: "
                   "typing.Sequence[gqa.typing.Cache], "
                   "variant: gqa.typing.VariantLike = 'causal', *, tokens: typing.Sequence[int] | gqa.typing.Array | "
                   "None = None, "
                   "out: gqa.typing.Array | typing.Sequence[gqa.typing.Array] | None = None, "
                   "lse: bool | typing.Sequence[bool | gqa.typing.Array | None] | None = None, "
                   "positions: typing.Sequence[typing.Sequence[int] | gqa.typing.Array | None] | None = "
                   "None, " GQA_PYTHON_OPTIONS ", control: CallControl | None = None) -> typing.Any"),
           "A ragged batch of sequences, prefills, chunks and decode steps mixed, in one call.\n\n"
           "q: a list of arrays (tokens, query heads, D), or with tokens=[…], the tokens of each sequence, one array "
           "of all tokens.\n"
           "kv: a list of caches. out: as q, a list or one array; returned. lse, positions: lists, an item for each "
           "sequence, None for none.")
      .def_prop_ro(
          "shape",
          [](const Attention& self) {
            const HeadShape shape = self.functor().shape();
            const auto extent = [](Index given) { return given == dynamic ? nb::none() : nb::object(nb::int_(given)); };
            return nb::make_tuple(extent(shape.query_heads), extent(shape.kv_heads), extent(shape.head_dim),
                                  extent(shape.value_dim));
          },
          nb::sig("def shape(self) -> tuple[int | None, int | None, int | None, int | None]"),
          "(query heads, KV heads, head dim, value dim).")
      .def(
          "release_scratch", [](const Attention& self) { self.functor().release_scratch(); },
          "Frees what earlier calls left for later ones.");
#undef GQA_PYTHON_OPTIONS
}

}  // namespace gqa::python
