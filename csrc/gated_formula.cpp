#include "gated_formula.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/square.h>
#include <ATen/ops/zeros_like.h>

namespace srmsnorm {

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

std::tuple<Tensor, Tensor> gated_formula(const Tensor& input, const Tensor& gate, double eps, Gating gating) {
  auto dtype = accumulation_dtype(input.scalar_type());
  auto h = input.to(dtype), a = activated(gate.to(dtype), gating.activation).value;
  if (!gating.norm_first) h = h * a;
  auto r = at::rsqrt(h.square().mean(-1, /*keepdim=*/true) + eps), y = h * r;
  return {gating.norm_first ? y * a : y, r.squeeze(-1)};
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

}  // namespace srmsnorm
