// The Autograd and ADInplaceOrView keys: derivatives of the operators, to any order, in forward and reverse mode.
//
//   y = h r,  r = (mean(h^2) + eps)^-1/2         keeps y and r alone: h = y / r is never needed
//   b(g, y, r) = r (g - y mean(y g))             the Jacobian of y, symmetric: VJP and JVP are the one operator
//   dr/dh = -r^2 y / dim
//
// Derivatives of b for a cotangent v:
//   b_g = b(v, y, r),  b_y = -r (mean(v y) g + mean(g y) v),  b_r = sum(v g) - sum(v y) mean(y g)
#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "ops.h"
#include "registration.h"
#include "saved_node.h"

namespace srmsnorm {
namespace {

using namespace torch::autograd;

constexpr uint64_t kFirstLevel = 0;  // of forward AD; functorch nests by wrapping tensors, not by levels

// ---- formulas in the accumulation type (rstd's), from differentiable operators

Tensor wide(const Tensor& tensor, const Tensor& rstd) { return tensor.to(rstd.scalar_type()); }
Tensor mean(const Tensor& a, const Tensor& b) { return (a * b).mean(-1, /*keepdim=*/true); }
Tensor sum(const Tensor& a, const Tensor& b) { return (a * b).sum(-1, /*keepdim=*/true); }

// In the wider dtype of the two; undefined is zero.
Tensor plus(const Tensor& a, const Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }

Tensor cast(const Tensor& tensor, at::ScalarType dtype) { return tensor.defined() ? tensor.to(dtype) : tensor; }

// r (v - y mean(y v)) in y's dtype; v may be wider than y, which the operator does not take.
Tensor project(const Tensor& v, const Tensor& y, const Tensor& rstd) {
  if (v.scalar_type() == y.scalar_type()) return op::_srms_norm_backward().call(v, y, rstd, {}, {});
  auto Y = wide(y, rstd), V = wide(v, rstd);
  return (rstd.unsqueeze(-1) * (V - Y * mean(Y, V))).to(y.scalar_type());
}

// The change of rstd under a change t of h.
Tensor rstd_tangent(const Tensor& t, const Tensor& y, const Tensor& rstd) {
  return -mean(wide(t, rstd), wide(y, rstd)).squeeze(-1) * rstd * rstd;
}

// Its transpose: what a gradient of rstd gives to h.
Tensor rstd_gradient(const Tensor& v, const Tensor& y, const Tensor& rstd) {
  return -(v * rstd * rstd).unsqueeze(-1) * wide(y, rstd) / at::Scalar(y.sym_size(-1));
}

// ---- reverse mode

// What a gradient goes to, as far as saved tensors do not tell.
struct Wanted {
  bool input, residual, with_sum;
  at::ScalarType residual_dtype;

  int64_t encode() const { return input | residual << 1 | with_sum << 2 | static_cast<int64_t>(residual_dtype) << 3; }
  static Wanted decode(int64_t code) {
    return {(code & 1) != 0, (code & 2) != 0, (code & 4) != 0, static_cast<at::ScalarType>(code >> 3)};
  }
};

// Of _srms_norm and _add_srms_norm. Saved: y, rstd. Gradients of: y, sum if there is one, rstd.
struct NormBackward : SavedNode<NormBackward, 2, /*saves_outputs=*/true> {
  std::string name() const override { return "SRMSNormBackward"; }

  static variable_list backward(const variable_list& grads, const variable_list& saved, int64_t code) {
    auto wanted = Wanted::decode(code);
    const Tensor &y = saved[0], &rstd = saved[1], &grad_output = grads.front(), &grad_rstd = grads.back();
    const Tensor grad_sum = wanted.with_sum ? grads[1] : Tensor();
    auto [grad_input, grad_residual] = gradients(grad_output, grad_sum, y, rstd, wanted);
    if (grad_rstd.defined()) {  // beyond first order only
      auto more = rstd_gradient(grad_rstd, y, rstd);
      auto add = [&](const Tensor& to, at::ScalarType dtype) {
        return to.defined() ? (wide(to, rstd) + more).to(dtype) : more.to(dtype);
      };
      if (wanted.input) grad_input = add(grad_input, y.scalar_type());
      if (wanted.residual) grad_residual = add(grad_residual, wanted.residual_dtype);
    }
    return {grad_input, grad_residual};
  }

 private:
  static std::tuple<Tensor, Tensor> gradients(const Tensor& grad_output, const Tensor& grad_sum, const Tensor& y,
                                              const Tensor& rstd, Wanted wanted) {
    auto dtype = y.scalar_type();
    if (!grad_output.defined())
      return {wanted.input ? cast(grad_sum, dtype) : Tensor(), wanted.residual ? grad_sum : Tensor()};
    if (wanted.input && wanted.residual && wanted.residual_dtype != dtype)
      return op::_srms_norm_backward_pair().call(grad_output, y, rstd, grad_sum);
    auto one =
        op::_srms_norm_backward().call(grad_output, y, rstd, grad_sum, wanted.input ? dtype : wanted.residual_dtype);
    return {wanted.input ? one : Tensor(), wanted.residual ? one : Tensor()};
  }
};

// Of _srms_norm_backward and _srms_norm_backward_pair. Saved: grad_output, y, rstd. Gradients of: each output.
struct NormDoubleBackward : SavedNode<NormDoubleBackward, 3, /*saves_outputs=*/false> {
  std::string name() const override { return "SRMSNormDoubleBackward"; }

  // grad_sum_dtype: Undefined where there was none.
  static variable_list backward(const variable_list& grads, const variable_list& saved, int64_t grad_sum_dtype) {
    const Tensor &g = saved[0], &y = saved[1], &rstd = saved[2];
    auto v = grads.size() == 1 ? grads[0] : plus(grads[0], grads[1]);
    if (!v.defined()) return {Tensor(), Tensor(), Tensor(), Tensor()};
    auto G = wide(g, rstd), Y = wide(y, rstd), V = wide(v, rstd), r = rstd.unsqueeze(-1);
    auto dtype = static_cast<at::ScalarType>(grad_sum_dtype);
    return {project(v, y, rstd), (-r * (mean(V, Y) * G + mean(G, Y) * V)).to(y.scalar_type()),
            (sum(V, G) - sum(V, Y) * mean(Y, G)).squeeze(-1),
            dtype == at::ScalarType::Undefined ? Tensor() : v.to(dtype)};
  }
};

// ---- forward mode

Tensor tangent(const Tensor& tensor) { return tensor.defined() ? tensor._fw_grad(kFirstLevel) : Tensor(); }
Tensor primal(const Tensor& tensor) { return tensor._fw_primal(kFirstLevel); }
void set_tangent(const Tensor& tensor, const Tensor& value) {
  tensor._set_fw_grad(value, kFirstLevel, /*is_inplace_op=*/false);
}

void norm_tangents(const Tensor& input, const Tensor& residual, const Tensor& y, const Tensor& sum,
                   const Tensor& rstd) {
  auto t = plus(tangent(input), tangent(residual));
  if (!t.defined()) return;
  auto Y = primal(y), r = primal(rstd);
  set_tangent(y, project(t, Y, r));
  set_tangent(rstd, rstd_tangent(t, Y, r));
  if (sum.defined()) set_tangent(sum, t.to(sum.scalar_type()));
}

// In the accumulation type; undefined where no operand carries a tangent.
Tensor norm_backward_tangent(const Tensor& grad_output, const Tensor& y, const Tensor& rstd, const Tensor& grad_sum) {
  auto tg = tangent(grad_output), ty = tangent(y), tr = tangent(rstd), ts = tangent(grad_sum);
  if (!tg.defined() && !ty.defined() && !tr.defined() && !ts.defined()) return Tensor();
  auto r = primal(rstd), R = r.unsqueeze(-1), G = wide(primal(grad_output), r), Y = wide(primal(y), r);
  Tensor t;
  if (tg.defined()) t = wide(project(tg, primal(y), r), r);
  if (ty.defined()) t = plus(t, -R * (wide(ty, r) * mean(Y, G) + Y * mean(wide(ty, r), G)));
  if (tr.defined()) t = plus(t, tr.unsqueeze(-1) * (G - Y * mean(Y, G)));
  if (ts.defined()) t = plus(t, wide(ts, r));
  return t;
}

// ---- the Autograd kernels

template <class... Tensors>
bool needs_derivative(const Tensors&... tensors) {
  return compute_requires_grad(tensors...) || (isFwGradDefined(tensors) || ...);
}

template <class Operator, class... Args>
auto below_autograd(const Operator& op, c10::DispatchKeySet keys, Args&&... args) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_autograd_keyset, std::forward<Args>(args)...);
}

NodeOf<NormBackward> norm_node(const Tensor& input, const MaybeTensor& residual, bool with_sum) {
  NodeOf<NormBackward> node;
  if (!compute_requires_grad(input, residual)) return node;
  node = make_node<NormBackward>();
  node->set_next_edges(collect_next_edges(input, residual));
  bool has_residual = residual && residual->defined();
  node->code = Wanted{input.requires_grad(), has_residual && residual->requires_grad(), with_sum,
                      has_residual ? residual->scalar_type() : input.scalar_type()}
                   .encode();
  return node;
}

std::tuple<Tensor, Tensor> _srms_norm(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& residual,
                                      MaybeDouble eps) {
  auto node = norm_node(input, residual, /*with_sum=*/false);
  auto [y, rstd] = below_autograd(op::_srms_norm(), keys, input, residual, eps);
  if (node) set_history(variable_list{y, rstd}, node);
  norm_tangents(input, residual.value_or(Tensor()), y, Tensor(), rstd);
  if (node) node->save({y, rstd});  // after the tangents, which forward-over-reverse finds there
  return {y, rstd};
}

std::tuple<Tensor, Tensor, Tensor> _add_srms_norm(c10::DispatchKeySet keys, const Tensor& input, const Tensor& residual,
                                                  MaybeDouble eps) {
  auto node = norm_node(input, residual, /*with_sum=*/true);
  auto [y, sum, rstd] = below_autograd(op::_add_srms_norm(), keys, input, residual, eps);
  if (node) set_history(variable_list{y, sum, rstd}, node);
  norm_tangents(input, residual, y, sum, rstd);
  if (node) node->save({y, rstd});
  return {y, sum, rstd};
}

// The public operators are the internal ones where a derivative may be asked for: called here, not through the
// dispatcher, which would come back to this key.
Tensor srms_norm(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& residual, MaybeDouble eps) {
  if (needs_derivative(input, residual)) return std::get<0>(_srms_norm(keys, input, residual, eps));
  return below_autograd(op::srms_norm(), keys, input, residual, eps);
}

std::tuple<Tensor, Tensor> add_srms_norm(c10::DispatchKeySet keys, const Tensor& input, const Tensor& residual,
                                         MaybeDouble eps) {
  if (!needs_derivative(input, residual)) return below_autograd(op::add_srms_norm(), keys, input, residual, eps);
  auto [y, sum, rstd] = _add_srms_norm(keys, input, residual, eps);
  return {y, sum};
}

NodeOf<NormDoubleBackward> double_backward_node(const Tensor& grad_output, const Tensor& output, const Tensor& rstd,
                                                const MaybeTensor& grad_sum) {
  NodeOf<NormDoubleBackward> node;
  if (!compute_requires_grad(grad_output, output, rstd, grad_sum)) return node;
  node = make_node<NormDoubleBackward>();
  node->set_next_edges(collect_next_edges(grad_output, output, rstd, grad_sum));
  node->save({grad_output, output, rstd});
  auto dtype = grad_sum && grad_sum->defined() ? grad_sum->scalar_type() : at::ScalarType::Undefined;
  node->code = static_cast<int64_t>(dtype);
  return node;
}

Tensor _srms_norm_backward(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& output,
                           const Tensor& rstd, const MaybeTensor& grad_sum, MaybeDtype dtype) {
  auto node = double_backward_node(grad_output, output, rstd, grad_sum);
  auto dh = below_autograd(op::_srms_norm_backward(), keys, grad_output, output, rstd, grad_sum, dtype);
  if (node) set_history(dh, node);
  if (auto t = norm_backward_tangent(grad_output, output, rstd, grad_sum.value_or(Tensor())); t.defined())
    set_tangent(dh, t.to(dh.scalar_type()));
  return dh;
}

std::tuple<Tensor, Tensor> _srms_norm_backward_pair(c10::DispatchKeySet keys, const Tensor& grad_output,
                                                    const Tensor& output, const Tensor& rstd,
                                                    const MaybeTensor& grad_sum) {
  auto node = double_backward_node(grad_output, output, rstd, grad_sum);
  auto [narrow, full] = below_autograd(op::_srms_norm_backward_pair(), keys, grad_output, output, rstd, grad_sum);
  if (node) set_history(variable_list{narrow, full}, node);
  if (auto t = norm_backward_tangent(grad_output, output, rstd, grad_sum.value_or(Tensor())); t.defined()) {
    set_tangent(narrow, t.to(narrow.scalar_type()));
    set_tangent(full, t.to(full.scalar_type()));
  }
  return {narrow, full};
}

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

SRMSNORM_KERNELS(Autograd, m) {
  m.impl("srms_norm", &srms_norm);
  m.impl("add_srms_norm", &add_srms_norm);
  m.impl("add_srms_norm_", &add_srms_norm_);
  m.impl("_srms_norm", &_srms_norm);
  m.impl("_add_srms_norm", &_add_srms_norm);
  m.impl("_srms_norm_backward", &_srms_norm_backward);
  m.impl("_srms_norm_backward_pair", &_srms_norm_backward_pair);
}

SRMSNORM_KERNELS(ADInplaceOrView, m) { m.impl("add_srms_norm_", &add_srms_norm_bump); }

}  // namespace srmsnorm
