// SPDX-License-Identifier: Apache-2.0
/// @file
/// Arrays of Python's: NumPy's, PyTorch's, and whatever else speaks DLPack or the buffer protocol, on the CPU. Never copied.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <gqa/gqa.hpp>
#include <string>
#include <utility>
#include <vector>

namespace gqa::python {

namespace nb = nanobind;

/// "gqa: `argument` is `value`; expected `expected`", as the library's own errors.
[[noreturn]] void fail(const std::string& argument, const std::string& value, const std::string& expected);

/// Memory of an array, which lives as long as this does.
class Array {
 public:
  /// @param name what errors call it
  /// @throws ArgumentError if it is no array of the CPU's, or is to be written and cannot be
  Array(nb::handle object, const std::string& name, bool written = false);

  void* data() const { return data_; }
  Index ndim() const { return static_cast<Index>(shape_.size()); }
  Index extent(Index axis) const { return shape_[static_cast<std::size_t>(axis)]; }
  /// In elements.
  Index stride(Index axis) const { return strides_[static_cast<std::size_t>(axis)]; }
  Index item_bytes() const { return bytes_; }
  /// Its lowest address, and the one behind its highest; equal if it has no elements.
  std::pair<std::uintptr_t, std::uintptr_t> reach() const;
  const std::string& name() const { return name_; }
  /// "float32", "bfloat16", …
  const std::string& dtype() const { return dtype_; }
  std::string shape_text() const;

  bool is_element() const;
  /// @throws ArgumentError unless elements are float32, bfloat16 or float16
  ElementType element() const;
  /// @throws ArgumentError unless it has so many axes; `axes` names them: "(tokens, query heads, head dim)"
  void expect_axes(Index count, const char* axes) const;
  /// @throws ArgumentError unless elements are of this type: "int32"
  void expect_dtype(const std::string& dtype) const;

 private:
  nb::object keep_;           // what nb::ndarray was made of, where that is not the object itself
  nb::ndarray<nb::ro> read_;  // one of the two holds the memory
  nb::ndarray<> written_;
  void* data_ = nullptr;
  Index bytes_ = 0;
  std::string name_, dtype_;
  std::vector<Index> shape_, strides_;
};

/// What a handle to a string says. @throws ArgumentError naming `argument` if it is none, or has lone surrogates
std::string text(nb::handle object, const std::string& argument, const std::string& expected);

/// n × heads × dim, as it lies. @param axes names these
ConstTensorView tensor(const Array& array, const char* axes);
TensorView output(const Array& array, const char* axes);

/// A new array like those that `like` is of: torch.Tensor.new_empty if it is a tensor, or else NumPy's, of the same element type.
/// @param dtype that of `like`, which is not asked again: a DLPack capsule can be taken once
nb::object new_array(nb::handle like, const std::string& dtype, const std::vector<Index>& shape);
/// A new array of f32.
nb::object new_float_array(nb::handle like, const std::vector<Index>& shape);

/// Numbers of any sequence or array, copied: parameters, not data.
std::vector<float> floats(nb::handle object, const std::string& name);
std::vector<Index> indices(nb::handle object, const std::string& name);

}  // namespace gqa::python
