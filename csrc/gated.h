// The gated norm: its checks, and its definition in PyTorch's operators.
#pragma once
#include "listed.h"

namespace srmsnorm {

template <>
constexpr auto kListed<op::gated_srms_norm> = results(&GatedForwardTensors::output);
template <>
constexpr auto kListed<op::_gated_srms_norm> = results(&GatedForwardTensors::output, &GatedForwardTensors::rstd);
template <>
constexpr auto kListed<op::_gated_srms_norm_backward> =
    results(&GatedBackwardTensors::grad_input, &GatedBackwardTensors::grad_gate);
template <>
constexpr auto kListed<op::_gated_srms_norm_backward_input> = results(&GatedBackwardTensors::grad_input);
template <>
constexpr auto kListed<op::_gated_srms_norm_backward_gate> = results(&GatedBackwardTensors::grad_gate);

Gating check_gating(MaybeName activation, bool norm_first);

// As listed.h says.
void check(GatedForwardTensors& t, MaybeName activation, bool norm_first, MaybeDouble eps);
void check(GatedBackwardTensors& t, MaybeName activation, bool norm_first);
GatedForwardOperands<Tensor> formula(const GatedForwardTensors& t);
GatedBackwardOperands<Tensor> formula(const GatedBackwardTensors& t);

// ---- in the accumulation type: what devices without a kernel compute, and what derivatives of the kernels are made of

// a and a' of a gate in the accumulation type.
struct Activated {
  Tensor value, slope;
};

Activated activated(const Tensor& gate, Activation activation);
Tensor curvature(const Tensor& gate, Activation activation);  // a''

}  // namespace srmsnorm
