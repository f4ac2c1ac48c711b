// Derivatives of the gated norm, to any order, in forward and reverse mode. With a = activation(gate), r = rstd:
//
//   the norm first   z = x r a,          dx = r a g - r^3 x mean(x a g),  dgate = g x r a'
//   the gate first   z = t r,  t = x a   dt = r g - r^3 t mean(t g),      dx = dt a,  dgate = dt x a'
//
// Kept are x, gate and r: the next layer keeps z, or what it makes of it, and y is made again from x.
#include "autograd.h"
#include "gated.h"

namespace srmsnorm {
namespace {

// The activation by its name, "" for none, and whether the norm comes first.
using Name = std::string;
MaybeName maybe(const Name& activation) { return activation.empty() ? MaybeName() : MaybeName(activation); }
Name name_of(MaybeName activation) { return Name(activation.value_or("")); }

// ---- reverse mode

// Of _gated_srms_norm. Saved: input, gate, rstd. Gradients of: output, rstd.
struct GatedBackward : SavedNode<GatedBackward, /*operands=*/2, /*saved_tensors=*/3, /*first_output=*/2, Name, bool> {
  std::string name() const override { return "GatedSRMSNormBackward"; }

  static variable_list backward(const variable_list& grads, const variable_list& saved, const Wanted<2>& wanted,
                                const Name& activation, bool norm_first) {
    const Tensor &x = saved[0], &gate = saved[1], &rstd = saved[2];
    auto gradients = first_order(grads[0], x, gate, rstd, wanted, maybe(activation), norm_first);
    if (!grads[1].defined()) return gradients;
    auto [dx, dgate] = of_rstd(grads[1], x, gate, rstd, check_gating(maybe(activation), norm_first));
    if (wanted[0]) gradients[0] = plus(gradients[0], dx).to(*wanted[0]);
    if (wanted[1] && dgate.defined()) gradients[1] = plus(gradients[1], dgate).to(*wanted[1]);
    return gradients;
  }

 private:
  static variable_list first_order(const Tensor& g, const Tensor& x, const Tensor& gate, const Tensor& rstd,
                                   const Wanted<2>& wanted, MaybeName activation, bool norm_first) {
    if (!g.defined() || !(wanted[0] || wanted[1])) return {Tensor(), Tensor()};
    if (wanted[0] && wanted[1]) {
      auto [dx, dgate] = op::_gated_srms_norm_backward().call(g, x, gate, rstd, activation, norm_first);
      return {dx, dgate};
    }
    const auto& one = wanted[0] ? op::_gated_srms_norm_backward_input() : op::_gated_srms_norm_backward_gate();
    auto gradient = one.call(g, x, gate, rstd, activation, norm_first);
    return {wanted[0] ? gradient : Tensor(), wanted[1] ? gradient : Tensor()};
  }

  // What a gradient of rstd gives: beyond first order only.
  static std::tuple<Tensor, Tensor> of_rstd(const Tensor& v, const Tensor& input, const Tensor& gate,
                                            const Tensor& rstd, Gating gating) {
    auto x = wide(input, rstd), r = rstd.unsqueeze(-1), scale = -(v.unsqueeze(-1) * r / dim(input));
    if (gating.norm_first) return {scale * (x * r * r), Tensor()};
    auto [a, slope] = activated(wide(gate, rstd), gating.activation);
    auto dt = scale * (x * a * r * r);
    return {dt * a, dt * x * slope};
  }
};

enum Gradient : int64_t { kBoth, kInput, kGate };

// Of the operators that GatedBackward calls. Saved: grad_output, input, gate, rstd. Gradients of: what it returned.
struct GatedDoubleBackward
    : SavedNode<GatedDoubleBackward, /*operands=*/4, /*saved_tensors=*/4, /*first_output=*/4, Name, bool, int64_t> {
  std::string name() const override { return "GatedSRMSNormDoubleBackward"; }

  static variable_list backward(const variable_list& grads, const variable_list& saved, const Wanted<4>& wanted,
                                const Name& activation, bool norm_first, int64_t of) {
    const Tensor &grad_dx = of == kGate ? Tensor() : grads.front(),
                 &grad_dgate = of == kInput ? Tensor() : grads.back();
    if (!grad_dx.defined() && !grad_dgate.defined()) return variable_list(4);
    const Tensor& rstd = saved[3];
    auto zero = [&] { return at::zeros_like(wide(saved[1], rstd)); };
    auto V = grad_dx.defined() ? wide(grad_dx, rstd) : zero(),
         W = grad_dgate.defined() ? wide(grad_dgate, rstd) : zero();
    auto gating = check_gating(maybe(activation), norm_first);
    auto of_operands = norm_first ? after_the_norm : before_the_norm;
    auto gradients = of_operands(V, W, wide(saved[0], rstd), wide(saved[1], rstd), wide(saved[2], rstd),
                                 rstd.unsqueeze(-1), gating, wanted);
    for (size_t i = 0; i < 4; ++i)
      if (wanted[i]) gradients[i] = (i == 3 ? gradients[i].squeeze(-1) : gradients[i]).to(*wanted[i]);
    return gradients;
  }

 private:
  // For cotangents V of dx and W of dgate: what they give to g, x, the gate and r. By y and never by r^3, which is no
  // number for rows that y is one of.
  static variable_list after_the_norm(const Tensor& V, const Tensor& W, const Tensor& g, const Tensor& x,
                                      const Tensor& gate, const Tensor& r, Gating gating, const Wanted<4>& wanted) {
    auto [a, slope] = activated(gate, gating.activation);
    auto y = x * r, p = mean(y * a, g), q = mean(V, y), projected = r * (V - y * q);
    variable_list found(4);
    if (wanted[0]) found[0] = projected * a + W * y * slope;
    if (wanted[1]) found[1] = r * (W * g * slope - r * (p * V + q * g * a));
    if (wanted[2]) found[2] = projected * g * slope + W * g * y * curvature(gate, gating.activation);
    if (wanted[3]) found[3] = dim(x) * (mean(V * a + W * x * slope, g) - 3 * p * q);
    return found;
  }

  static variable_list before_the_norm(const Tensor& V, const Tensor& W, const Tensor& g, const Tensor& x,
                                       const Tensor& gate, const Tensor& r, Gating gating, const Wanted<4>& wanted) {
    auto [a, slope] = activated(gate, gating.activation);
    auto y = x * a * r, U = V * a + W * x * slope, p = mean(y, g), s = mean(U, y), dt = r * (g - y * p);
    variable_list found(4);
    if (wanted[0]) found[0] = r * (U - y * s);
    if (wanted[1] || wanted[2]) {
      auto at_t = -r * (r * (p * U + s * g));
      if (wanted[1]) found[1] = W * dt * slope + at_t * a;
      if (wanted[2]) found[2] = V * dt * slope + W * x * dt * curvature(gate, gating.activation) + at_t * x * slope;
    }
    if (wanted[3]) found[3] = dim(x) * (mean(U, g) - 3 * p * s);
    return found;
  }
};

// ---- forward mode

Tensor times(const Tensor& a, const Tensor& b) { return a.defined() && b.defined() ? a * b : Tensor(); }

// r (t - y mean(y t)) is the tangent of y for one of h, and -r^2 mean(y t) that of r.
void gated_tangents(const Tensor& input, const Tensor& gate, const Tensor& z, const Tensor& rstd, MaybeName activation,
                    bool norm_first) {
  auto tx = tangent(input), tg = tangent(gate);
  if (!tx.defined() && !tg.defined()) return;
  auto gating = check_gating(activation, norm_first);
  auto r = primal(rstd).unsqueeze(-1), x = wide(primal(input), r);
  auto [a, slope] = activated(wide(primal(gate), r), gating.activation);
  if (tx.defined()) tx = wide(tx, r);
  auto ta = tg.defined() ? slope * wide(tg, r) : Tensor();
  auto y = (gating.norm_first ? x : x * a) * r, th = gating.norm_first ? tx : plus(times(tx, a), times(x, ta));
  Tensor ty;
  if (th.defined()) {
    auto m = mean(y, th);
    ty = r * (th - y * m);
    set_tangent(rstd, (-r * m * r).squeeze(-1));
  }
  auto tz = gating.norm_first ? plus(times(ty, a), times(y, ta)) : ty;
  set_tangent(z, tz.to(z.scalar_type()));
}

// ---- the Autograd kernels

std::tuple<Tensor, Tensor> _gated_srms_norm(c10::DispatchKeySet keys, const Tensor& input, const Tensor& gate,
                                            MaybeName activation, bool norm_first, MaybeDouble eps) {
  auto node = node_of<GatedBackward>(input, gate);
  if (node) node->constants = {name_of(activation), norm_first};
  auto [z, rstd] = below_autograd(op::_gated_srms_norm(), keys, input, gate, activation, norm_first, eps);
  if (node) set_history(variable_list{z, rstd}, node);
  gated_tangents(input, gate, z, rstd, activation, norm_first);
  if (node) node->save({input, gate, rstd});
  return {z, rstd};
}

constexpr auto& gated_srms_norm = FirstOf<op::gated_srms_norm, _gated_srms_norm>::call;

template <auto op, Gradient of>
auto backward(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input, const Tensor& gate,
              const Tensor& rstd, MaybeName activation, bool norm_first) {
  auto node = node_of<GatedDoubleBackward>(grad_output, input, gate, rstd);
  if (node) node->save({grad_output, input, gate, rstd});
  if (node) node->constants = {name_of(activation), norm_first, of};
  auto gradients = below_autograd(op(), keys, grad_output, input, gate, rstd, activation, norm_first);
  if (node) set_history(list_of(gradients), node);
  set_tangents<op>(gradients, grad_output, input, gate, rstd, activation, norm_first);
  return gradients;
}

constexpr auto& _gated_srms_norm_backward = backward<op::_gated_srms_norm_backward, kBoth>;
constexpr auto& _gated_srms_norm_backward_input = backward<op::_gated_srms_norm_backward_input, kInput>;
constexpr auto& _gated_srms_norm_backward_gate = backward<op::_gated_srms_norm_backward_gate, kGate>;

}  // namespace

SRMSNORM_KERNELS(Autograd, m) { SRMSNORM_GATED_OPERATORS(SRMSNORM_BY_ITS_NAME, SRMSNORM_BY_ITS_NAME) }

}  // namespace srmsnorm
