// The Python face, in the stable ABI: finds the operators through the dispatcher, holds no logic.
#include "torch_python.h"
// first: it chooses the ABI
#include "face.h"
#include "launch_plan.h"
#include "ops.h"

namespace srmsnorm {

static void set(PyObject* dict, const char* key, PyObject* value) {
  PyDict_SetItemString(dict, key, value);
  Py_DecRef(value);
}

static PyObject* to_python(const LaunchPlan& plan) {
  PyObject* dict = PyDict_New();
  plan.each([&]<class T>(const char* key, T value) {
    set(dict, key, std::is_same_v<T, bool> ? PyBool_FromLong(value) : PyLong_FromLong(value));
  });
  return dict;
}

// Integers and flags by name.
struct NamedNumbers {
  c10::impl::GenericDict values;
};

static PyObject* to_python(const NamedNumbers& numbers) {
  PyObject* dict = PyDict_New();
  for (const auto& entry : numbers.values) {
    const auto& value = entry.value();
    set(dict, entry.key().toStringRef().c_str(),
        value.isBool() ? PyBool_FromLong(value.toBool()) : PyLong_FromLongLong(value.toInt()));
  }
  return dict;
}

// The scale of a quantised call as Python has it: of the operator's three arguments one, or none.
struct Scale {
  MaybeTensor tensor;
  MaybeDouble value;
  MaybeName name;
};

template <>
struct FromPython<Scale> {
  static constexpr auto kName = "a Tensor, a number, a str";
  static constexpr bool kOrNone = true;

  using OrTensor = FromPython<MaybeTensor>;
  using OrName = FromPython<MaybeName>;
  using OrValue = FromPython<MaybeDouble>;

  static bool holds(PyObject* object) {
    return OrTensor::holds(object) || OrName::holds(object) || OrValue::holds(object);
  }
  static Scale of(PyObject* object) {  // a tensor passes for a number, too
    if (OrTensor::holds(object)) return {.tensor = OrTensor::of(object)};
    if (OrName::holds(object)) return {.name = OrName::of(object)};
    return {.value = OrValue::of(object)};
  }
};

namespace {

int size_of(at::ScalarType dtype) { return static_cast<int>(c10::elementSize(dtype)); }

LaunchPlan launch_plan(int64_t dim, at::ScalarType dtype, MaybeDtype residual_dtype, bool backward, bool grad_sum,
                       bool aligned, bool in_phase, int max_cluster) {
  check_dim(dim);
  TORCH_CHECK(dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat || dtype == at::kDouble,
              "srmsnorm: dtype must be float16, bfloat16, float32 or float64, got ", dtype);
  TORCH_CHECK(!residual_dtype || *residual_dtype == dtype || (size_of(dtype) == 2 && *residual_dtype == at::kFloat),
              "srmsnorm: residual_dtype must be dtype, or float32 beside a 16-bit one, got ", *residual_dtype,
              " beside ", dtype);
  check_cluster(max_cluster, "max_cluster");
  int size = size_of(dtype), beside = size_of(residual_dtype.value_or(dtype));
  ForwardOperands<int> forward_sizes{.input = size, .residual = residual_dtype ? beside : 0};
  BackwardOperands<int> backward_sizes{.grad_output = size, .output = size, .grad_sum = grad_sum ? beside : 0};
  auto chunks = backward ? chunks_of(backward_sizes) : chunks_of(forward_sizes);
  auto alignment = !in_phase ? Alignment::Any : aligned ? Alignment::Whole : Alignment::InPhase;
  Gpu gpu;
  gpu.largest_cluster = max_cluster;
  return plan_launch(dim, size, chunks, alignment, gpu);
}

struct Plan {
  static constexpr auto kName = "_launch_plan";
  template <class... Args>
  static LaunchPlan run(const Args&... args) {
    return launch_plan(args...);
  }
};

// The operator of that name, whatever mode is on: modes take calls without tensors too.
struct PlanOfOperator {
  static constexpr auto kName = "launch_plan";
  using Signature = NamedNumbers(c10::string_view, int64_t, at::ScalarType, MaybeDtype, MaybeDtype, MaybeDtype, bool,
                                 bool, bool, MaybeInt, MaybeInt, std::optional<std::vector<int64_t>>);
  template <class... Args>
  static NamedNumbers run(const c10::string_view& name, const Args&... args) {
    c10::impl::ExcludeDispatchKeyGuard no_modes(
        c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
    torch::jit::Stack stack{std::string(name), args...};
    c10::Dispatcher::singleton().findSchemaOrThrow("srmsnorm::_launch_plan", "").callBoxed(&stack);
    return {stack.at(0).toGenericDict()};
  }
};

// By name, as some operators have the names of the functions around them.
#define SRMSNORM_CALL(name, schema, ...)   \
  struct call_##name {                     \
    static constexpr auto kName = #name;   \
    template <class... Args>               \
    static auto run(const Args&... args) { \
      return op::name().call(args...);     \
    }                                      \
  };
SRMSNORM_PUBLIC_OPERATORS(SRMSNORM_CALL)

// A quantised operator, whose scale is one argument, and is returned as it is where it is a tensor.
template <class Operator, class Signature>
struct Quantize;

template <class Operator, class Result, class Input, class Residual, class Tensor, class Dtype, class Value, class Name,
          class... Rest>
struct Quantize<Operator, Result(Input, Residual, Tensor, Dtype, Value, Name, Rest...)> {
  static constexpr auto kName = Operator::kName;
  using Signature = Result(Input, Residual, Scale, Dtype, Rest...);
  static Result run(Input input, Residual residual, const Scale& scale, Dtype dtype, const Rest&... rest) {
    auto results = Operator::run(input, residual, scale.tensor, dtype, scale.value, scale.name, rest...);
    if (scale.tensor) std::get<1>(results) = *scale.tensor;
    return results;
  }
};

template <class Function, class Signature>
PyMethodDef method() {
  auto function = reinterpret_cast<void (*)()>(&Face<Function, Signature>::function);
  return {Function::kName, reinterpret_cast<PyCFunction>(function), METH_FASTCALL, nullptr};
}

template <class Operator, class Signature>
PyMethodDef quantizing() {
  using Function = Quantize<Operator, Signature>;
  return method<Function, typename Function::Signature>();
}

#define SRMSNORM_METHOD(name, schema, ...) method<call_##name, __VA_ARGS__>(),
#define SRMSNORM_QUANTIZING(name, schema, ...) quantizing<call_##name, __VA_ARGS__>(),
PyMethodDef methods[] = {SRMSNORM_UNQUANTIZED_OPERATORS(SRMSNORM_METHOD, SRMSNORM_NO_ROW) SRMSNORM_QUANTIZED_OPERATORS(
                             SRMSNORM_QUANTIZING, SRMSNORM_NO_ROW) method<Plan, decltype(launch_plan)>(),
                         method<PlanOfOperator, PlanOfOperator::Signature>(),
                         {}};

PyModuleDef module{PyModuleDef_HEAD_INIT, "_C", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace srmsnorm

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&srmsnorm::module); }
