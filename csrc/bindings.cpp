// The pybind11 face: finds the operators through the dispatcher, holds no logic.
#include <torch/csrc/utils/pybind.h>

#include "cuda/plan.h"
#include "ops.h"

namespace py = pybind11;

namespace srmsnorm {
namespace {

template <auto op, class Signature>
struct Face;

template <auto op, class Result, class... Args>
struct Face<op, Result(Args...)> {
  static Result call(Args... args) {
    py::gil_scoped_release release;
    return op().call(args...);
  }
};

py::dict build_info() {
  py::dict info;
  info["torch"] = SRMSNORM_TORCH_VERSION;
#ifdef SRMSNORM_CUDA_VERSION
  info["cuda"] = SRMSNORM_CUDA_VERSION;
#else
  info["cuda"] = py::none();
#endif
  info["architectures"] = SRMSNORM_ARCHS;
#ifdef NDEBUG
  info["debug"] = false;
#else
  info["debug"] = true;
#endif
  return info;
}

int size_of(at::ScalarType dtype) { return static_cast<int>(c10::elementSize(dtype)); }

py::dict launch_plan(int64_t dim, at::ScalarType dtype, std::optional<at::ScalarType> residual_dtype, bool backward,
                     bool grad_sum, bool aligned, bool in_phase, int max_cluster) {
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
  LaunchPlan plan = plan_launch(dim, size, chunks, alignment, gpu);
  py::dict dict;
  dict["vector_elements"] = plan.vector_elements;
  dict["threads_per_row"] = plan.threads_per_row;
  dict["rows_per_block"] = plan.rows_per_block;
  dict["vectors"] = plan.vectors;
  dict["cluster"] = plan.cluster;
  dict["twice"] = plan.twice;
  dict["shifted"] = plan.shifted;
  dict["edges"] = plan.edges;
  return dict;
}

}  // namespace
}  // namespace srmsnorm

PYBIND11_MODULE(_C, m) {
  using namespace srmsnorm;
#define SRMSNORM_FACE(name, ...) m.def(#name, &BySignature<op::name, Face>::call);
  SRMSNORM_PUBLIC_OPERATORS(SRMSNORM_FACE)
  m.def("build_info", &build_info);
  m.def("_launch_plan", &launch_plan);
}
