// A C++ function as a Python function of as many positional arguments: what each is in Python, and the GIL let go.
#pragma once
#include <c10/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "torch_python.h"

namespace srmsnorm {

struct PythonError {};  // Python has it already

// ---- an argument: what it is called in messages, whether an object is one, and which

template <class T>
struct FromPython;

template <>
struct FromPython<at::Tensor> {
  static constexpr auto kName = "a Tensor";

  static bool holds(PyObject* object) {
    auto type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type == THPVariableClass || type == ParameterClass) return true;
    int is_one = PyObject_IsInstance(object, THPVariableClass);
    if (is_one < 0) throw PythonError();
    return is_one;
  }
  static const at::Tensor& of(PyObject* object) { return reinterpret_cast<TensorObject*>(object)->tensor; }
};

template <>
struct FromPython<at::ScalarType> {
  static constexpr auto kName = "a torch.dtype";

  static bool holds(PyObject* object) { return Py_TYPE(object) == &THPDtypeType; }
  static at::ScalarType of(PyObject* object) { return reinterpret_cast<DtypeObject*>(object)->dtype; }
};

template <>
struct FromPython<bool> {
  static constexpr auto kName = "a bool";

  static bool holds(PyObject* object) { return PyNumber_Check(object); }
  static bool of(PyObject* object) {
    int is_true = PyObject_IsTrue(object);
    if (is_true < 0) throw PythonError();
    return is_true;
  }
};

template <class T>
T without_error(T value) {
  if (PyErr_Occurred()) throw PythonError();
  return value;
}

template <>
struct FromPython<double> {
  static constexpr auto kName = "a number";

  static bool holds(PyObject* object) { return PyNumber_Check(object); }
  static double of(PyObject* object) { return without_error(PyFloat_AsDouble(object)); }
};

template <>
struct FromPython<int64_t> {
  static constexpr auto kName = "an int of 64 bits";

  static bool holds(PyObject* object) {
    int overflow = 1;
    if (PyIndex_Check(object)) PyLong_AsLongLongAndOverflow(object, &overflow);
    return without_error(overflow) == 0;
  }
  static int64_t of(PyObject* object) { return PyLong_AsLongLong(object); }
};

template <>
struct FromPython<int> : FromPython<int64_t> {
  static constexpr auto kName = "an int of 32 bits";

  static bool holds(PyObject* object) {
    return FromPython<int64_t>::holds(object) && std::in_range<int>(FromPython<int64_t>::of(object));
  }
};

template <>
struct FromPython<c10::string_view> {
  static constexpr auto kName = "a str";

  static bool holds(PyObject* object) { return PyUnicode_Check(object); }
  static c10::string_view of(PyObject* object) {
    Py_ssize_t size = 0;
    auto text = PyUnicode_AsUTF8AndSize(object, &size);  // lives as long as the object
    if (!text) throw PythonError();
    return {text, static_cast<size_t>(size)};
  }
};

template <>
struct FromPython<std::vector<int64_t>> {
  static constexpr auto kName = "a tuple of ints of 64 bits";

  static bool holds(PyObject* object) {
    bool all = PyTuple_Check(object);
    for (Py_ssize_t i = 0; all && i < PyTuple_Size(object); i++)
      all = FromPython<int64_t>::holds(PyTuple_GetItem(object, i));
    return all;
  }
  static std::vector<int64_t> of(PyObject* object) {
    std::vector<int64_t> numbers(PyTuple_Size(object));
    for (size_t i = 0; i < numbers.size(); i++) numbers[i] = FromPython<int64_t>::of(PyTuple_GetItem(object, i));
    return numbers;
  }
};

template <class T>
struct FromPython<std::optional<T>> {
  static constexpr auto kName = FromPython<T>::kName;
  static constexpr bool kOrNone = true;

  static bool holds(PyObject* object) { return object == Py_None || FromPython<T>::holds(object); }
  static std::optional<T> of(PyObject* object) {
    return object == Py_None ? std::optional<T>() : FromPython<T>::of(object);
  }
};

inline std::string type_name(PyObject* object) {
  PyObject* name = PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object)), "__name__");
  const char* text = name ? PyUnicode_AsUTF8AndSize(name, nullptr) : nullptr;
  std::string copy = text ? text : "an object";
  if (!text) PyErr_Clear();
  Py_DecRef(name);
  return copy;
}

template <class T>
decltype(auto) from_python(const char* function, size_t place, PyObject* object) {
  using From = FromPython<std::decay_t<T>>;
  constexpr auto or_none = requires { From::kOrNone; } ? " or None" : "";
  TORCH_CHECK_TYPE(From::holds(object), "srmsnorm: argument ", place + 1, " of ", function, " must be ", From::kName,
                   or_none, ", got ", type_name(object));
  return From::of(object);
}

// ---- a result

inline PyObject* to_python(const at::Tensor& tensor) { return THPVariable_Wrap(tensor); }

template <class... Results>
PyObject* to_python(const std::tuple<Results...>& results) {
  PyObject* tuple = PyTuple_New(sizeof...(Results));
  if (!tuple) return nullptr;
  bool complete = true;
  Py_ssize_t place = 0;
  auto add = [&](const auto& result) {
    PyObject* object = to_python(result);
    complete = complete && object;
    PyTuple_SetItem(tuple, place++, object);
  };
  std::apply([&](const auto&... result) { (add(result), ...); }, results);
  if (complete) return tuple;
  Py_DecRef(tuple);
  return nullptr;
}

// ---- a call

struct WithoutGil {
  PyThreadState* state = PyEval_SaveThread();
  ~WithoutGil() { PyEval_RestoreThread(state); }
};

// function: a class with a call of that signature.
template <class Function, class Signature>
struct Face;

template <class Function, class Result, class... Args>
struct Face<Function, Result(Args...)> {
  template <size_t... i>
  static PyObject* call(PyObject* const* objects, std::index_sequence<i...>) {
    std::tuple<decltype(from_python<Args>("", 0, nullptr))...> args{
        from_python<Args>(Function::kName, i, objects[i])...};
    auto run = [&] {
      WithoutGil released;
      return Function::run(std::get<i>(args)...);
    };
    if constexpr (std::is_void_v<Result>) {
      run();
      Py_IncRef(Py_None);
      return Py_None;
    } else {
      return to_python(run());
    }
  }

  static PyObject* function(PyObject*, PyObject* const* objects, Py_ssize_t count) {
    try {
      TORCH_CHECK_TYPE(count == sizeof...(Args), "srmsnorm: ", Function::kName, " takes ", sizeof...(Args),
                       " arguments, got ", count);
      return call(objects, std::make_index_sequence<sizeof...(Args)>());
    } catch (const PythonError&) {
      return nullptr;
    } catch (...) {
      torch::translate_exception_to_python(std::current_exception());
      return nullptr;
    }
  }
};

}  // namespace srmsnorm
