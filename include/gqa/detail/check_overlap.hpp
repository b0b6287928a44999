// SPDX-License-Identifier: Apache-2.0
/// @file
/// Outputs that lie where something else does, as far as it is cheap to say.
///
/// Found are, of the outputs (rows and LSE) of each sequence and everything else that its call uses:
///   a tensor that fills its memory, from its first to its last element, and any element of another one in it;
///   two tensors that do not, and begin at the same place.
/// Tensors that lie between each other's rows, as in a packed (token, q | k | v | out), are let through. Pages of a pool are not looked at:
/// others of them are not the sequence's. Outputs of different sequences are compared with those of the kLookBack before them.
#pragma once

#include <span>

#include "gqa/detail/check_views.hpp"
#include "gqa/options.hpp"

namespace gqa::detail {

/// Where the arguments of a sequence lie.
struct SequenceRanges {
  ByteRange q{};
  ByteRange out{};
  CacheRanges kv{};
  ByteRange positions{};
  ByteRange lse{};
};

}  // namespace gqa::detail

namespace gqa::detail::inline GQA_ABI {

/// 1 if they have a byte in common, else 0: a number, so that many are looked at without a branch.
GQA_ALWAYS_INLINE unsigned meet(const ByteRange& a, const ByteRange& b) noexcept {
  return static_cast<unsigned>(a.begin < b.end) & static_cast<unsigned>(b.begin < a.end);
}

/// From one address to another.
GQA_ALWAYS_INLINE Index steps_between(std::uintptr_t from, std::uintptr_t to) noexcept {
  return kShortAddresses ? static_cast<Index>(to) - static_cast<Index>(from) : static_cast<Index>(to - from);
}

inline Index size_of_step(Index stride) noexcept { return stride < 0 ? -stride : stride; }

/// So many steps, of whatever sign.
struct Axis {
  Index stride;
  Index extent;
};
/// True if every index has a place of its own: sorted by size, each stride steps over what the smaller ones reach.
template <std::size_t N>
inline bool places_are_distinct(Axis (&axes)[N]) noexcept {
  for (std::size_t pass = 0; pass + 1 < N; ++pass)
    for (std::size_t i = 0; i + 1 < N; ++i)
      if (size_of_step(axes[i].stride) > size_of_step(axes[i + 1].stride)) {
        const Axis first = axes[i];
        axes[i] = axes[i + 1];
        axes[i + 1] = first;
      }
  Index reach = 0;
  for (const Axis& axis : axes) {
    if (axis.extent <= 1) continue;
    if (size_of_step(axis.stride) <= reach) return false;
    reach += (axis.extent - 1) * size_of_step(axis.stride);
  }
  return true;
}

/// True if every (token, head, dim) has an element of its own.
template <class View>
inline bool elements_are_distinct(const View& tensor) noexcept {
  const TensorStrides& steps = tensor.strides;
  if (steps.dim == 1 && steps.head >= tensor.dim && steps.token >= tensor.heads * steps.head) return true;  // as usual
  Axis axes[] = {{steps.token, tensor.tokens}, {steps.head, tensor.heads}, {steps.dim, tensor.dim}};
  return places_are_distinct(axes);
}

/// Elements of so many bytes, strides in elements: a tensor; or the rows of a cache, whose elements are bytes.
struct Elements {
  const void* data;
  Index bytes;
  Index tokens;
  Index heads;
  Index dim;
  TensorStrides strides;

  template <class Data>
  Elements(const BasicTensorView<Data>& tensor) noexcept  // NOLINT(google-explicit-constructor)
      : data(tensor.data),
        bytes(element_bytes(tensor.type)),
        tokens(tensor.tokens),
        heads(tensor.heads),
        dim(tensor.dim),
        strides(tensor.strides) {}
  /// Keys or values of a cache, of `slots` tokens.
  Elements(const void* rows, KvType type, Index slots, Index kv_heads, Index width, const KvStrides& steps) noexcept
      : data(rows),
        bytes(1),
        tokens(slots),
        heads(kv_heads),
        dim(type.row_bytes(width)),
        strides{type.stride_bytes(steps.token), type.stride_bytes(steps.head), 1} {}
  Elements(const void* first, Index element, Index token_count, Index head_count, Index width,
           const TensorStrides& steps) noexcept
      : data(first), bytes(element), tokens(token_count), heads(head_count), dim(width), strides(steps) {}
};
inline Elements keys_of(const KvCacheView& kv, Index slots) noexcept {
  return {kv.k, kv.k_type, slots, kv.kv_heads, kv.head_dim, kv.k_strides};
}
inline Elements values_of(const KvCacheView& kv, Index slots) noexcept {
  return {kv.v, kv.v_type, slots, kv.kv_heads, kv.value_dim, kv.v_strides};
}

/// From the first to the last byte of a tensor that has been checked.
inline ByteRange range_of(const Elements& tensor) noexcept {
  if (tensor.tokens <= 0) return {};
  const auto at = reinterpret_cast<std::uintptr_t>(tensor.data);
  const Index bytes = tensor.bytes;
  Index before = 0, behind = 1;
  const auto add = [&](Index extent, Index stride) { (stride < 0 ? before : behind) += (extent - 1) * stride; };
  add(tensor.tokens, tensor.strides.token);
  add(tensor.heads, tensor.strides.head);
  add(tensor.dim, tensor.strides.dim);
  return {at + static_cast<std::uintptr_t>(before * bytes), at + static_cast<std::uintptr_t>(behind * bytes)};
}

/// True if nothing but its elements lies between the first and the last one.
inline bool fills(const Elements& tensor, const ByteRange& range) noexcept {
  const Checked elements = Checked(tensor.tokens) * tensor.heads * tensor.dim;
  const auto room = static_cast<Index>((range.end - range.begin) / static_cast<std::uintptr_t>(tensor.bytes));
  return elements.at_most(room) && elements.value() == room && elements_are_distinct(tensor);
}

/// True if the tensor has an element in `range`.
inline bool has_element_in(const Elements& tensor, const ByteRange& wanted) noexcept {
  const ByteRange all = range_of(tensor);
  if (meet(all, wanted) == 0) return false;
  // Of a range of any size, the part that may hold elements.
  const ByteRange range{wanted.begin > all.begin ? wanted.begin : all.begin,
                        wanted.end < all.end ? wanted.end : all.end};
  const Index bytes = tensor.bytes;
  for (Index head = 0; head < tensor.heads; ++head) {
    // From the head's first row to the range: [begin, end) bytes. A row meets it that begins in (begin − width, end).
    const auto at =
        reinterpret_cast<std::uintptr_t>(tensor.data) + static_cast<std::uintptr_t>(head * tensor.strides.head * bytes);
    Elements row = tensor;
    row.tokens = row.heads = 1;
    const ByteRange row_range = range_of(row);
    const auto row_before = steps_between(row_range.begin, reinterpret_cast<std::uintptr_t>(tensor.data));
    const auto width = steps_between(row_range.begin, row_range.end);
    const Index begin = steps_between(at, range.begin) + row_before - width;
    const Index end = steps_between(at, range.end) + row_before;
    const Index step = tensor.strides.token * bytes;
    Index first = 0, last = tensor.tokens;  // tokens whose rows meet it
    if (step > 0) {
      if (begin >= 0) first = begin / step + 1;
      if (end <= (tensor.tokens - 1) * step) last = end > 0 ? (end - 1) / step + 1 : 0;
    } else if (step < 0) {
      if (end <= 0) first = -end / -step + 1;
      if (begin >= (tensor.tokens - 1) * step) last = begin < 0 ? (-begin - 1) / -step + 1 : 0;
    } else if (begin >= 0 || end <= 0) {
      continue;
    }
    if (first >= last) continue;
    if (size_of_step(tensor.strides.dim) <= 1) return true;
    for (Index token = first; token < last; ++token)
      for (Index d = 0; d < tensor.dim; ++d) {
        const auto element =
            at + static_cast<std::uintptr_t>((token * tensor.strides.token + d * tensor.strides.dim) * bytes);
        if (meet({element, element + static_cast<std::uintptr_t>(bytes)}, range) != 0) return true;
      }
  }
  return false;
}

/// True if two tensors surely share memory; see the top of this file.
inline bool overlap(const Elements& a, const Elements& b) noexcept {
  const ByteRange a_range = range_of(a), b_range = range_of(b);
  if (meet(a_range, b_range) == 0) return false;
  if (fills(b, b_range)) return has_element_in(a, b_range);
  if (fills(a, a_range)) return has_element_in(b, a_range);
  return a.data == b.data;
}

/// A range that something else may lie in, and what it is called.
[[noreturn]] inline void fail_overlap(const ArgumentName& name, const char* output, const Text& other) {
  fail(name(output), "in the memory of " + other, "memory of its own, which no input and no other output lies in");
}

/// The slow way, for arguments between whose ends others lie. Fails if they surely share memory.
[[gnu::cold]] inline void check_meeting(const ArgumentName& name, const Sequence& sequence,
                                        const SequenceRanges& ranges, std::span<const std::byte> scratch,
                                        std::span<const Sequence> batch) {
  const KvCacheView& kv = sequence.kv;
  const Index slots = kv.length < ranges.kv.slots ? kv.length : ranges.kv.slots;
  const bool pool = kv.storage == Storage::paged;
  const auto lse_floats = static_cast<Index>(sequence.lse.size());
  const Elements q = sequence.q, keys = keys_of(kv, slots), values = values_of(kv, slots);
  const Elements out = sequence.out;
  const Elements lse = ConstTensorView(sequence.lse.data(), lse_floats, 1, 1);
  const auto plain = [](auto elements) -> ByteRange {
    const auto begin = reinterpret_cast<std::uintptr_t>(elements.data());
    return {begin, begin + elements.size_bytes()};
  };
  const ByteRange table =
      pool && kv.length > 0
          ? plain(std::span(kv.page_table, static_cast<std::size_t>((kv.length - 1) / kv.page_size + 1)))
          : ByteRange{};
  const auto check = [&](const char* output, const Elements& written) {
    if (written.tokens <= 0) return;
    const auto tensor = [&](const char* other, const Elements& read) {
      if (overlap(written, read)) fail_overlap(name, output, name(other));
    };
    const auto range = [&](const Text& other, const ByteRange& read) {
      if (read.begin != read.end && has_element_in(written, read)) fail_overlap(name, output, other);
    };
    tensor("q", q);
    if (!pool && slots > 0) {
      tensor("kv.k", keys);
      tensor("kv.v", values);
    }
    range(name("positions"), plain(sequence.positions));
    range(name("kv.page_table"), table);
    range("options.scratch", plain(scratch));
    range("the batch's sequences", plain(batch));
  };
  check("out", out);
  check("lse", lse);
  if (lse_floats > 0 && has_element_in(out, ranges.lse)) fail_overlap(name, "lse", name("out"));
  if (scratch.empty()) return;
  const auto refuse = [](const Text& input) {
    fail("options.scratch", "in the memory of " + input, "memory that the call uses for nothing else");
  };
  const auto tensor_in_scratch = [&](const char* input, const Elements& read) {
    if (read.tokens > 0 && has_element_in(read, plain(scratch))) refuse(name(input));
  };
  tensor_in_scratch("q", q);
  if (!pool) tensor_in_scratch("kv.k", keys);
  if (!pool) tensor_in_scratch("kv.v", values);
  if (meet(plain(scratch), plain(sequence.positions)) != 0) refuse(name("positions"));
  if (meet(plain(scratch), table) != 0) refuse(name("kv.page_table"));
  if (meet(plain(scratch), plain(batch)) != 0) refuse("the batch's sequences");
}

/// Fails if a sequence's outputs surely share memory with anything else that it uses. A few comparisons, where nothing lies between the
/// ends of anything else.
inline void check_overlap(const ArgumentName& name, const Sequence& sequence, const SequenceRanges& ranges,
                          std::span<const std::byte> scratch, std::span<const Sequence> batch) {
  const auto bytes_in = [](const void* data, std::size_t bytes) -> ByteRange {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    return {begin, begin + bytes};
  };
  const KvCacheView& kv = sequence.kv;
  const ByteRange sequences = bytes_in(batch.data(), batch.size_bytes());
  unsigned any = meet(ranges.out, ranges.q) | meet(ranges.out, ranges.kv.k) | meet(ranges.out, ranges.kv.v) |
                 meet(ranges.out, sequences);
  const bool pool = kv.storage == Storage::paged && kv.length > 0;
  if (pool || !sequence.lse.empty() || !sequence.positions.empty() || !scratch.empty()) {
    const ByteRange table =
        bytes_in(kv.page_table, pool ? static_cast<std::size_t>(kv.page_table_size) * sizeof(std::int32_t) : 0);
    const ByteRange room = bytes_in(scratch.data(), scratch.size());
    const auto meets = [&](const ByteRange& range) {
      return meet(range, ranges.q) | meet(range, ranges.kv.k) | meet(range, ranges.kv.v) | meet(range, table) |
             meet(range, ranges.positions) | meet(range, sequences);
    };
    any |= meet(ranges.out, table) | meet(ranges.out, ranges.positions) | meet(ranges.out, ranges.lse) |
           meet(ranges.out, room) | meets(ranges.lse) | meet(ranges.lse, room) | meets(room);
  }
  if (any != 0) check_meeting(name, sequence, ranges, scratch, batch);
}

/// The outputs, or LSE, of the sequences of a batch so far.
class BatchOutputs {
 public:
  static constexpr Index kLookBack = 16;

  /// Adds the next sequence's. Returns the number of one before that lies between the same ends as it, from `after` on; or −1.
  Index add(const ByteRange& range) noexcept {
    range_[count_ % kLookBack] = range;
    ++count_;
    if (range.begin == range.end) return -1;
    if (range.begin >= end_) {  // as outputs usually lie: behind all others
      end_ = range.end;
      if (begin_ > range.begin) begin_ = range.begin;
      return -1;
    }
    if (range.end <= begin_) {
      begin_ = range.begin;
      return -1;
    }
    if (range.begin < begin_) begin_ = range.begin;
    if (range.end > end_) end_ = range.end;
    return next(count_ - 1);
  }
  /// The one before number `before` that the last one added meets; or −1.
  Index next(Index before) const noexcept {
    const Index last = count_ - 1;
    for (Index i = before - 1; i >= 0 && i > last - kLookBack; --i)
      if (meet(range_[i % kLookBack], range_[last % kLookBack]) != 0) return i;
    return -1;
  }

 private:
  ByteRange range_[kLookBack];
  Index count_ = 0;
  std::uintptr_t begin_ = ~std::uintptr_t{0};
  std::uintptr_t end_ = 0;
};

}  // namespace gqa::detail::inline GQA_ABI
