// SPDX-License-Identifier: Apache-2.0
/// @file
/// Cycles of objects: a cache of a user's own class may hold its view, a pool its sequences, and those hold them.
#pragma once

#include <nanobind/nanobind.h>

namespace gqa::python {

namespace nb = nanobind;

/// Slots for a class whose objects hold one of Python's in a member, and drop it by a function.
template <class T, nb::object T::*Held, void (*LetGo)(T&)>
struct CycleSlots {
  static int visit(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (nb::inst_ready(self)) Py_VISIT((nb::inst_ptr<T>(self)->*Held).ptr());
    return 0;
  }
  static int clear(PyObject* self) {
    if (nb::inst_ready(self)) LetGo(*nb::inst_ptr<T>(self));
    return 0;
  }
  static inline PyType_Slot slots[] = {
      {Py_tp_traverse, reinterpret_cast<void*>(visit)}, {Py_tp_clear, reinterpret_cast<void*>(clear)}, {0, nullptr}};
};

}  // namespace gqa::python
