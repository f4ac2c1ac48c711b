// The Python face, in the stable ABI: finds the operators through the dispatcher, holds no logic.
#include "torch_python.h"
// first: it chooses the ABI
#include "cuda/plan.h"
#include "face.h"
#include "ops.h"

namespace srmsnorm {

static PyObject* to_python(const LaunchPlan& plan) {
  PyObject* dict = PyDict_New();
  auto set = [&](const char* key, PyObject* value) {
    PyDict_SetItemString(dict, key, value);
    Py_DecRef(value);
  };
  set("vector_elements", PyLong_FromLong(plan.vector_elements));
  set("threads_per_row", PyLong_FromLong(plan.threads_per_row));
  set("rows_per_block", PyLong_FromLong(plan.rows_per_block));
  set("vectors", PyLong_FromLong(plan.vectors));
  set("cluster", PyLong_FromLong(plan.cluster));
  set("twice", PyBool_FromLong(plan.twice));
  set("shifted", PyBool_FromLong(plan.shifted));
  set("edges", PyBool_FromLong(plan.edges));
  return dict;
}

namespace {

int size_of(at::ScalarType dtype) { return static_cast<int>(c10::elementSize(dtype)); }

LaunchPlan launch_plan(int64_t dim, at::ScalarType dtype, MaybeDtype residual_dtype, bool backward, bool grad_sum,
                       bool aligned, bool in_phase, int max_cluster) {
  TORCH_CHECK(dim > 0, "srmsnorm: dim must be at least 1, got ", dim);
  TORCH_CHECK(dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat || dtype == at::kDouble,
              "srmsnorm: dtype must be float16, bfloat16, float32 or float64, got ", dtype);
  TORCH_CHECK(!residual_dtype || *residual_dtype == dtype || (size_of(dtype) == 2 && *residual_dtype == at::kFloat),
              "srmsnorm: residual_dtype must be dtype, or float32 beside a 16-bit one, got ", *residual_dtype,
              " beside ", dtype);
  TORCH_CHECK(max_cluster >= 1 && max_cluster <= kMaxCluster, "srmsnorm: max_cluster must be from 1 to ", kMaxCluster,
              ", got ", max_cluster);
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

template <class Function, class Signature>
PyMethodDef method() {
  auto function = reinterpret_cast<void (*)()>(&Face<Function, Signature>::function);
  return {Function::kName, reinterpret_cast<PyCFunction>(function), METH_FASTCALL, nullptr};
}

#define SRMSNORM_METHOD(name, schema, ...) method<call_##name, __VA_ARGS__>(),
PyMethodDef methods[] = {SRMSNORM_PUBLIC_OPERATORS(SRMSNORM_METHOD) method<Plan, decltype(launch_plan)>(), {}};

PyModuleDef module{PyModuleDef_HEAD_INIT, "_C", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace srmsnorm

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&srmsnorm::module); }
