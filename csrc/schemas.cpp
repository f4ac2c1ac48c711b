// The schemas, and the keys that need no more than checks and outputs: Meta, and CUDA in a build without it.
#include "backend.h"

namespace srmsnorm {
namespace {

// Shapes and strides are all that a Meta tensor has.
struct Meta {
  template <class Tensors>
  static void run(const Tensors&) {}
};

}  // namespace

SRMSNORM_SCHEMAS(m) {
  m.def("srms_norm(Tensor input, Tensor? residual=None, *, float? eps=None) -> Tensor");
  m.def("add_srms_norm(Tensor input, Tensor residual, *, float? eps=None) -> (Tensor, Tensor)");
  m.def("add_srms_norm_(Tensor(a!) input, Tensor(b!) residual, *, float? eps=None) -> ()");
  // The operators that gradients go through: the public ones call them where a gradient may be asked for.
  m.def("_srms_norm(Tensor input, Tensor? residual, float? eps) -> (Tensor output, Tensor rstd)");
  m.def("_add_srms_norm(Tensor input, Tensor residual, float? eps) -> (Tensor output, Tensor sum, Tensor rstd)");
  m.def("_srms_norm_backward_input(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None) -> Tensor");
  m.def(
      "_srms_norm_backward_residual(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None) -> Tensor");
  m.def(
      "_srms_norm_backward_pair(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None) -> "
      "(Tensor grad_input, Tensor grad_residual)");
  m.def(
      "gated_srms_norm(Tensor input, Tensor gate, *, str? activation=None, bool norm_before_gate=True, "
      "float? eps=None) -> Tensor");
  m.def(
      "_gated_srms_norm(Tensor input, Tensor gate, *, str? activation=None, bool norm_before_gate=True, "
      "float? eps=None) -> (Tensor output, Tensor rstd)");
  m.def(
      "_gated_srms_norm_backward(Tensor grad_output, Tensor input, Tensor gate, Tensor rstd, *, "
      "str? activation=None, bool norm_before_gate=True) -> (Tensor grad_input, Tensor grad_gate)");
  m.def(
      "_gated_srms_norm_backward_input(Tensor grad_output, Tensor input, Tensor gate, Tensor rstd, *, "
      "str? activation=None, bool norm_before_gate=True) -> Tensor");
  m.def(
      "_gated_srms_norm_backward_gate(Tensor grad_output, Tensor input, Tensor gate, Tensor rstd, *, "
      "str? activation=None, bool norm_before_gate=True) -> Tensor");
  // For programs that were written before the two above; composite, so that tracers see those.
  m.def(
      "_srms_norm_backward(Tensor grad_output, Tensor output, Tensor rstd, Tensor? grad_sum=None, *, "
      "ScalarType? dtype=None) -> Tensor",
      &_srms_norm_backward);
}

// PyTorch's fallbacks for these keys take an operator in place to return its operand. The kernels look for themselves.
SRMSNORM_KERNELS(Negative, m) { m.impl("add_srms_norm_", torch::CppFunction::makeFallthrough()); }
SRMSNORM_KERNELS(Conjugate, m) { m.impl("add_srms_norm_", torch::CppFunction::makeFallthrough()); }
SRMSNORM_KERNELS(ZeroTensor, m) { m.impl("add_srms_norm_", torch::CppFunction::makeFallthrough()); }

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
