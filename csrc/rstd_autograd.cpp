// Derivatives of rstd alone, to any order, in forward and reverse mode. With h = input (+ residual) and r = rstd,
// dh = -dr r^3 h / dim: rows times numbers, which _scale_rows computes. By h r, and never by r^3, which is no number
// for rows whose gradient still is one.
#include "autograd.h"
#include "checks.h"

namespace srmsnorm {
namespace {

MaybeTensor maybe(const Tensor& tensor) { return tensor.defined() ? MaybeTensor(tensor) : std::nullopt; }

Tensor sum_of(const Tensor& input, const MaybeTensor& residual, const Tensor& rstd) {
  auto h = wide(input, rstd);
  return residual && residual->defined() ? h + wide(*residual, rstd) : h;
}

// Saved: input, residual, rstd. Gradients of: rstd.
struct RstdBackward : SavedNode<RstdBackward, /*operands=*/2, /*saved_tensors=*/3, /*first_output=*/2> {
  std::string name() const override { return "RSTDBackward"; }

  static variable_list backward(const variable_list& grads, const variable_list& saved, const Wanted<2>& wanted) {
    variable_list gradients(2);
    if (!grads[0].defined()) return gradients;
    const Tensor &input = saved[0], &residual = saved[1], &rstd = saved[2];
    auto factor = -(grads[0] * rstd) * rstd / dim(input);
    auto in = [&](at::ScalarType dtype) {
      auto name = dtype == input.scalar_type() ? MaybeName() : MaybeName(name_of(dtype));
      return op::_scale_rows().call(input, maybe(residual), rstd, factor, name);
    };
    if (wanted[0]) gradients[0] = in(*wanted[0]);
    if (wanted[1]) gradients[1] = wanted[0] == wanted[1] ? gradients[0] : in(*wanted[1]);
    return gradients;
  }
};

Tensor rstd(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& residual, MaybeDouble eps) {
  auto node = node_of<RstdBackward>(input, residual);
  auto r = below_autograd(op::rstd(), keys, input, residual, eps);
  if (node) set_history(r, node);
  auto of_residual = residual.value_or(Tensor()), t = plus(tangent(input), tangent(of_residual));
  if (t.defined()) {
    auto one = primal(r), a_row = one.unsqueeze(-1), of_h = of_residual.defined() ? primal(of_residual) : Tensor();
    auto y = sum_of(primal(input), maybe(of_h), one) * a_row;
    set_tangent(r, -mean(wide(t, one), y).squeeze(-1) * one * one);
  }
  if (node) node->save({input, of_residual, r});
  return r;
}

// Where a derivative may be asked for, the formula, which PyTorch derives.
Tensor _scale_rows(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& residual, const Tensor& scale,
                   const MaybeTensor& factor, MaybeName dtype) {
  if (!needs_derivative(input, residual, scale, factor))
    return below_autograd(op::_scale_rows(), keys, input, residual, scale, factor, dtype);
  check_scale(input, residual, scale, factor);
  auto scaled = sum_of(input, residual, scale) * scale.unsqueeze(-1);
  if (factor && factor->defined()) scaled = scaled * factor->unsqueeze(-1);
  return scaled.to(dtype_of(dtype, input.scalar_type()));
}

}  // namespace

SRMSNORM_KERNELS(Autograd, m) { SRMSNORM_RSTD_OPERATORS(SRMSNORM_BY_ITS_NAME, SRMSNORM_BY_ITS_NAME) }

}  // namespace srmsnorm
