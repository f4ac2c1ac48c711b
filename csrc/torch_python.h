// Of libtorch_python what the Python face needs, declared here: torch's headers want all of CPython, and these only its
// stable ABI, so that one build serves every Python. tests/test_python_face.py holds them against torch's.
#pragma once
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000  // Python 3.10
#endif
#define PY_SSIZE_T_CLEAN
#include <ATen/core/Tensor.h>
#include <Python.h>
#include <c10/core/ScalarType.h>

#include <exception>

// The beginnings of torch's objects THPVariable and THPDtype.
namespace srmsnorm {
struct TensorObject {
  PyObject_HEAD at::Tensor tensor;
};
struct DtypeObject {
  PyObject_HEAD at::ScalarType dtype;
};
}  // namespace srmsnorm

extern PyObject* THPVariableClass;
extern PyObject* ParameterClass;
extern PyTypeObject THPDtypeType;
PyObject* THPVariable_Wrap(const at::TensorBase& tensor);
namespace torch {
void translate_exception_to_python(const std::exception_ptr& error);
}
