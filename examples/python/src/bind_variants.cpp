// SPDX-License-Identifier: Apache-2.0
// The makers of variants' parts.
#include <nanobind/stl/string.h>

#include "variant.hpp"

namespace gqa::python {

namespace {

std::string call_text(const char* name, std::initializer_list<Index> arguments) {
  std::string text = std::string(name) + "(";
  for (const Index argument : arguments) text += (text.back() == '(' ? "" : ", ") + std::to_string(argument);
  return text + ")";
}

/// (query token, key), (query head, query token, key) or (sequence, query head, query token, key); an extent of 1 is for all.
template <class T>
BroadcastView<T> broadcast(const Array& array) {
  const Index axes = array.ndim();
  if (axes < 2 || axes > 4)
    fail(array.name() + ".shape", array.shape_text(),
         "(query tokens, keys), with query heads before them, and sequences before those");
  const auto extent = [&](Index from_last) { return from_last <= axes ? array.extent(axes - from_last) : Index{1}; };
  const auto stride = [&](Index from_last) { return from_last <= axes ? array.stride(axes - from_last) : Index{0}; };
  return {static_cast<const T*>(array.data()),
          extent(4),
          extent(3),
          extent(2),
          extent(1),
          BroadcastStrides{stride(4), stride(3), stride(2), stride(1)}};
}

/// An array, or a list of them, one for each sequence.
std::vector<std::shared_ptr<const Array>> arrays_of(nb::handle object, const std::string& name) {
  std::vector<std::shared_ptr<const Array>> arrays;
  if (!nb::isinstance<nb::list>(object) && !nb::isinstance<nb::tuple>(object)) {
    arrays.push_back(std::make_shared<Array>(object, name));
    return arrays;
  }
  for (const nb::handle item : nb::borrow<nb::object>(object))
    arrays.push_back(std::make_shared<Array>(item, name + "[" + std::to_string(arrays.size()) + "]"));
  if (arrays.empty()) fail(name, "empty", "an array, or one for each sequence");
  return arrays;
}

Variant boolean_mask(nb::object allowed) {
  std::vector<std::shared_ptr<const Mask>> masks;
  const std::vector<std::shared_ptr<const Array>> arrays = arrays_of(allowed, "allowed");
  for (const std::shared_ptr<const Array>& array : arrays) {
    if (array->dtype() != "bool" && array->dtype() != "uint8") fail(array->name(), array->dtype(), "bool or uint8");
    masks.push_back(mask_over<BooleanMask<std::uint8_t>>(
        array, [](const auto& kept) { return BooleanMask<std::uint8_t>{broadcast<std::uint8_t>(*kept)}; }));
  }
  if (masks.size() > 1) masks = {std::make_shared<MaskOfEach>(std::move(masks))};
  return {.text = "boolean_mask(…)", .masks = masks, .arrays = arrays};
}

Variant additive_bias(nb::object bias) {
  const auto change = std::make_shared<ScoreChange>();
  for (const std::shared_ptr<const Array>& array : arrays_of(bias, "bias")) {
    const ElementType type = array->element();
    const ScoreKind kind = type == ElementType::f32    ? ScoreKind::bias_f32
                           : type == ElementType::bf16 ? ScoreKind::bias_bf16
                                                       : ScoreKind::bias_f16;
    if (change->kind != ScoreKind::none && change->kind != kind)
      fail(array->name(), array->dtype(), "the element type of the other sequences'");
    change->kind = kind;
    if (type == ElementType::f32) change->f32.push_back(broadcast<float>(*array));
    else if (type == ElementType::bf16) change->bf16s.push_back(broadcast<bf16>(*array));
    else change->f16s.push_back(broadcast<f16>(*array));
    change->arrays.push_back(array);
  }
  return {.text = "additive_bias(…)", .scores = {change}, .arrays = change->arrays};
}

struct Tree {
  Index prefix;
  std::vector<std::int32_t> parents;
  std::vector<std::uint64_t> ancestors{};
};

Variant draft_tree(nb::object parents, nb::object prefix) {
  std::vector<std::shared_ptr<const Mask>> masks;
  const auto add = [&](nb::handle of_one, Index before) {
    Tree tree{before, {}};
    for (const Index parent : indices(of_one, "parents")) {
      if (parent < -1 || parent > (Index{1} << 30))
        fail("parents", std::to_string(parent), "a node before it, or -1 for the prefix");
      tree.parents.push_back(static_cast<std::int32_t>(parent));
    }
    const auto nodes = static_cast<Index>(tree.parents.size());
    tree.ancestors.resize(static_cast<std::size_t>(nodes * DraftTree::words_a_node(nodes)));
    DraftTree::fill_ancestors(tree.parents, tree.ancestors);
    masks.push_back(mask_over<DraftTree>(std::move(tree), [](const Tree& kept) {
      return DraftTree{kept.prefix, kept.parents, kept.ancestors};
    }));
  };
  Index of_all = 0;
  if (nb::try_cast<Index>(prefix, of_all)) {
    add(parents, of_all);
  } else {
    const std::vector<Index> prefixes = indices(prefix, "prefix");
    if (nb::len(parents) != prefixes.size())
      fail("len(prefix)", std::to_string(prefixes.size()),
           "one for each of the " + std::to_string(nb::len(parents)) + " trees");
    std::size_t number = 0;
    for (const nb::handle of_one : parents) {
      if (number == prefixes.size()) fail("parents", "longer than its len()", "a sequence of trees");
      add(of_one, prefixes[number++]);
    }
    masks = {std::make_shared<MaskOfEach>(std::move(masks))};
  }
  return {.text = "draft_tree(…)", .masks = masks};
}

std::vector<PositionRange> ranges_of(nb::handle object, const std::string& name) {
  std::vector<PositionRange> ranges;
  for (const nb::handle item : nb::borrow<nb::object>(object)) {
    const std::vector<Index> pair = indices(item, name + "[" + std::to_string(ranges.size()) + "]");
    if (pair.size() != 2)
      fail(name + "[" + std::to_string(ranges.size()) + "]", std::to_string(pair.size()) + " numbers",
           "a pair (begin, end)");
    ranges.push_back({pair[0], pair[1]});
  }
  return ranges;
}

Variant block_sparse(Index query_block, Index key_block, nb::object offsets, nb::object keys) {
  auto kept = std::pair(indices(offsets, "offsets"), indices(keys, "keys"));
  return {.text = "block_sparse(…)", .masks = {mask_over<BlockSparse>(std::move(kept), [&](const auto& of) {
                                       return BlockSparse{query_block, key_block, of.first, of.second};
                                     })}};
}

Variant of_heads(ScoreKind kind, const char* name, std::vector<float> numbers) {
  const auto change = std::make_shared<ScoreChange>();
  change->kind = kind;
  change->of_head = std::move(numbers);
  return {.text = std::string(name) + "(…)", .scores = {change}};
}

Variant distance_bias(std::vector<float> table, Index distances, Index least) {
  const auto change = std::make_shared<ScoreChange>();
  change->kind = ScoreKind::bias_f32;
  change->table = std::move(table);
  change->distances = DistanceBias{{}, distances, least};
  return {.text = "distance_bias(…)", .scores = {change}};
}

std::vector<float> copied(const Array& array) {
  array.expect_dtype("float32");
  array.expect_axes(2, "two axes");
  std::vector<float> numbers;
  for (Index i = 0; i < array.extent(0); ++i)
    for (Index j = 0; j < array.extent(1); ++j)
      numbers.push_back(static_cast<const float*>(array.data())[i * array.stride(0) + j * array.stride(1)]);
  return numbers;
}

}  // namespace

void bind_variants(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Variant>(
      module, "Variant",
      "What is attended and how scores change: one part, or several, in the order in which scores go through them.")
      .def("__repr__", [](const Variant& variant) { return "Variant(" + variant.text + ")"; });
  module.def(
      "compose", [](nb::args parts) { return variant_of(nb::list(parts)); },
      nb::sig("def compose(*parts: str | Variant) -> Variant"),
      "Parts as one: what all let a row see, scores changed by one after the other. A list of parts as a call's "
      "variant says the same.");
  const auto masks = [](const char* name, std::initializer_list<Index> arguments, std::shared_ptr<const Mask> mask) {
    return Variant{.text = call_text(name, arguments), .masks = {std::move(mask)}};
  };
  module.def(
      "full", [] { return variant_of(nb::str("full")); }, "Every query sees every token.");
  module.def(
      "causal", [] { return variant_of(nb::str("causal")); }, "A query sees its own position and those before it.");
  module.def(
      "causal_window", [=](Index window) { return masks("causal_window", {window}, mask_of(CausalWindow{window})); },
      "window"_a, "A query sees its own position and the window - 1 before it.");
  module.def(
      "two_sided_window",
      [=](Index before, Index after) {
        return masks("two_sided_window", {before, after}, mask_of(TwoSidedWindow{before, after}));
      },
      "before"_a, "after"_a, "A query sees `before` positions before its own, its own, and `after` behind it.");
  module.def(
      "prefix_lm", [=](Index prefix) { return masks("prefix_lm", {prefix}, mask_of(PrefixLm{prefix})); }, "prefix"_a,
      "The first `prefix` positions see each other; from there on it is causal.");
  module.def(
      "first_tokens_and_window",
      [=](Index first, Index window) {
        return masks("first_tokens_and_window", {first, window}, mask_of(FirstTokensAndWindow{first, window}));
      },
      "first"_a, "window"_a, "A query sees the first `first` positions and a causal window (StreamingLLM).");
  module.def(
      "chunked_local", [=](Index chunk) { return masks("chunked_local", {chunk}, mask_of(ChunkedLocal{chunk})); },
      "chunk"_a, "Causal within chunks of `chunk` positions (Llama 4's local layers).");
  module.def(
      "dilated_window",
      [=](Index step, Index count) {
        return masks("dilated_window", {step, count}, mask_of(DilatedWindow{step, count}));
      },
      "step"_a, "count"_a, "Causal, of every step-th position back from a query's own, `count` of them.");
  module.def(
      "causal_with_blocks",
      [](nb::object blocks) {
        return Variant{.text = "causal_with_blocks(…)",
                       .masks = {mask_over<CausalWithBlocks>(ranges_of(blocks, "blocks"),
                                                             [](const auto& kept) { return CausalWithBlocks{kept}; })}};
      },
      "blocks"_a, nb::sig("def causal_with_blocks(blocks: typing.Sequence[tuple[int, int]]) -> Variant"),
      "Causal, but for blocks (begin, end) of positions that see each other whole: images among text.");
  module.def(
      "packed_documents",
      [](nb::object offsets, bool causal) {
        return Variant{.text = "packed_documents(…)",
                       .masks = {mask_over<PackedDocuments>(indices(offsets, "offsets"), [=](const auto& kept) {
                         return PackedDocuments{kept, causal};
                       })}};
      },
      "offsets"_a, "causal"_a = true,
      nb::sig("def packed_documents(offsets: typing.Sequence[int], causal: bool = True) -> Variant"),
      "Documents in one sequence: document i has the positions [offsets[i], offsets[i + 1]), and sees itself alone.");
  module.def(
      "valid_tokens",
      [](nb::object of_sequence) {
        return Variant{.text = "valid_tokens(…)",
                       .masks = {mask_over<ValidTokens>(ranges_of(of_sequence, "of_sequence"),
                                                        [](const auto& kept) { return ValidTokens{kept}; })}};
      },
      "of_sequence"_a, nb::sig("def valid_tokens(of_sequence: typing.Sequence[tuple[int, int]]) -> Variant"),
      "The positions (begin, end) of each sequence of a batch that are there, the others being padding.");
  module.def(
      "block_sparse", &block_sparse, "query_block"_a, "key_block"_a, "offsets"_a, "keys"_a,
      nb::sig("def block_sparse(query_block: int, key_block: int, offsets: typing.Sequence[int], keys: "
              "typing.Sequence[int]) -> Variant"),
      "Block b of queries sees the blocks of keys numbered keys[offsets[b]:offsets[b + 1]], in ascending order.");
  module.def("draft_tree", &draft_tree, "parents"_a, "prefix"_a,
             nb::sig("def draft_tree(parents: typing.Sequence[int] | typing.Sequence[typing.Sequence[int]], prefix: "
                     "int | typing.Sequence[int]) -> Variant"),
             "Draft tokens in a tree behind `prefix` tokens: node i sees the prefix, its ancestors, and itself. "
             "parents: one before it, or -1 for\n"
             "the prefix. For a batch a list of trees, and of their prefixes.");
  module.def("boolean_mask", &boolean_mask, "allowed"_a,
             nb::sig("def boolean_mask(allowed: gqa.typing.Array | typing.Sequence[gqa.typing.Array]) -> Variant"),
             "A row sees the keys whose flags (bool or uint8) are not 0: (query tokens, keys), with query heads before "
             "them, and sequences before\n"
             "those; an extent of 1 is for all. Or a list of arrays, one for each sequence of a batch. Not copied.");
  module.def(
      "soft_cap",
      [](float cap) {
        const auto change = std::make_shared<ScoreChange>();
        change->kind = ScoreKind::cap;
        change->cap = cap;
        return Variant{.text = "soft_cap(…)", .scores = {change}};
      },
      "cap"_a, "Scores s become cap * tanh(s / cap).");
  module.def(
      "alibi",
      [](nb::object slopes) {
        return slopes.is_none() ? variant_of(nb::str("alibi"))
                                : of_heads(ScoreKind::alibi, "alibi", floats(slopes, "slopes"));
      },
      "slopes"_a = nb::none(),
      nb::sig("def alibi(slopes: typing.Sequence[float] | gqa.typing.Array | None = None) -> Variant"),
      "Scores less slope * (query position - key position), a slope for each query head; the published ones unless "
      "given.");
  module.def("additive_bias", &additive_bias, "bias"_a,
             nb::sig("def additive_bias(bias: gqa.typing.Array | typing.Sequence[gqa.typing.Array]) -> Variant"),
             "Scores plus a bias of float32, bfloat16 or float16, shaped as boolean_mask has it. Not copied.");
  module.def(
      "distance_bias",
      [](nb::object bias, Index least) {
        const Array array(bias, "bias");
        std::vector<float> table = copied(array);
        return distance_bias(std::move(table), array.extent(1), least);
      },
      "bias"_a, "least"_a = 0, nb::sig("def distance_bias(bias: gqa.typing.Array, least: int = 0) -> Variant"),
      "Scores plus a bias by how far the key is before the query: bias (query heads, distances), float32, the first of "
      "distance `least`.");
  module.def(
      "t5_bias",
      [](nb::object table, Index max_distance, bool bidirectional, Index distances, Index least) {
        const Array array(table, "table");
        const std::vector<float> weights = copied(array);
        if (distances < 1 || distances > Index{1} << 32) fail("distances", std::to_string(distances), "1 to 2^32");
        std::vector<float> bias(static_cast<std::size_t>(distances * array.extent(1)));
        DistanceBias::fill_t5(weights, array.extent(1), bidirectional, array.extent(0), max_distance, least, distances,
                              bias);
        return distance_bias(std::move(bias), distances, least);
      },
      "table"_a, "max_distance"_a, "bidirectional"_a, "distances"_a, "least"_a = 0,
      nb::sig("def t5_bias(table: gqa.typing.Array, max_distance: int, bidirectional: bool, distances: int, least: int "
              "= 0) -> Variant"),
      "T5's relative buckets: table (buckets, query heads), float32; for so many distances, the first of which is "
      "`least`.");
  module.def(
      "head_scale",
      [](nb::object scales) { return of_heads(ScoreKind::scale, "head_scale", floats(scales, "scales")); }, "scales"_a,
      nb::sig("def head_scale(scales: typing.Sequence[float] | gqa.typing.Array) -> Variant"),
      "Scores times a scale for each query head.");
  module.def(
      "position_temperature",
      [](Index floor_scale, float strength) {
        const auto change = std::make_shared<ScoreChange>();
        change->kind = ScoreKind::scale;
        change->temperature = PositionTemperature{floor_scale, strength};
        return Variant{.text = "position_temperature(…)", .scores = {change}};
      },
      "floor_scale"_a = 8192, "strength"_a = 0.1f,
      "Scores times 1 + strength * log(1 + floor((position + 1) / floor_scale)) (Llama 4).");
  module.def(
      "learned_sinks",
      [](nb::object logits, bool in_lse) {
        return Variant{.text = "learned_sinks(…)", .sinks = floats(logits, "logits"), .sinks_in_lse = in_lse};
      },
      "logits"_a, "in_lse"_a = true,
      nb::sig("def learned_sinks(logits: typing.Sequence[float] | gqa.typing.Array, in_lse: bool = True) -> Variant"),
      "A logit for each query head that takes its share of the weights (gpt-oss), in the log-sum-exp too unless in_lse "
      "is off.");
  module.def(
      "output_gate",
      [](nb::object gates) {
        Variant variant{.text = "output_gate(…)"};
        variant.arrays = arrays_of(gates, "gates");
        for (const std::shared_ptr<const Array>& array : variant.arrays) variant.gates.push_back(*array);
        variant.gated = true;
        return variant;
      },
      "gates"_a, nb::sig("def output_gate(gates: gqa.typing.Array | typing.Sequence[gqa.typing.Array]) -> Variant"),
      "Outputs times the sigmoid of logits (query tokens, query heads, Dv); a list of arrays, one for each sequence of "
      "a batch.");
  module.def(
      "value_scale",
      [](nb::object factors) { return Variant{.text = "value_scale(…)", .value_factors = floats(factors, "factors")}; },
      "factors"_a, nb::sig("def value_scale(factors: typing.Sequence[float] | gqa.typing.Array) -> Variant"),
      "Outputs times a factor for each KV head.");
}

}  // namespace gqa::python
