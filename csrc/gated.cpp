#include "gated.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/square.h>
#include <ATen/ops/zeros_like.h>

namespace srmsnorm {

Gating check_gating(MaybeName activation, bool norm_first) {
  if (!activation) return {Activation::None, norm_first};
  if (*activation == "silu" || *activation == "swish") return {Activation::SiLU, norm_first};
  if (*activation == "sigmoid") return {Activation::Sigmoid, norm_first};
  TORCH_CHECK(false, "srmsnorm: activation must be None, 'silu', 'swish' or 'sigmoid', got '", *activation, "'");
}

void check(GatedForwardTensors& t, MaybeName activation, bool norm_first, MaybeDouble eps) {
  check_rows(t.input, "input");
  check_beside(t.gate, "gate", t.input, "input");
  t.gating = check_gating(activation, norm_first);
  t.eps = resolve_eps(eps, t.input.scalar_type());
}

void check(GatedBackwardTensors& t, MaybeName activation, bool norm_first) {
  check_rows(t.input, "input");
  check_beside(t.gate, "gate", t.input, "input");
  t.gating = check_gating(activation, norm_first);
  check_gradient(t.grad_output, t.rstd, t.input, "input");
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

GatedForwardOperands<Tensor> formula(const GatedForwardTensors& t) {
  auto dtype = accumulation_dtype(t.input.scalar_type());
  auto h = t.input.to(dtype), a = activated(t.gate.to(dtype), t.gating.activation).value;
  if (!t.gating.norm_first) h = h * a;
  auto r = at::rsqrt(h.square().mean(-1, /*keepdim=*/true) + t.eps), y = h * r;
  return {.output = t.gating.norm_first ? y * a : y, .rstd = r.squeeze(-1)};
}

GatedBackwardOperands<Tensor> formula(const GatedBackwardTensors& t) {
  auto dtype = t.rstd.scalar_type();
  auto g = t.grad_output.to(dtype), x = t.input.to(dtype), r = t.rstd.unsqueeze(-1);
  auto [a, slope] = activated(t.gate.to(dtype), t.gating.activation);
  auto y = (t.gating.norm_first ? x : x * a) * r, dy = t.gating.norm_first ? g * a : g;
  auto dh = r * (dy - y * (y * dy).mean(-1, /*keepdim=*/true));
  if (t.gating.norm_first) return {.grad_input = dh, .grad_gate = g * y * slope};
  return {.grad_input = dh * a, .grad_gate = dh * x * slope};
}

}  // namespace srmsnorm
