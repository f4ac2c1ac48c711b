// Devices without a kernel of ours (MPS, XPU, a backend of one's own): the definition, in PyTorch's operators.
#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/add.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/square.h>
#include <ATen/ops/sub.h>

#include "backend.h"

namespace srmsnorm {
namespace {

struct Fallback {
  static Tensor mean(const Tensor& tensor) { return tensor.mean(-1, /*keepdim=*/true); }

  static Tensor projected(const Tensor& grad_output, const Tensor& y, const Tensor& rstd) {
    auto g = grad_output.to(y.scalar_type());
    return rstd.unsqueeze(-1) * (g - y * mean(y * g));
  }

  static void copy(const Tensor& to, const Tensor& value) {
    if (to.defined()) to.copy_(value);
  }

  static void run(const ForwardTensors& t) {
    auto dtype = accumulation_dtype(t.input.scalar_type());
    auto h = t.input.to(dtype);
    if (t.residual.defined()) h = h + t.residual.to(dtype);
    if (t.scale.defined()) {
      auto y = h * t.scale.unsqueeze(-1);
      return copy(t.output, t.factor.defined() ? y * t.factor.unsqueeze(-1) : y);
    }
    auto r = at::rsqrt(mean(h.square()) + t.eps);
    copy(t.rstd, r.squeeze(-1));
    copy(t.sum, h);
    copy(t.output, h * r);  // last: in place this is input
  }

  static void run(const BackwardTensors& t) {
    auto dh = projected(t.grad_output, t.output.to(t.rstd.scalar_type()), t.rstd);
    if (t.grad_sum.defined()) dh = dh + t.grad_sum.to(dh.scalar_type());
    copy(t.grad_input, dh);
    copy(t.grad_residual, dh);
  }

  static void run(const QuantizedTensors& t) {
    auto h = t.input.to(at::kFloat);
    if (t.residual.defined()) h = h + t.residual.to(at::kFloat);
    auto y = (h * at::rsqrt(mean(h.square()) + t.eps)).to(t.input.scalar_type()).to(at::kFloat);
    copy(t.sum, h);
    copy(t.output, quantized(t, y));
  }

  // Of y in float32; writes the scale.
  static Tensor quantized(const QuantizedTensors& t, const Tensor& y) {
    const auto& how = t.quantization;
    Tensor q;
    if (how.given) {
      write_given_scale(t);
      q = y * (1 / t.scale);
    } else {
      auto parts = how.group > 0 ? y.unflatten(-1, {-1, how.group}) : y.unsqueeze(-2), most = parts.abs().amax(-1);
      auto scale = (most.clamp_max(how.upper) / at::full_like(most, how.most)).clamp_min(how.least);
      if (how.power_of_two) scale = (scale.view(at::kInt) + 0x7fffff).bitwise_and(0x7f800000).view(at::kFloat);
      scale = scale + (most - most);  // NaN where that is not finite
      t.scale.copy_(scale);
      q = (parts / scale.unsqueeze(-1)).flatten(-2);
    }
    q = q.clamp(-how.most, how.most);
    return how.type == Quantized::Int8 ? q.nan_to_num(0).round() : q;
  }

  // By the formula of the list.
  template <class Tensors>
  static void run(const Tensors& t) {
    auto found = formula(t);
    t.zip(
        [](Use use, const Tensor& to, const Tensor& value) {
          if (use.written) copy(to, value);
        },
        t, found);
  }
};

}  // namespace

WideBackwardOperands<Tensor> formula(const WideBackwardTensors& t) {
  auto y = t.input.to(t.rstd.scalar_type()) * t.rstd.unsqueeze(-1);
  return {.grad_input = Fallback::projected(t.grad_output, y, t.rstd)};
}

SRMSNORM_KERNELS(CompositeExplicitAutograd, m) { Kernels<Fallback>::add_to(m); }

}  // namespace srmsnorm
