// SPDX-License-Identifier: Apache-2.0
#include "arrays.hpp"

#include <nanobind/stl/string.h>

#include <algorithm>

namespace gqa::python {

void fail(const std::string& argument, const std::string& value, const std::string& expected) {
  throw ArgumentError("gqa: " + argument + " is " + value + "; expected " + expected);
}

std::string text(nb::handle object, const std::string& argument, const std::string& expected) {
  std::string value;
  if (!nb::isinstance<nb::str>(object) || !nb::try_cast<std::string>(object, value)) {
    PyErr_Clear();
    fail(argument, nb::cast<std::string>(nb::repr(object)), expected);
  }
  return value;
}

namespace {

/// str(object), also where that is an attribute that has not been looked up yet.
std::string text_of(nb::handle object) {
  const nb::object made = nb::steal(PyObject_Str(object.ptr()));
  if (!made.is_valid()) throw nb::python_error();
  return text(made, "str()", "characters of Unicode");
}

std::string called(nb::handle object) {
  const std::string name = text_of(nb::object(object.type().attr("__name__")));
  return name == "NoneType" ? "None" : "a " + name;
}

std::string dtype_name(nb::dlpack::dtype type) {
  using Code = nb::dlpack::dtype_code;
  const std::string bits = std::to_string(static_cast<int>(type.bits));
  switch (static_cast<Code>(type.code)) {
    case Code::Int: return "int" + bits;
    case Code::UInt: return "uint" + bits;
    case Code::Float: return "float" + bits;
    case Code::Bfloat: return "bfloat" + bits;
    case Code::Complex: return "complex" + bits;
    case Code::Bool: return "bool";
    case Code{10}:  // which older versions of nanobind have no names for
      return "float8_e4m3fn";
    case Code{12}: return "float8_e5m2";
    default: return "of a type with the DLPack code " + std::to_string(static_cast<int>(type.code));
  }
}

bool is_true(nb::handle object) {
  const int truth = PyObject_IsTrue(object.ptr());
  if (truth < 0) throw nb::python_error();
  return truth != 0;
}

/// A NumPy array of a type that NumPy has from ml_dtypes, and cannot hand on: the same memory as integers, and the type's name.
nb::object as_integers(nb::handle object, std::string& dtype) {
  if (!nb::hasattr(object, "dtype") || !nb::hasattr(object, "view")) return nb::none();
  const nb::object type = object.attr("dtype");
  if (!nb::hasattr(type, "name") || !nb::hasattr(type, "itemsize")) return nb::none();
  const std::string name = text_of(nb::object(type.attr("name")));
  if (name != "bfloat16" && name.rfind("float8_", 0) != 0) return nb::none();
  if (nb::hasattr(type, "isnative") && !is_true(type.attr("isnative"))) return nb::none();
  dtype = name;
  return object.attr("view")(name == "bfloat16" ? "uint16" : "uint8");
}

template <class T>
bool take(nb::handle object, T& array) {
  const bool taken = nb::try_cast<T>(object, array, false);
  if (!taken) PyErr_Clear();  // what its __dlpack__ raised, perhaps
  return taken;
}

bool is_numpy(nb::handle object) {
  static PyObject* const type =
      nb::module_::import_("numpy").attr("ndarray").ptr();  // which lives as long as Python does
  return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) == type;
}

/// Whether a tensor is a part of a graph that gradients go through: they would not go through a call.
bool requires_gradients(nb::handle object) {
  return nb::hasattr(object, "requires_grad") && is_true(nb::object(object.attr("requires_grad")));
}

/// Whether a tensor's numbers are those of its memory with the other sign, which DLPack does not say.
bool is_negated(nb::handle object) { return nb::hasattr(object, "is_neg") && is_true(object.attr("is_neg")()); }

/// What has nothing but the buffer protocol, as a memoryview: that has strides where the object gives none (ctypes).
nb::object as_memoryview(nb::handle object) {
  if (nb::hasattr(object, "__dlpack__") || PyObject_CheckBuffer(object.ptr()) == 0)
    return nb::borrow<nb::object>(object);
  nb::object view = nb::steal(PyMemoryView_FromObject(object.ptr()));
  if (!view.is_valid()) throw nb::python_error();
  return view;
}

/// Of an object that is no array, or one that another device has.
std::string why_not(nb::handle object) {
  if (nb::hasattr(object, "device") && nb::hasattr(object, "shape")) {
    const std::string device = text_of(nb::object(object.attr("device")));
    if (device != "cpu") return "an array on " + device;
  }
  if (nb::hasattr(object, "dtype")) return "an array of " + text_of(nb::object(object.attr("dtype")));
  return called(object);
}

}  // namespace

Array::Array(nb::handle object, const std::string& name, bool written) : name_(name) {
  const char* const expected = "an array on the CPU: NumPy's, or one that has __dlpack__";
  if (nb::isinstance<nb::str>(object) || nb::isinstance<nb::bytes>(object) || object.is_none())
    fail(name, called(object), expected);
  // Attributes that are not there take longer to ask for than the array itself: the questions are left out where the answer is known.
  nb::object given = nb::borrow<nb::object>(object);
  if (!is_numpy(object)) {
    if (requires_gradients(object))
      fail(name, "a tensor that requires gradients", "tensor.detach(): calls have no gradients");
    if (is_negated(object)) fail(name, "a tensor with the negative bit", "tensor.resolve_neg()");
    given = as_memoryview(object);
  }
  const auto take_from = [&](nb::handle source) { return written ? take(source, written_) : take(source, read_); };
  if (!take_from(given)) {
    nb::ndarray<nb::ro> readable;
    keep_ = as_integers(object, dtype_);
    const nb::handle source = keep_.is_none() ? given : nb::handle(keep_);
    if (keep_.is_none() || !take_from(source)) {
      if (written && take(source, readable)) fail(name, "read-only", "an array that can be written");
      fail(name, why_not(object), expected);
    }
  }
  const auto describe = [&](const auto& array) {
    if (array.device_type() != nb::device::cpu::value) fail(name, "an array on another device", expected);
    if (array.dtype().lanes != 1 || array.dtype().bits % 8 != 0)
      fail(name, dtype_name(array.dtype()), "whole elements");
    data_ = const_cast<void*>(static_cast<const void*>(array.data()));
    bytes_ = array.dtype().bits / 8;
    if (dtype_.empty()) dtype_ = dtype_name(array.dtype());
    for (std::size_t axis = 0; axis < array.ndim(); ++axis) {
      shape_.push_back(static_cast<Index>(array.shape(axis)));
      strides_.push_back(static_cast<Index>(array.stride(axis)));
    }
  };
  if (written) describe(written_);
  else describe(read_);
  if (std::find(shape_.begin(), shape_.end(), 0) != shape_.end()) {  // strides say nothing then, and may be anything
    Index step = 1;
    for (std::size_t axis = shape_.size(); axis-- > 0; step *= shape_[axis]) strides_[axis] = step;
  }
}

std::string Array::shape_text() const {
  std::string text = "(";
  for (std::size_t i = 0; i < shape_.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape_[i]);
  return text + (shape_.size() == 1 ? ",)" : ")");
}

std::pair<std::uintptr_t, std::uintptr_t> Array::reach() const {
  const auto at = reinterpret_cast<std::uintptr_t>(data_);
  std::uintptr_t first = at, last = at;
  for (Index axis = 0; axis < ndim(); ++axis) {
    if (extent(axis) == 0) return {at, at};
    const Index steps = (extent(axis) - 1) * stride(axis) * bytes_;
    (steps < 0 ? first : last) += static_cast<std::uintptr_t>(steps);
  }
  return {first, last + static_cast<std::uintptr_t>(bytes_)};
}

bool Array::is_element() const { return dtype_ == "float32" || dtype_ == "bfloat16" || dtype_ == "float16"; }

ElementType Array::element() const {
  if (!is_element()) fail(name_, dtype_, "float32, bfloat16 or float16");
  return dtype_ == "float32" ? ElementType::f32 : dtype_ == "bfloat16" ? ElementType::bf16 : ElementType::f16;
}

void Array::expect_axes(Index count, const char* axes) const {
  if (ndim() != count) fail(name_ + ".shape", shape_text(), axes);
}

void Array::expect_dtype(const std::string& dtype) const {
  if (dtype_ != dtype) fail(name_, dtype_, dtype);
}

ConstTensorView tensor(const Array& array, const char* axes) {
  const ElementType type = array.element();
  array.expect_axes(3, axes);
  return {array.data(),    type,
          array.extent(0), array.extent(1),
          array.extent(2), {array.stride(0), array.stride(1), array.stride(2)}};
}

TensorView output(const Array& array, const char* axes) {
  const ElementType type = array.element();
  array.expect_axes(3, axes);
  return {array.data(),    type,
          array.extent(0), array.extent(1),
          array.extent(2), {array.stride(0), array.stride(1), array.stride(2)}};
}

namespace {

nb::object made(nb::handle like, const std::vector<Index>& shape, const char* dtype, const std::string& of_like) {
  nb::list extents;
  for (const Index extent : shape) extents.append(extent);
  const nb::tuple as_tuple(extents);
  if (nb::hasattr(like, "new_empty")) {
    if (dtype == nullptr) return like.attr("new_empty")(as_tuple);
    return like.attr("new_empty")(as_tuple, nb::arg("dtype") = nb::module_::import_("torch").attr(dtype));
  }
  const nb::object numpy = nb::module_::import_("numpy");
  if (dtype != nullptr) return numpy.attr("empty")(as_tuple, dtype);
  if (nb::isinstance(like, numpy.attr("ndarray"))) return numpy.attr("empty")(as_tuple, like.attr("dtype"));
  if (of_like == "bfloat16") return numpy.attr("empty")(as_tuple, nb::module_::import_("ml_dtypes").attr("bfloat16"));
  return numpy.attr("empty")(as_tuple, of_like.c_str());
}

template <class T>
std::vector<T> numbers(nb::handle object, const std::string& name, const char* expected) {
  std::vector<T> result;
  if (nb::isinstance<nb::str>(object) || !nb::hasattr(object, "__iter__")) fail(name, called(object), expected);
  for (const nb::handle item : nb::borrow<nb::object>(object)) {
    T value{};
    const nb::object plain = nb::hasattr(item, "item") ? item.attr("item")() : nb::borrow<nb::object>(item);
    if (!nb::try_cast<T>(plain, value))
      fail(name + "[" + std::to_string(result.size()) + "]", nb::cast<std::string>(nb::repr(plain)), expected);
    result.push_back(value);
    if (result.size() % 65536 == 0 && PyErr_CheckSignals() != 0) throw nb::python_error();  // it may not end
  }
  return result;
}

}  // namespace

nb::object new_array(nb::handle like, const std::string& dtype, const std::vector<Index>& shape) {
  return made(like, shape, nullptr, dtype);
}
nb::object new_float_array(nb::handle like, const std::vector<Index>& shape) {
  return made(like, shape, "float32", "");
}

std::vector<float> floats(nb::handle object, const std::string& name) {
  return numbers<float>(object, name, "a sequence of numbers");
}
std::vector<Index> indices(nb::handle object, const std::string& name) {
  return numbers<Index>(object, name, "a sequence of integers");
}

}  // namespace gqa::python
