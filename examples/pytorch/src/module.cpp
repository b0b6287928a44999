// SPDX-License-Identifier: Apache-2.0
/// @file
/// The Python module gqa_torch._C: importing it registers the operators and classes of the other units.
#include <Python.h>

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
