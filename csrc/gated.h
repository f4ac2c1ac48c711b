// The gated norm: its checks and outputs, and its definition in PyTorch's operators.
#pragma once
#include <tuple>

#include "ops.h"

namespace srmsnorm {

struct GatedGradients {
  bool input = false, gate = false;
};

Gating check_gating(MaybeName activation, bool norm_first);

// Each of all that an operator is given, as ops.h says of its own.
GatedOptions check(const Tensor& input, const Tensor& gate, MaybeName activation, bool norm_first, MaybeDouble eps);
GatedOptions check(const Tensor& grad_output, const Tensor& input, const Tensor& gate, const Tensor& rstd,
                   MaybeName activation, bool norm_first);
GatedForwardTensors prepare_gated(ForwardOutputs outputs, const Tensor& input, const Tensor& gate, MaybeName activation,
                                  bool norm_first, MaybeDouble eps);
GatedBackwardTensors prepare_gated_backward(GatedGradients gradients, const Tensor& grad_output, const Tensor& input,
                                            const Tensor& gate, const Tensor& rstd, MaybeName activation,
                                            bool norm_first);

// ---- in the accumulation type: what devices without a kernel compute, and what derivatives of the kernels are made of

// a and a' of a gate in the accumulation type.
struct Activated {
  Tensor value, slope;
};

Activated activated(const Tensor& gate, Activation activation);
Tensor curvature(const Tensor& gate, Activation activation);  // a''

void run_formula(const GatedForwardTensors& t);
void run_formula(const GatedBackwardTensors& t);

// (grad_input, grad_gate)
std::tuple<Tensor, Tensor> gated_backward_formula(const Tensor& grad_output, const Tensor& input, const Tensor& gate,
                                                  const Tensor& rstd, Gating gating);

}  // namespace srmsnorm
