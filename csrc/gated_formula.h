// The gated norm in PyTorch's operators, in the accumulation type: what devices without a kernel compute, and what
// derivatives of the kernels are made of.
#pragma once
#include <tuple>

#include "ops.h"

namespace srmsnorm {

// a and a' of a gate in the accumulation type.
struct Activated {
  Tensor value, slope;
};

Activated activated(const Tensor& gate, Activation activation);
Tensor curvature(const Tensor& gate, Activation activation);  // a''

// (output, rstd)
std::tuple<Tensor, Tensor> gated_formula(const Tensor& input, const Tensor& gate, double eps, Gating gating);

// (grad_input, grad_gate)
std::tuple<Tensor, Tensor> gated_backward_formula(const Tensor& grad_output, const Tensor& input, const Tensor& gate,
                                                  const Tensor& rstd, Gating gating);

}  // namespace srmsnorm
