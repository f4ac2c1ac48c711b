#include "gated.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/square.h>
#include <ATen/ops/zeros_like.h>

#include "checks.h"

namespace srmsnorm {

Gating check_gating(MaybeName activation, bool norm_first) {
  if (!activation) return {Activation::None, norm_first};
  if (*activation == "silu" || *activation == "swish") return {Activation::SiLU, norm_first};
  if (*activation == "sigmoid") return {Activation::Sigmoid, norm_first};
  TORCH_CHECK(false, "srmsnorm: activation must be None, 'silu', 'swish' or 'sigmoid', got '", *activation, "'");
}

GatedOptions check(const Tensor& input, const Tensor& gate, MaybeName activation, bool norm_first, MaybeDouble eps) {
  check_rows(input, "input");
  check_beside(gate, "gate", input, "input");
  auto gating = check_gating(activation, norm_first);
  return {resolve_eps(eps, input.scalar_type()), gating};
}

GatedOptions check(const Tensor& grad_output, const Tensor& input, const Tensor& gate, const Tensor& rstd,
                   MaybeName activation, bool norm_first) {
  auto options = check(input, gate, activation, norm_first, {});
  check_gradient(grad_output, rstd, input, "input");
  return options;
}

GatedForwardTensors prepare_gated(ForwardOutputs outputs, const Tensor& input, const Tensor& gate, MaybeName activation,
                                  bool norm_first, MaybeDouble eps) {
  auto options = check(input, gate, activation, norm_first, eps);
  GatedForwardTensors tensors{{.input = with_unit_stride(input), .gate = with_unit_stride(gate)}, options};
  tensors.output = empty_rows_like(tensors.input, input.scalar_type());
  if (outputs.rstd) tensors.rstd = empty_rstd(tensors.input);
  return tensors;
}

GatedBackwardTensors prepare_gated_backward(GatedGradients gradients, const Tensor& grad_output, const Tensor& input,
                                            const Tensor& gate, const Tensor& rstd, MaybeName activation,
                                            bool norm_first) {
  auto options = check(grad_output, input, gate, rstd, activation, norm_first);
  GatedBackwardTensors tensors{
      {with_unit_stride(grad_output), with_unit_stride(input), with_unit_stride(gate), rstd, {}, {}}, options};
  if (gradients.input) tensors.grad_input = empty_rows_like(tensors.input, input.scalar_type());
  if (gradients.gate) tensors.grad_gate = empty_rows_like(tensors.gate, gate.scalar_type());
  return tensors;
}

Activated activated(const Tensor& gate, Activation activation) {
  if (activation == Activation::None) return {gate, at::ones_like(gate)};
  auto s = at::sigmoid(gate), slope = s * at::sigmoid(-gate);  // 1 - s loses what sigmoid(-gate) keeps
  if (activation == Activation::Sigmoid) return {s, slope};
  return {gate * s, s + gate * slope};
}

Tensor curvature(const Tensor& gate, Activation activation) {
  if (activation == Activation::None) return at::zeros_like(gate);
  auto s = at::sigmoid(gate), slope = s * at::sigmoid(-gate);
  if (activation == Activation::Sigmoid) return slope * (1 - 2 * s);
  return slope * (2 + gate * (1 - 2 * s));
}

std::tuple<Tensor, Tensor> gated_backward_formula(const Tensor& grad_output, const Tensor& input, const Tensor& gate,
                                                  const Tensor& rstd, Gating gating) {
  auto dtype = rstd.scalar_type();
  auto g = grad_output.to(dtype), x = input.to(dtype), r = rstd.unsqueeze(-1);
  auto [a, slope] = activated(gate.to(dtype), gating.activation);
  auto y = (gating.norm_first ? x : x * a) * r, dy = gating.norm_first ? g * a : g;
  auto dh = r * (dy - y * (y * dy).mean(-1, /*keepdim=*/true));
  if (gating.norm_first) return {dh, g * y * slope};
  return {dh * a, dh * x * slope};
}

void run_formula(const GatedForwardTensors& t) {
  auto dtype = accumulation_dtype(t.input.scalar_type());
  auto h = t.input.to(dtype), a = activated(t.gate.to(dtype), t.gating.activation).value;
  if (!t.gating.norm_first) h = h * a;
  auto r = at::rsqrt(h.square().mean(-1, /*keepdim=*/true) + t.eps), y = h * r;
  t.output.copy_(t.gating.norm_first ? y * a : y);
  if (t.rstd.defined()) t.rstd.copy_(r.squeeze(-1));
}

void run_formula(const GatedBackwardTensors& t) {
  auto [grad_input, grad_gate] = gated_backward_formula(t.grad_output, t.input, t.gate, t.rstd, t.gating);
  if (t.grad_input.defined()) t.grad_input.copy_(grad_input);
  if (t.grad_gate.defined()) t.grad_gate.copy_(grad_gate);
}

}  // namespace srmsnorm
