// SPDX-License-Identifier: Apache-2.0
// Whole public calls, drawn: head counts and widths, a batch of sequences, types and codecs, where queries, caches and outputs lie, the variant,
// and how the call is made.
#pragma once

#include <memory>

#include "executors.hpp"
#include "problem.hpp"
#include "random_storage.hpp"
#include "random_variant_calls.hpp"

namespace gqa::test {

/// How large drawn calls are.
struct DrawnSizes {
  Index sequences = 4;
  Index n_kv = 2 * detail::kSpan + 100;
  Index work =
      3'000'000;  ///< query rows · keys · (head dim + value dim) of a sequence, about so many; on the portable path a tenth
  bool codecs = false;  ///< caches of other than plain elements, rotated ones, and sequences in parts, too
};

/// A call, with all memory that it needs. Not moved: its views look into it.
struct DrawnCall {
  Index combination = 0;
  Shape shape;  ///< heads and widths
  VariantNumbers numbers;
  Types types;
  How how;
  TensorLayout q_layout = TensorLayout::packed;
  Index first_of_values = -1;  ///< values are elements of keys' rows, from this one on; −1: they have rows of their own
  bool may_be_rounded = true;  ///< the inputs are of a size for which error bounds say something
  Place place;
  Place other_place;
  Index executor = 0;
  std::vector<DrawnPart> stored;  ///< how each part of a sequence is stored; the last one goes to its end
  Index k_rotation = 0, v_rotation = 0;
  std::vector<Problem> problems;  ///< with the numbers that are stored, if coded()

  DrawnCall(Draws& draws, const DrawnSizes& sizes);
  DrawnCall(const DrawnCall&) = delete;
  DrawnCall& operator=(const DrawnCall&) = delete;

  std::span<const Part> parts() const { return parts_of(combination); }
  bool has(Part part) const { return std::count(parts().begin(), parts().end(), part) != 0; }
  const std::vector<DrawnSequence>& sequences() const { return numbers.extents.sequences; }
  Index group() const { return shape.query_heads / shape.kv_heads; }
  /// About what a call of it costs: query rows · keys · (head dim + value dim).
  Index work() const;
  /// Whether caches are other than plain elements, each sequence in one part.
  bool coded() const { return stored.size() > 1 || !stored[0].k.type.is_element() || !stored[0].v.type.is_element(); }
  /// Where part i of a sequence ends.
  Index end_of_part(std::size_t i, Index length) const {
    return i + 1 < stored.size() ? std::min(stored[i].end, length) : length;
  }
  /// Second and further parts by turns in `other`.
  DrawnStorage store(const Place& where, const Place& other) const;
  /// Each sequence in one part of plain elements, which hold the same numbers; of the type that all of its parts have, if they have one.
  DrawnStorage store_plain() const;

 private:
  void draw_shape(Draws& draws);
  void draw_formats(Draws& draws);
  void draw_parts(Draws& draws);
  void fit_widths();
  void encode();
  DrawnSequence draw_sequence(Draws& draws, const DrawnSizes& sizes) const;
  void draw_sequences(Draws& draws, const DrawnSizes& sizes);
  void draw_types(Draws& draws);
  void draw_positions(Draws& draws);
  void draw_numbers(Draws& draws);
  Place draw_place(Draws& draws) const;
  void fit_places();

  std::vector<DrawnRows> rows_;
};

inline void DrawnCall::draw_shape(Draws& draws) {
  constexpr Index widths[] = {64, 128, 256, 576};
  constexpr Index groups[] = {1, 2, 3, 4, 5, 7, 8, 16, 17, 33};
  shape.kv_heads = draws.draw("KV heads", 1, 4);
  shape.query_heads = shape.kv_heads * draws.pick("group", groups);
  shape.head_dim = draws.seldom("a usual width", 3) ? draws.pick("head dim", widths) : draws.draw("head dim", 1, 80);
  first_of_values = draws.seldom("values in keys' rows", 8) ? draws.draw("first of values", 0, shape.head_dim - 1) : -1;
  if (first_of_values >= 0) shape.value_dim = draws.draw("value dim", 1, shape.head_dim - first_of_values);
  else
    shape.value_dim =
        draws.flag("another value dim")
            ? (draws.seldom("a usual width", 3) ? draws.pick("value dim", widths) : draws.draw("value dim", 1, 90))
            : shape.head_dim;
}

inline DrawnSequence DrawnCall::draw_sequence(Draws& draws, const DrawnSizes& sizes) const {
  constexpr Index lengths[] = {20, 80, 200, detail::kSpan + 40};
  const Index kind = draws.draw("length: to 20, 80, 200, 550, or more", 0, 4);
  DrawnSequence drawn;
  drawn.n_kv = draws.draw("n_kv", 0, std::min(sizes.n_kv, kind < 4 ? lengths[kind] : sizes.n_kv));
  const Index work = how.path == Path::portable ? sizes.work / 10 : sizes.work;
  const Index row_work = std::max<Index>(1, drawn.n_kv) * shape.query_heads * (shape.head_dim + shape.value_dim);
  const bool tree = has(Part::draft_tree);  // of more than 64 nodes, too
  const bool several = draws.flag("several query tokens") || tree;
  const Index many = draws.draw("n_q", 0, std::clamp<Index>((tree ? 4 : 1) * work / row_work, 1, 140));
  drawn.n_q = several ? many : 1;
  const bool any = draws.seldom("more queries than keys", 8);
  if (tree || !any) drawn.n_q = std::min(drawn.n_q, drawn.n_kv);
  return drawn;
}

inline void DrawnCall::draw_sequences(Draws& draws, const DrawnSizes& sizes) {
  const bool alike = draws.flag("sequences alike") || has(Part::draft_tree);
  std::vector<DrawnSequence>& all = numbers.extents.sequences;
  do all.push_back(alike && !all.empty() ? all.front() : draw_sequence(draws, sizes));
  while (static_cast<Index>(all.size()) < sizes.sequences && draws.flag("another sequence"));
}

inline void DrawnCall::draw_types(Draws& draws) {
  types.k = draws.pick("keys' type", kEveryType);
  types.q = draws.flag("another type of queries") ? draws.pick("queries' type", kEveryType) : types.k;
  types.v =
      first_of_values < 0 && draws.flag("another type of values") ? draws.pick("values' type", kEveryType) : types.k;
  types.out = draws.pick("outputs' type", kEveryType);
  const auto paths = static_cast<Index>(available_paths().size());
  how.path = available_paths()[static_cast<std::size_t>(draws.draw("path", 0, paths - 1))];
  how.out = types.out;
  how.products = draws.pick("products", kEveryProducts);
  if (draws.seldom("a scale", 4)) how.scale = static_cast<float>(draws.draw("scale in 64ths", 1, 40)) / 64.0f;
  how.out_layout = draws.pick("outputs' layout", kTensorLayouts);
  q_layout = draws.pick("queries' layout", kTensorLayouts);
  executor = draws.draw("executor: serial, shuffled, threads", 0, 2);
}

/// Codecs instead of keys' and values' element types, rotations, and parts.
inline void DrawnCall::draw_formats(Draws& draws) {
  constexpr Index blocks[] = {16, 1, 2, 4, 8, 32, 64, 128};
  const auto coded = [&](const char* name) {
    return codec_of(draws.draw(name, detail::kLastElementType + 1, detail::CodecList::size - 1)).type;
  };
  const Index which = draws.draw("cache: elements, coded keys, values, both", 0, 3);
  DrawnPart& first = stored[0];
  if (which == 1 || which == 3) first.k.type = coded("keys' codec");
  if (which == 2 || which == 3) first.v.type = coded("values' codec");
  first.k.draw_scales(draws);
  first.v.draw_scales(draws);
  if (draws.seldom("rotated keys", 5)) k_rotation = draws.pick("rotation of keys", blocks);
  if (draws.seldom("rotated values", 5)) v_rotation = draws.pick("rotation of values", blocks);
  if (draws.seldom("in parts", 5)) draw_parts(draws);
  fit_widths();
}

inline void DrawnCall::draw_parts(Draws& draws) {
  Index end = 0;
  for (Index more = draws.draw("further parts", 1, 3); more > 0; --more) {
    stored.back().end = end += 64 * draws.draw("blocks of a part", 1, 4);
    DrawnPart part;
    part.k.type = codec_of(draws.draw("keys' type or codec", 0, detail::CodecList::size - 1)).type;
    part.v.type = codec_of(draws.draw("values' type or codec", 0, detail::CodecList::size - 1)).type;
    part.k.draw_scales(draws);
    part.v.draw_scales(draws);
    stored.push_back(part);
  }
}

/// Makes widths those that codecs and rotations may have.
inline void DrawnCall::fit_widths() {
  Index k_unit = std::max<Index>(k_rotation, 1);
  Index begins = k_unit;  // of what values in keys' rows begin at multiples
  for (const DrawnPart& part : stored) {
    if (part.k.type.whole_blocks()) k_unit = std::max(k_unit, part.k.type.block_elements());
    begins = std::max(begins, part.k.type.block_elements());
    if (part.k.type.row_bytes(1) != part.k.type.block_bytes()) first_of_values = -1;  // a row has something of its own
  }
  shape.head_dim = detail::round_up(shape.head_dim, k_unit);
  if (first_of_values >= 0) {
    for (DrawnPart& part : stored) part.v = part.k;
    v_rotation = k_rotation;
    first_of_values -= first_of_values % begins;
    shape.value_dim = std::min(detail::round_up(shape.value_dim, k_unit), shape.head_dim - first_of_values);
    return;
  }
  Index v_unit = std::max<Index>(v_rotation, 1);
  for (const DrawnPart& part : stored)
    if (part.v.type.whole_blocks()) v_unit = std::max(v_unit, part.v.type.block_elements());
  shape.value_dim = detail::round_up(shape.value_dim, v_unit);
}

inline void DrawnCall::draw_positions(Draws& draws) {
  for (DrawnSequence& s : numbers.extents.sequences) {
    if (!draws.seldom("given positions", 4)) continue;
    const Index step = draws.draw("step of positions", 0, 2) - 1;  // backwards, all the same, or ascending
    const Index first = draws.draw("first position", 0, s.n_kv + 3) - 3;
    for (Index i = 0; i < s.n_q; ++i) s.positions.push_back(first + i * step);
  }
}

inline void DrawnCall::draw_numbers(Draws& draws) {
  constexpr Distribution distributions[] = {
      Distribution::normal,     Distribution::normal,       Distribution::sinks,    Distribution::equal_keys,
      Distribution::far_values, Distribution::dominant_key, Distribution::denormal, Distribution::large_scores};
  Distribution distribution = draws.pick("distribution", distributions);
  if (first_of_values >= 0 && distribution == Distribution::large_scores)
    distribution = Distribution::normal;  // values as large might be what Output takes for "never written"
  const bool scaled = v_rotation > 1 || std::any_of(stored.begin(), stored.end(), [](const DrawnPart& part) {
                        return part.v.type.scale_bytes() != 0;
                      });
  if (scaled && types.out == ElementType::f16 && distribution == Distribution::far_values)
    distribution = Distribution::normal;  // outputs may be 203.25
  may_be_rounded = distribution != Distribution::large_scores;
  const Index seed = draws.draw("seed of tensors", 0, 255);
  for (const DrawnSequence& s : sequences()) {
    Shape one = shape;
    one.n_q = s.n_q;
    one.n_kv = s.n_kv;
    problems.push_back(make_problem(one, static_cast<std::uint64_t>(seed) * 8 + problems.size(), distribution));
  }
  encode();
}

/// Rows as they are stored, and what they stand for.
inline void DrawnCall::encode() {
  std::vector<float> k_scale(stored.size()), v_scale(stored.size());
  for (Problem& p : problems) {
    DrawnRows& of_sequence = rows_.emplace_back();
    const auto encode_all = [&](Numbers& all, const auto& format, std::vector<float>& scale,
                                std::vector<CodedRows>& to) {
      Index begin = 0;
      for (std::size_t i = 0; i < stored.size(); begin = stored[i++].end)
        to.emplace_back(format(stored[i]), all, begin, end_of_part(i, p.kv.length()), scale[i]);
    };
    if (coded())
      encode_all(
          p.kv.k, [](const DrawnPart& part) { return part.k; }, k_scale, of_sequence.k);
    for (Index t = 0; t < p.kv.length() && first_of_values >= 0; ++t)
      for (Index h = 0; h < shape.kv_heads; ++h)
        for (Index d = 0; d < shape.value_dim; ++d) p.kv.v.at(t, h, d) = p.kv.k.at(t, h, d + first_of_values);
    if (coded() && first_of_values < 0)
      encode_all(
          p.kv.v, [](const DrawnPart& part) { return part.v; }, v_scale, of_sequence.v);
  }
}

/// Where a cache lies, but for what follows from its lengths: `slots` are further ones.
inline Place DrawnCall::draw_place(Draws& draws) const {
  constexpr Storage storages[] = {Storage::contiguous, Storage::paged, Storage::ring};
  constexpr Index sizes[] = {1, 3, 7, 16, 17, 64, 100, 300};
  constexpr CacheLayout layouts[] = {CacheLayout::token_major, CacheLayout::head_major, CacheLayout::padded,
                                     CacheLayout::reversed, CacheLayout::interleaved};
  Place drawn;
  // Without interleaved ones where values are parts of keys' rows anyway.
  drawn.layout = layouts[draws.draw("cache layout", 0, first_of_values < 0 ? 4 : 3)];
  drawn.storage = draws.pick("storage: contiguous, paged, ring", storages);
  drawn.slots = draws.draw("further slots", 0, 40);
  drawn.page_size = draws.pick("page size", sizes);
  drawn.seed = static_cast<std::uint64_t>(draws.draw("order of pages", 0, 255));
  return drawn;
}

/// Makes room for what the queries see; what they do not, before it, is garbage, or no longer there.
inline void DrawnCall::fit_places() {
  const Index longest = numbers.extents.longest();
  Index oldest = longest, kept = 1;
  const ScopedVariant variant(numbers, combination);
  for (std::size_t s = 0; s < sequences().size(); ++s) {
    const Index first = first_in_range(variant, static_cast<Index>(s), sequences()[s]);
    oldest = std::min(oldest, first);
    kept = std::max(kept, sequences()[s].n_kv - first);
  }
  for (Place* const p : {&place, &other_place}) {
    p->keep_from = oldest;
    p->slots += p->storage == Storage::ring ? kept : longest;
  }
}

inline DrawnCall::DrawnCall(Draws& draws, const DrawnSizes& sizes) {
  // The variant's numbers come last, so that a simpler variant leaves the others where they are.
  combination = draws.draw("variant", 0, combinations() - 1);
  draw_shape(draws);
  draw_types(draws);
  stored.push_back({{types.k}, {types.v}});
  if (sizes.codecs) draw_formats(draws);
  place = draw_place(draws);
  other_place = draw_place(draws);
  draw_sequences(draws, sizes);
  draw_positions(draws);
  draw_numbers(draws);
  numbers.extents.query_heads = shape.query_heads;
  numbers.extents.kv_heads = shape.kv_heads;
  numbers.extents.value_dim = shape.value_dim;
  Random random(static_cast<std::uint64_t>(draws.draw("seed of the variant", 0, 255)));
  for (const Part part : parts()) numbers.draw(part, draws, random);
  fit_places();
}

inline Index DrawnCall::work() const {
  Index pairs = 0;
  for (const DrawnSequence& s : sequences()) pairs += s.n_q * s.n_kv;
  return pairs * shape.query_heads * (shape.head_dim + shape.value_dim);
}

inline DrawnStorage DrawnCall::store(const Place& where, const Place& other) const {
  std::vector<const LogicalCache*> caches;
  for (const Problem& p : problems) caches.push_back(&p.kv);
  DrawnStorage storage(caches, rows_, stored, where, other, first_of_values);
  storage.rotate(k_rotation, v_rotation);
  return storage;
}

inline DrawnStorage DrawnCall::store_plain() const {
  std::vector<const LogicalCache*> caches;
  std::vector<Types> plain;
  for (const Problem& p : problems) {
    caches.push_back(&p.kv);
    KvType k = stored[0].k.type, v = stored[0].v.type;
    for (std::size_t i = 1; i < stored.size() && stored[i - 1].end < p.kv.length(); ++i) {
      if (stored[i].k.type != k) k = ElementType::f32;
      if (stored[i].v.type != v) v = ElementType::f32;
    }
    plain.push_back({});
    if (k.is_element()) plain.back().k = k;
    if (v.is_element()) plain.back().v = v;
  }
  DrawnStorage storage(caches, plain);
  storage.rotate(k_rotation, v_rotation);
  return storage;
}

}  // namespace gqa::test
