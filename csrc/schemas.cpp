// The schemas, and the keys that need no more than checks and outputs: Meta, and CUDA in a build without it.
#include "backend.h"
#include "launch_plan.h"

namespace srmsnorm {
namespace {

// Shapes and strides are all that a Meta tensor has.
struct Meta {
  template <class Tensors>
  static void run(const Tensors& tensors) {
    answer_launch_question(tensors);
  }
};

}  // namespace

SRMSNORM_SCHEMAS(m) {
#define SRMSNORM_SCHEMA(name, schema, ...) m.def(#name schema);
  SRMSNORM_EVERY_OPERATOR(SRMSNORM_SCHEMA)
  // For programs that were written before the two above; composite, so that tracers see those.
  m.def(
      "_srms_norm_backward(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None, *, "
      "ScalarType? dtype=None) -> Tensor",
      &_srms_norm_backward);
#ifndef SRMSNORM_CUDA
  m.def("_gpu(int device) -> int[]", [](int64_t) -> std::vector<int64_t> {
    TORCH_CHECK(false, "srmsnorm: this build has no CUDA, and asks no GPU what it is");
  });
#endif
}

// PyTorch's fallbacks for these keys take an operator in place to return its operand. The kernels look for themselves.
static void look_for_themselves(torch::Library& m) {
  for (const char* name : {"add_srms_norm_", "add_srms_norm_quantized_"})
    m.impl(name, torch::CppFunction::makeFallthrough());
}

SRMSNORM_KERNELS(Negative, m) { look_for_themselves(m); }
SRMSNORM_KERNELS(Conjugate, m) { look_for_themselves(m); }
SRMSNORM_KERNELS(ZeroTensor, m) { look_for_themselves(m); }

SRMSNORM_KERNELS(Meta, m) { Kernels<Meta>::add_to(m); }

#ifndef SRMSNORM_CUDA
static void built_without_cuda(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
  TORCH_CHECK(
      false, op.schema().name(),
      ": got a CUDA tensor, but srmsnorm was built without CUDA; build it again with SRMSNORM_CUDA=1 and a CUDA "
      "toolkit: SRMSNORM_CUDA=1 pip install --no-build-isolation .");
}

SRMSNORM_KERNELS(CUDA, m) {
#define SRMSNORM_STUB(name, ...) m.impl(#name, torch::CppFunction::makeFromBoxedFunction<&built_without_cuda>());
  SRMSNORM_EVERY_OPERATOR(SRMSNORM_STUB)
}
#endif

}  // namespace srmsnorm
