// The Autograd and ADInplaceOrView keys: derivatives of the operators, to any order, in forward and reverse mode.
//
//   y = h r,  r = (mean(h^2) + eps)^-1/2         keeps y and r alone: h = y / r is never needed. Of a y wider than h
//                                                that is the input itself, it keeps h
//   b(g, y, r) = r (g - y mean(y g))             the Jacobian of y, symmetric: VJP and JVP are the one operator
//   dr/dh = -r^2 y / dim
//
// Derivatives of b for a cotangent v:
//   b_g = b(v, y, r),  b_y = -r (mean(v y) g + mean(y g) v),  b_r = dim (mean(v g) - mean(v y) mean(y g))
#include "autograd.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "checks.h"

namespace srmsnorm {
namespace {

// ---- formulas in the accumulation type (rstd's), from differentiable operators

Tensor cast(const Tensor& tensor, at::ScalarType dtype) { return tensor.defined() ? tensor.to(dtype) : tensor; }

// By the operator for that dtype of dh. A gradient of the sum that does not go with y is widened.
Tensor norm_backward(const Tensor& grad_output, const Tensor& y, const Tensor& rstd, const Tensor& grad_sum,
                     at::ScalarType dtype) {
  auto of_y = y.scalar_type();
  auto beside = grad_sum.defined() && !fits_beside(of_y, grad_sum.scalar_type()) ? wide(grad_sum, rstd) : grad_sum;
  if (is_16_bit(of_y) && dtype != of_y)  // of another dtype of 16 bits: no more is rounded on the way
    return op::_srms_norm_backward_residual().call(grad_output, y, rstd, beside).to(dtype);
  auto name = dtype == of_y ? MaybeName() : MaybeName(name_of(dtype));
  return op::_srms_norm_backward_input().call(grad_output, y, rstd, beside, name);
}

// r (v - y mean(y v)) in that dtype, y's or rstd's; v may be wider than y, which the operators do not take.
Tensor project(const Tensor& v, const Tensor& y, const Tensor& rstd, at::ScalarType dtype) {
  if (v.scalar_type() == y.scalar_type()) return norm_backward(v, y, rstd, {}, dtype);
  auto Y = wide(y, rstd), V = wide(v, rstd);
  return (rstd.unsqueeze(-1) * (V - Y * mean(Y, V))).to(dtype);
}

// The change of rstd under a change t of h.
Tensor rstd_tangent(const Tensor& t, const Tensor& y, const Tensor& rstd) {
  return -mean(wide(t, rstd), wide(y, rstd)).squeeze(-1) * rstd * rstd;
}

// Its transpose: what a gradient of rstd gives to h.
Tensor rstd_gradient(const Tensor& v, const Tensor& y, const Tensor& rstd) {
  return -(v * rstd * rstd).unsqueeze(-1) * wide(y, rstd) / dim(y);
}

// ---- reverse mode

// Of _srms_norm and _add_srms_norm. Saved: y, rstd. Gradients of: y, sum if there is one, rstd.
struct NormBackward : SavedNode<NormBackward, /*operands=*/2, /*saved_tensors=*/2, /*first_output=*/0> {
  std::string name() const override { return "SRMSNormBackward"; }

  static variable_list backward(const variable_list& grads, const variable_list& saved, const Wanted<2>& wanted) {
    const Tensor &y = saved[0], &rstd = saved[1], &grad_output = grads.front(), &grad_rstd = grads.back();
    const Tensor grad_sum = grads.size() == 3 ? grads[1] : Tensor();
    auto gradients = first_order(grad_output, grad_sum, y, rstd, wanted);
    if (!grad_rstd.defined()) return gradients;
    auto more = rstd_gradient(grad_rstd, y, rstd);  // beyond first order only
    for (size_t i = 0; i < gradients.size(); ++i)
      if (wanted[i]) {
        auto& grad = gradients[i];
        grad = (grad.defined() ? wide(grad, rstd) + more : more).to(*wanted[i]);
      }
    return gradients;
  }

 private:
  static variable_list first_order(const Tensor& grad_output, const Tensor& grad_sum, const Tensor& y,
                                   const Tensor& rstd, const Wanted<2>& wanted) {
    auto [input, residual] = wanted;
    if (!grad_output.defined())
      return {input ? cast(grad_sum, *input) : Tensor(), residual ? cast(grad_sum, *residual) : Tensor()};
    if (input && residual && input != residual && is_16_bit(y.scalar_type()) && *input != y.scalar_type()) {
      auto grad = norm_backward(grad_output, y, rstd, grad_sum, *residual);
      return {grad.to(*input), grad};
    }
    if (input && residual && input != residual) {
      auto name = *input == y.scalar_type() ? MaybeName() : MaybeName(name_of(*input));
      auto [narrow, full] = op::_srms_norm_backward_pair().call(grad_output, y, rstd, grad_sum, name);
      return {narrow, full};
    }
    if (!input && !residual) return {Tensor(), Tensor()};
    auto grad = norm_backward(grad_output, y, rstd, grad_sum, input ? *input : *residual);
    return {input ? grad : Tensor(), residual ? grad : Tensor()};
  }
};

// Of _srms_norm whose y is wider than the input. Saved: input, rstd. Gradients of: y, rstd.
struct WideNormBackward : SavedNode<WideNormBackward, /*operands=*/1, /*saved_tensors=*/2, /*first_output=*/1> {
  std::string name() const override { return "SRMSNormBackward"; }

  static variable_list backward(const variable_list& grads, const variable_list& saved, const Wanted<1>& wanted) {
    const Tensor &input = saved[0], &rstd = saved[1];
    if (!wanted[0]) return {Tensor()};
    auto grad = grads[0].defined() ? op::_srms_norm_backward_of_input().call(grads[0], input, rstd) : Tensor();
    if (grads[1].defined())  // beyond first order only
      grad = plus(grad, rstd_gradient(grads[1], wide(input, rstd) * rstd.unsqueeze(-1), rstd)).to(*wanted[0]);
    return {grad};
  }
};

// Of the operators that NormBackward calls. Saved: grad_output, y, rstd. Gradients of: each output.
struct NormDoubleBackward : SavedNode<NormDoubleBackward, /*operands=*/4, /*saved_tensors=*/3, /*first_output=*/3> {
  std::string name() const override { return "SRMSNormDoubleBackward"; }

  static variable_list backward(const variable_list& grads, const variable_list& saved, const Wanted<4>& wanted) {
    const Tensor &g = saved[0], &y = saved[1], &rstd = saved[2];
    auto v = grads.size() == 1 ? grads[0] : plus(grads[0], grads[1]);
    variable_list gradients(4);
    if (!v.defined()) return gradients;
    if (wanted[0]) gradients[0] = project(v, y, rstd, *wanted[0]);
    if (wanted[1] || wanted[2]) {
      auto G = wide(g, rstd), Y = wide(y, rstd), V = wide(v, rstd), vy = mean(V, Y), yg = mean(Y, G);
      if (wanted[1]) gradients[1] = (-rstd.unsqueeze(-1) * (vy * G + yg * V)).to(*wanted[1]);
      if (wanted[2]) gradients[2] = ((mean(V, G) - vy * yg) * dim(y)).squeeze(-1);
    }
    if (wanted[3]) gradients[3] = v.to(*wanted[3]);
    return gradients;
  }
};

// ---- forward mode

// A tangent of one of these is copied on its way to an output: else a change of the output in place would change it.
Tensor own(const Tensor& value, at::ScalarType dtype, std::initializer_list<Tensor> arguments) {
  bool shared = std::any_of(arguments.begin(), arguments.end(), [&](const Tensor& t) { return value.is_same(t); });
  return value.to(dtype, /*non_blocking=*/false, /*copy=*/shared);
}

void norm_tangents(const Tensor& input, const Tensor& residual, const Tensor& y, const Tensor& sum,
                   const Tensor& rstd) {
  auto ti = tangent(input), tr = tangent(residual);
  if (!ti.defined() && !tr.defined()) return;
  auto Y = primal(y), r = primal(rstd);
  bool both = ti.defined() && tr.defined(), of_wide_y = Y.scalar_type() == r.scalar_type();
  auto t = both && of_wide_y ? wide(ti, r) + wide(tr, r) : plus(ti, tr);
  set_tangent(y, project(t, Y, r, Y.scalar_type()));
  set_tangent(rstd, rstd_tangent(t, Y, r));
  if (sum.defined()) set_tangent(sum, own(t, sum.scalar_type(), {ti, tr}));
}

void norm_backward_tangents(const Tensor& grad_output, const Tensor& y, const Tensor& rstd, const MaybeTensor& grad_sum,
                            std::initializer_list<Tensor> gradients) {
  auto tg = tangent(grad_output), ty = tangent(y), tr = tangent(rstd), ts = tangent(grad_sum.value_or(Tensor()));
  if (!tg.defined() && !ty.defined() && !tr.defined() && !ts.defined()) return;
  auto r = primal(rstd);
  Tensor t;  // in the accumulation type, but for the sum's own
  if (tg.defined()) t = project(tg, primal(y), r, r.scalar_type());
  if (ty.defined() || tr.defined()) {
    auto G = wide(primal(grad_output), r), Y = wide(primal(y), r), yg = mean(Y, G);
    if (ty.defined()) t = plus(t, -r.unsqueeze(-1) * (wide(ty, r) * yg + Y * mean(wide(ty, r), G)));
    if (tr.defined()) t = plus(t, tr.unsqueeze(-1) * (G - Y * yg));
  }
  if (ts.defined()) t = plus(t, ts);
  for (const auto& gradient : gradients) set_tangent(gradient, own(t, gradient.scalar_type(), {ts}));
}

// ---- the Autograd kernels

std::tuple<Tensor, Tensor> _srms_norm(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& residual,
                                      MaybeDouble eps, MaybeName dtype) {
  bool widens = dtype && *dtype == "float32" && is_16_bit(input.scalar_type()) && !(residual && residual->defined());
  auto node = widens ? NodeOf<NormBackward>() : node_of<NormBackward>(input, residual);
  auto wide_node = widens ? node_of<WideNormBackward>(input) : NodeOf<WideNormBackward>();
  auto [y, rstd] = below_autograd(op::_srms_norm(), keys, input, residual, eps, dtype);
  if (node) set_history(variable_list{y, rstd}, node);
  if (wide_node) set_history(variable_list{y, rstd}, wide_node);
  norm_tangents(input, residual.value_or(Tensor()), y, Tensor(), rstd);
  if (node) node->save({y, rstd});  // after the tangents, which forward-over-reverse finds there
  if (wide_node) wide_node->save({input, rstd});
  return {y, rstd};
}

std::tuple<Tensor, Tensor, Tensor> _add_srms_norm(c10::DispatchKeySet keys, const Tensor& input, const Tensor& residual,
                                                  MaybeDouble eps, MaybeName dtype) {
  auto node = node_of<NormBackward>(input, residual);
  auto [y, sum, rstd] = below_autograd(op::_add_srms_norm(), keys, input, residual, eps, dtype);
  if (node) set_history(variable_list{y, sum, rstd}, node);
  norm_tangents(input, residual, y, sum, rstd);
  if (node) node->save({y, rstd});
  return {y, sum, rstd};
}

constexpr auto& srms_norm = FirstOf<op::srms_norm, _srms_norm>::call;

std::tuple<Tensor, Tensor> add_srms_norm(c10::DispatchKeySet keys, const Tensor& input, const Tensor& residual,
                                         MaybeDouble eps, MaybeName dtype) {
  if (!needs_derivative(input, residual)) return below_autograd(op::add_srms_norm(), keys, input, residual, eps, dtype);
  auto [y, sum, rstd] = _add_srms_norm(keys, input, residual, eps, dtype);
  return {y, sum};
}

NodeOf<NormDoubleBackward> double_backward_node(const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                                                const MaybeTensor& grad_sum) {
  auto node = node_of<NormDoubleBackward>(grad_output, output, rstd, grad_sum);
  if (node) node->save({grad_output, output, rstd});
  return node;
}

template <auto op, class... Dtype>
Tensor one_backward(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                    const MaybeTensor& grad_sum, Dtype... dtype) {
  auto node = double_backward_node(grad_output, output, rstd, grad_sum);
  auto dh = below_autograd(op(), keys, grad_output, output, rstd, grad_sum, dtype...);
  if (node) set_history(dh, node);
  norm_backward_tangents(grad_output, output, rstd, grad_sum, {dh});
  return dh;
}

constexpr auto& _srms_norm_backward_input = one_backward<op::_srms_norm_backward_input, MaybeName>;
constexpr auto& _srms_norm_backward_residual = one_backward<op::_srms_norm_backward_residual>;

std::tuple<Tensor, Tensor> _srms_norm_backward_pair(c10::DispatchKeySet keys, const Tensor& grad_output,
                                                    const Tensor& output, const Tensor& rstd,
                                                    const MaybeTensor& grad_sum, MaybeName dtype) {
  auto node = double_backward_node(grad_output, output, rstd, grad_sum);
  auto [narrow, full] =
      below_autograd(op::_srms_norm_backward_pair(), keys, grad_output, output, rstd, grad_sum, dtype);
  if (node) set_history(variable_list{narrow, full}, node);
  norm_backward_tangents(grad_output, output, rstd, grad_sum, {narrow, full});
  return {narrow, full};
}

constexpr auto& _srms_norm_backward_of_input = BySignature<op::_srms_norm_backward_of_input, ByFormula>::call;

// In place there is no derivative: y overwrites what it would be computed from.
void add_srms_norm_(c10::DispatchKeySet keys, const Tensor& input, const Tensor& residual, MaybeDouble eps) {
  TORCH_CHECK(!compute_requires_grad(input, residual),
              "srmsnorm: add_srms_norm_ is not differentiable, and an operand requires grad: use add_srms_norm, or "
              "torch.no_grad()");
  TORCH_CHECK(!isFwGradDefined(input) && !isFwGradDefined(residual),
              "srmsnorm: add_srms_norm_ is not differentiable, and an operand carries a forward gradient: use "
              "add_srms_norm");
  at::AutoDispatchBelowAutograd guard;
  op::add_srms_norm_().redispatch(keys & c10::after_autograd_keyset, input, residual, eps);
}

void add_srms_norm_bump(c10::DispatchKeySet keys, const Tensor& input, const Tensor& residual, MaybeDouble eps) {
  // bump_version says so too, but only once all is written.
  TORCH_CHECK(c10::InferenceMode::is_enabled() || !(input.is_inference() || residual.is_inference()),
              "srmsnorm: add_srms_norm_ got an inference tensor outside InferenceMode: an in-place update to it is not "
              "allowed; clone it first");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op::add_srms_norm_().redispatch(keys & c10::after_ADInplaceOrView_keyset, input, residual, eps);
  }
  torch::autograd::impl::bump_version(input);
  torch::autograd::impl::bump_version(residual);
}

}  // namespace

SRMSNORM_KERNELS(Autograd, m){SRMSNORM_NORM_OPERATORS(SRMSNORM_BY_ITS_NAME, SRMSNORM_BY_ITS_NAME)}

SRMSNORM_KERNELS(ADInplaceOrView, m) {
  m.impl("add_srms_norm_", &add_srms_norm_bump);
}

}  // namespace srmsnorm
